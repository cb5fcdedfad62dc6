"""From the vocabulary that corpora are stored over to the vocabulary of a model that has another one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cytoray.errors import ModelError
from cytoray.tokens.cells import Int32, SparseCells
from cytoray.tokens.packed import PackedCells, pack, unpack, with_genes
from cytoray.tokens.vocabulary import SPECIAL_TOKENS, GeneVocabulary


@dataclass(frozen=True, eq=False)
class Translation:
    """A model's vocabulary, and the id in it of each gene of the default one; -1 for genes that the model lacks."""

    vocabulary: GeneVocabulary
    table: Int32

    @staticmethod
    def to(vocabulary: GeneVocabulary) -> Translation | None:
        """Translate the default vocabulary's genes by the rules for names in files; None if ``vocabulary`` is it.

        Raises ModelError if it has none of these genes.
        """
        default = GeneVocabulary.load_default()
        if vocabulary == default:
            return None
        table = vocabulary.map_genes(default.tokens).ids.copy()
        table[[default.index[token] for token in SPECIAL_TOKENS]] = -1
        if table.max(initial=-1) < 0:
            raise ModelError(
                f"The model's vocabulary ({vocabulary.size} tokens) has no gene that corpora are stored over.",
                remedy="Use a model of human genes, named by symbol or Ensembl id.",
            )
        return Translation(vocabulary, table)

    @property
    def num_genes(self) -> int:
        """Number of genes of the default vocabulary that the model has."""
        return int(np.count_nonzero(self.table >= 0))

    def apply(self, cells: PackedCells) -> PackedCells:
        """Return the cells over the model's gene ids; genes that it lacks are left out, and so are stored bins."""
        return with_genes(cells, self.table)

    def apply_sparse(self, cells: SparseCells) -> SparseCells:
        """Return sparse cells over the model's gene ids; genes that it lacks are left out."""
        return unpack(with_genes(pack(cells, counts=False), self.table))
