"""The index of a reference (faiss): exact for up to 500,000 cells, a graph of neighbours (HNSW) above."""

# C cells of the query, R of the reference, S dimensions, N neighbours

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cytoray.errors import DigestError

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
IndexKind = Literal["exact", "hnsw"]
MOST_EXACT = 500_000
NUM_LINKS, BUILD_WIDTH, SEARCH_WIDTH = 32, 200, 128  # of HNSW
RECALL_CELLS, RECALL_AT = 1_000, 30


@dataclass(frozen=True, eq=False)
class NeighbourIndex:
    """A searchable set of R unit vectors; ``recall`` is measured when it is built, 1 if it is exact."""

    kind: IndexKind
    recall: float
    faiss: Any  # faiss.Index

    @property
    def num_points(self) -> int:
        """Number of points R."""
        return int(self.faiss.ntotal)

    def search(self, points_CS: Float32, num: int) -> tuple[Int64, Float32]:
        """Return the ``num`` nearest points of the index and their Euclidean distances, nearest first; (C, N).

        There are fewer if the index has fewer.
        """
        num = min(num, self.num_points)
        if not len(points_CS):
            return np.empty((0, num), np.int64), np.empty((0, num), np.float32)
        if self.kind == "hnsw":
            self.faiss.hnsw.efSearch = max(SEARCH_WIDTH, 2 * num)
        cosines, places = self.faiss.search(np.ascontiguousarray(points_CS, np.float32), num)
        # A graph may reach fewer points than asked for (-1): the farthest that it reached stands in for them.
        missing = places < 0
        if missing.any():
            last = np.maximum((~missing).sum(axis=1) - 1, 0)
            rows = np.arange(len(places))
            places = np.where(missing, places[rows, last][:, None], places)
            cosines = np.where(missing, cosines[rows, last][:, None], cosines)
        distances = np.sqrt(np.maximum(2 - 2 * cosines, 0)).astype(np.float32)
        return places.astype(np.int64), distances


def build_index(points_RS: Float32, *, kind: IndexKind | None = None) -> NeighbourIndex:
    """Build the index of R unit vectors; its kind follows from R unless it is given."""
    import faiss

    kind = kind or ("exact" if len(points_RS) <= MOST_EXACT else "hnsw")
    points = np.ascontiguousarray(points_RS, np.float32)
    index: Any
    if kind == "exact":
        index = faiss.IndexFlatIP(points.shape[1])
        index.add(points)
        return NeighbourIndex(kind, 1.0, index)
    index = faiss.IndexHNSWFlat(points.shape[1], NUM_LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = BUILD_WIDTH
    index.add(points)
    built = NeighbourIndex(kind, 1.0, index)
    return NeighbourIndex(kind, measure_recall(built, points), index)


def measure_recall(index: NeighbourIndex, points_RS: Float32, *, seed: int = 0) -> float:
    """Return the share of the 30 nearest points of a sample of the index's own that a search finds."""
    import faiss

    rows = np.sort(np.random.default_rng(seed).permutation(len(points_RS))[:RECALL_CELLS])
    num = min(RECALL_AT, len(points_RS))
    _, exact = faiss.knn(points_RS[rows], points_RS, num, metric=faiss.METRIC_INNER_PRODUCT)
    found, _ = index.search(points_RS[rows], num)
    shared = [len(np.intersect1d(mine, best)) for mine, best in zip(found, exact, strict=True)]
    return float(np.mean(shared) / num)


def write_index(index: NeighbourIndex, path: Path) -> None:
    """Write the index as a file of faiss."""
    import faiss

    faiss.write_index(index.faiss, str(path))


def read_index(path: Path, *, kind: IndexKind, recall: float) -> NeighbourIndex:
    """Map the index into memory, which processes on one machine share; raises DigestError if faiss cannot read it."""
    import faiss

    try:
        return NeighbourIndex(kind, recall, faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC))
    except RuntimeError as error:
        raise DigestError(f"{path} is not an index of faiss.", remedy="Build the reference again.") from error
