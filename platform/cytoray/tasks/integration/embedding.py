"""Embed cells of several batches with a bundle: any model, or one that was fine-tuned for integration."""

# C cells, B batches of the model, W width of the model

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from cytoray.errors import CorpusError, ModelError
from cytoray.model.bundle import ModelBundle, compute_weights_digest
from cytoray.model.predictor import CellPredictor
from cytoray.tasks.integration.cells import BatchedCells
from cytoray.tokens.collator import collate_cells
from cytoray.tokens.keys import cell_id
from cytoray.tokens.packed import PackedCells, pack_rows
from cytoray.tokens.tokenizer import CellTokenizer

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
CELLS_AT_A_TIME = 32


@dataclass(frozen=True, eq=False)
class BatchedEmbedder:
    """A model that embeds cells of several batches.

    Cells of a batch that a model fine-tuned for integration does not know are refused, or, with ``maps_new``, embedded
    as if they were of each of its batches in turn: the mean.
    """

    bundle: ModelBundle = field(repr=False)
    uri: str
    maps_new: bool = False

    @cached_property
    def weights(self) -> str:
        """Digest of all that the embeddings depend on."""
        return compute_weights_digest(self.bundle)

    def embed(self, cells: BatchedCells) -> Float32:
        """Return embeddings (C, W) of length 1, zero for a cell without a gene of the model.

        Raises CorpusError if the model knows none of the genes, or not the batches.
        """
        ids = self.bundle.vocabulary.map_genes(list(cells.genes)).ids
        packed = pack_rows(cells.values, ids, cell_id("", list(cells.names)), counts=cells.are_counts)
        if not packed.num_genes_per_cell.any():
            raise CorpusError(
                f"{cells.uri}: {self.uri} knows none of the genes.",
                remedy="Name genes by symbols or Ensembl ids in the index of var, or leave the model out.",
            )
        if self.bundle.model.config.needed_to_embed:
            return self._embed_by_batch(packed, cells.batches)
        return np.nan_to_num(CellPredictor(self.bundle, empty_cells="nan").predict(packed).embeddings)

    def _embed_by_batch(self, packed: PackedCells, batches: Sequence[str]) -> Float32:
        """Embed cells by a model of batches: its panel with zeros, and the batch of each cell."""
        column, names = self._known_batches()
        numbers = {name: number for number, name in enumerate(names)}
        unknown = sorted(set(batches) - set(names))
        if unknown and not self.maps_new:
            raise CorpusError(
                f"The model was fine-tuned on other batches ({column}): it does not know {', '.join(unknown[:5])}.",
                remedy="Fine-tune a model on these batches, or use a model that needs none.",
            )
        codes = np.array([numbers.get(name, -1) for name in batches], np.int64)
        if not unknown:
            return self._embed_coded(packed, codes)
        every = [self._embed_coded(packed, np.where(codes < 0, code, codes)) for code in range(len(names))]
        mean = np.mean(every, axis=0)
        norms = np.linalg.norm(mean, axis=1, keepdims=True)
        return np.asarray(np.divide(mean, norms, out=np.zeros_like(mean), where=norms > 0), np.float32)

    def _embed_coded(self, packed: PackedCells, codes: Int64) -> Float32:
        bundle = self.bundle
        assert bundle.conditions is not None, "a model of batches has conditions"
        assert bundle.conditions.panel is not None, "a model of integration has a panel"
        panel = tuple(bundle.vocabulary.index[gene] for gene in bundle.conditions.panel)
        tokenizer = CellTokenizer(bundle.vocabulary, bundle.tokenizer_config, panel=panel)
        packed = tokenizer.restrict(packed)
        identities = tokenizer.identities(packed)
        model = bundle.model.eval()
        parts = []
        with torch.inference_mode():
            for start in range(0, packed.num_cells, CELLS_AT_A_TIME):
                rows = np.arange(start, min(start + CELLS_AT_A_TIME, packed.num_cells))
                batch = collate_cells(tokenizer, packed, rows, identities=identities)
                labelled = replace(batch, batch_labels=torch.from_numpy(codes[rows])).to(model.device)
                parts.append(F.normalize(model.embed(labelled).float(), dim=-1).cpu().numpy())
        return np.concatenate(parts)

    def _known_batches(self) -> tuple[str, tuple[str, ...]]:
        """Return the column of the batches that the model was fine-tuned on, and their names (B,)."""
        conditions = self.bundle.conditions
        if conditions is None or conditions.task != "integration" or len(conditions.columns) != 1:
            needed = " and ".join(self.bundle.model.config.needed_conditions)
            raise ModelError(
                f"The model needs {needed} for each cell, which integration cannot give.",
                remedy="Use a model of genes and values, or one that was fine-tuned for integration.",
            )
        ((column, names),) = conditions.columns.items()
        return column, names
