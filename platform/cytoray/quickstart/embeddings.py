"""Measure how well embeddings separate cell types compared with PCA; after a minute of pretraining they hardly do."""

# C cells, D dimensions, G genes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.decomposition import TruncatedSVD
from sklearn.neighbors import NearestNeighbors

from cytoray.tokens.cells import SparseCells

NUM_NEIGHBOURS = 5
NUM_COMPONENTS = 50
COUNTS_PER_CELL = 10_000.0
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Separation:
    """Shares of cells whose type is that of most of their nearest neighbours, by the model's embeddings and by PCA."""

    model: float
    pca: float

    def text(self) -> str:
        """Describe the result in one sentence."""
        hint = " Pretrain longer, or use a published checkpoint." if self.model < self.pca else ""
        return (
            f"Before fine-tuning, the {NUM_NEIGHBOURS} nearest neighbours of a held-out cell give its type for "
            f"{self.model:.0%} of the cells by embeddings, and for {self.pca:.0%} by PCA.{hint}"
        )


def measure_separation(cells: SparseCells, labels: Sequence[str], *, embeddings: Float32) -> Separation:
    """Compare embeddings with the principal components of log-normalised expression of the same cells."""
    return Separation(neighbour_accuracy(embeddings, labels), neighbour_accuracy(_principal_components(cells), labels))


def neighbour_accuracy(points_CD: Float32, labels: Sequence[str]) -> float:
    """Return the share of cells whose label is the most frequent one among their nearest neighbours."""
    names, codes = np.unique(np.asarray(labels, str), return_inverse=True)
    count = min(NUM_NEIGHBOURS, len(codes) - 1)
    if count < 1:
        return 0.0
    near = NearestNeighbors(n_neighbors=count).fit(points_CD).kneighbors(return_distance=False)
    votes = (codes[near][:, :, None] == np.arange(len(names))).sum(axis=1)
    return float((votes.argmax(axis=1) == codes).mean())


def _principal_components(cells: SparseCells) -> Float32:
    used, columns = np.unique(cells.gene_ids, return_inverse=True)
    shape = (cells.num_cells, len(used))
    counts = sparse.csr_matrix((cells.values.astype(np.float64), columns.ravel(), cells.indptr), shape=shape)
    totals = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1.0)
    logged = (sparse.diags(COUNTS_PER_CELL / totals) @ counts).log1p()
    number = max(1, min(NUM_COMPONENTS, *(size - 1 for size in shape)))
    found: Float32 = TruncatedSVD(number, random_state=0).fit_transform(logged).astype(np.float32)
    return found
