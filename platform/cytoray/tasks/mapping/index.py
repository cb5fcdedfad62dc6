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
QUERIES_PER_BLOCK, POINTS_PER_BLOCK = 2_048, 16_384  # of an exact search: 128 MB of cosines


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
        points = np.ascontiguousarray(points_CS, np.float32)
        cosines, places = self._search_graph(points, num) if self.kind == "hnsw" else self._search_all(points, num)
        distances = np.sqrt(np.maximum(2 - 2 * cosines, 0)).astype(np.float32)
        return places.astype(np.int64), distances

    def _search_graph(self, points_CS: Float32, num: int) -> tuple[Float32, Int64]:
        """Cosines and places by the graph."""
        self.faiss.hnsw.efSearch = max(SEARCH_WIDTH, 2 * num)
        cosines, places = self.faiss.search(points_CS, num)
        # A graph may reach fewer points than asked for (-1): the farthest that it reached stands in for them.
        missing = places < 0
        if missing.any():
            last = np.maximum((~missing).sum(axis=1) - 1, 0)
            rows = np.arange(len(places))
            places = np.where(missing, places[rows, last][:, None], places)
            cosines = np.where(missing, cosines[rows, last][:, None], cosines)
        return cosines, places

    def _search_all(self, points_CS: Float32, num: int) -> tuple[Float32, Int64]:
        """Cosines and places among all points; of equally near ones the first.

        By matrix products and partial sorts, which take half the time of faiss's own exact search.
        """
        import faiss

        stored = faiss.rev_swig_ptr(self.faiss.get_xb(), self.num_points * self.faiss.d)
        points_RS = stored.reshape(self.num_points, self.faiss.d)
        parts = [
            _nearest_of_all(points_CS[start : start + QUERIES_PER_BLOCK], points_RS, num)
            for start in range(0, len(points_CS), QUERIES_PER_BLOCK)
        ]
        return np.concatenate([cosines for cosines, _ in parts]), np.concatenate([places for _, places in parts])


def _nearest_of_all(points_CS: Float32, points_RS: Float32, num: int) -> tuple[Float32, Int64]:
    """Return the largest cosines (C, N) of each point with the R points, the largest first, and their places.

    Of each further block only the few cosines count that are larger than the smallest kept one.
    """
    first = max(POINTS_PER_BLOCK, num)
    block = points_CS @ points_RS[:first].T
    places = np.argpartition(block, -num, axis=1)[:, -num:] if num < block.shape[1] else np.indices(block.shape)[1]
    cosines, places = _sorted(np.take_along_axis(block, places, axis=1), places)
    for start in range(first, len(points_RS), POINTS_PER_BLOCK):
        block = points_CS @ points_RS[start : start + POINTS_PER_BLOCK].T
        rows, columns = np.nonzero(block > cosines[:, -1:])
        width = np.bincount(rows, minlength=len(block)).max(initial=0)
        if width:
            fresh = np.full((len(block), width), -np.inf, np.float32)
            where = np.zeros((len(block), width), np.int64)
            begins = np.searchsorted(rows, np.arange(len(block)))
            slots = np.arange(len(rows)) - begins[rows]
            fresh[rows, slots], where[rows, slots] = block[rows, columns], columns + start
            both = _sorted(np.concatenate([cosines, fresh], axis=1), np.concatenate([places, where], axis=1))
            cosines, places = both[0][:, :num], both[1][:, :num]
    return cosines, places


def _sorted(cosines_CN: Float32, places_CN: Int64) -> tuple[Float32, Int64]:
    """Sort each row by cosine, the largest first; of equal ones the first place."""
    order = np.lexsort((places_CN, -cosines_CN), axis=1)
    return np.take_along_axis(cosines_CN, order, axis=1), np.take_along_axis(places_CN, order, axis=1)


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
