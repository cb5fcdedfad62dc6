"""The integration that a bundle carries, used on cells over the bundle's vocabulary."""

# C cells, V genes of the vocabulary, E dimensions of the embedding

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
from cytoray.tasks.integration.cells import BatchedCells
from cytoray.tasks.integration.model import ARRAYS, LEAST_GENES, MANIFEST, IntegrationModel
from cytoray.tokens.cells import SparseCells

NAME = "integration"
FEW_CELLS = 30  # of a new batch, which is mapped as a whole
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class BundleIntegration:
    """An integration whose genes were found in a vocabulary."""

    model: IntegrationModel
    names: tuple[str, ...]  # (V,) of the vocabulary's genes, as the integration calls those that it uses

    def embed(self, cells: SparseCells, genes: npt.NDArray[np.int32], batch: str) -> Float32:
        """Return the embedding (C, E) of cells of one batch over the vocabulary; NaN for a cell without a gene of it.

        ``genes`` are the ids of the genes that were measured. Raises CorpusError if the cells lack most genes.
        """
        shape = (cells.num_cells, len(self.names))
        values = sparse.csr_matrix((cells.values, cells.gene_ids, cells.indptr), shape)[:, genes]
        rows = np.flatnonzero(np.diff(values.indptr) > 0).astype(np.int64)
        found = np.full((cells.num_cells, self.model.embedding.shape[1]), np.nan, np.float32)
        if not len(rows):
            return found
        every = BatchedCells(
            values=values,
            genes=tuple(self.names[gene] for gene in genes),
            names=tuple(map(str, range(cells.num_cells))),
            batches=(batch,) * cells.num_cells,
            are_counts=bool((values.data == np.round(values.data)).all()),
            uri="the request",
        )
        found[rows] = self.model.transform(every.take(rows))
        return found

    def warnings(self, num_cells: int, batch: str) -> list[str]:
        """Return what a user should know about an answer to so many cells of a batch."""
        if batch in self.model.batch_names or num_cells >= FEW_CELLS:
            return []
        return [
            f"{batch!r} is not a batch of the integration, and its {num_cells} cells are few to be mapped as a whole: "
            f"send {FEW_CELLS} or more together"
        ]


@contextmanager
def collect_integration(uri: str, bundle: ModelBundle) -> Iterator[Mapping[str, Attachment]]:
    """Give the files of an integration to be attached; ModelError if it does not fit the model."""
    with local_folder(uri) as folder:
        _fit(IntegrationModel.load(folder), bundle)
        yield {name: Attachment(folder / name) for name in (ARRAYS, MANIFEST)}


def attached_integration(bundle: ModelBundle) -> BundleIntegration | None:
    """Load the integration of a bundle; None if it has none. Raises ModelError if it does not fit the model."""
    files = attached_files(bundle, NAME)
    if MANIFEST not in files or ARRAYS not in files:
        return None
    return _fit(IntegrationModel.read(files[MANIFEST].read(), files[ARRAYS].read(), name="the integration"), bundle)


def _fit(model: IntegrationModel, bundle: ModelBundle) -> BundleIntegration:
    """Give the integration the genes and, if it uses a transformer, the weights of the bundle."""
    names = names_in(bundle.vocabulary, model.genes, least=LEAST_GENES, what="the integration")
    return BundleIntegration(model.using(bundle, "this model"), names)
