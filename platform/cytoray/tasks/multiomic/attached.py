"""The protein model that a bundle carries, used on cells over the bundle's vocabulary."""

# C cells, V genes of the vocabulary

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cytoray.model.bundle import Attachment, ModelBundle
from cytoray.tasks.attaching import attached_files, local_folder
from cytoray.tasks.carried import names_in
from cytoray.tasks.multiomic.model_files import ARRAYS, MANIFEST, load_model, read_model
from cytoray.tasks.multiomic.paired import RnaCells, build_rna
from cytoray.tasks.multiomic.protein_predictor import FEWEST_KNOWN, ProteinPrediction, ProteinPredictor
from cytoray.tokens.cells import SparseCells

NAME = "proteins"


@dataclass(frozen=True, eq=False)
class BundleProteins:
    """A protein model whose genes were found in a vocabulary."""

    predictor: ProteinPredictor
    names: tuple[str, ...]  # (V,) of the vocabulary's genes, as the predictor calls those that it uses

    def predict(self, cells: SparseCells, genes: npt.NDArray[np.int32]) -> ProteinPrediction:
        """Predict the proteins of C cells over the vocabulary; ``genes`` are the ids of the genes that were measured.

        Raises CorpusError if more than half of the predictor's genes were not.
        """
        shape = (cells.num_cells, len(self.names))
        values = sparse.csr_matrix((cells.values, cells.gene_ids, cells.indptr), shape)[:, genes]
        names = tuple(self.names[gene] for gene in genes)
        called = tuple(map(str, range(cells.num_cells)))
        rna = build_rna(values, uri="the request", genes=names, cells=called)
        return self.predictor.predict_rna(RnaCells(rna, names, called))


@contextmanager
def collect_proteins(uri: str, bundle: ModelBundle) -> Iterator[Mapping[str, Attachment]]:
    """Give the files of a protein model to be attached; ModelError if the vocabulary lacks most of its genes."""
    with local_folder(uri) as folder:
        _names(load_model(folder, ProteinPredictor), bundle)
        yield {name: Attachment(folder / name) for name in (ARRAYS, MANIFEST)}


def attached_proteins(bundle: ModelBundle) -> BundleProteins | None:
    """Load the protein model of a bundle; None if it has none. Raises ModelError if it does not fit the vocabulary."""
    files = attached_files(bundle, NAME)
    if MANIFEST not in files or ARRAYS not in files:
        return None
    predictor = read_model(files[MANIFEST].read(), files[ARRAYS].read(), ProteinPredictor, name="the protein model")
    return BundleProteins(predictor, _names(predictor, bundle))


def _names(predictor: ProteinPredictor, bundle: ModelBundle) -> tuple[str, ...]:
    return names_in(bundle.vocabulary, predictor.genes, least=FEWEST_KNOWN, what="the protein model")
