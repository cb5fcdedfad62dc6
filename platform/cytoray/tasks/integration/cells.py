"""Cells of several batches, as integration sees them: counts over genes of their own, whatever these are."""

# C cells, G genes

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cytoray.errors import CorpusError

Int64 = npt.NDArray[np.int64]
COUNTS_PER_CELL = 10_000.0
LARGEST_LOG = 30.0  # expression above this is not logarithmic
FEWEST_CELLS, FEWEST_GENES = 20, 10
FEW_CELLS = 30  # of a batch


@dataclass(frozen=True, eq=False)
class BatchedCells:
    """C cells over G genes of distinct names, each of a batch."""

    values: sparse.csr_matrix  # (C, G), counts, or expression
    genes: tuple[str, ...]  # (G,)
    names: tuple[str, ...]  # (C,)
    batches: tuple[str, ...]  # (C,)
    labels: tuple[str | None, ...] | None = None  # (C,)
    are_counts: bool = True
    uri: str = ""
    rows: Int64 | None = None  # (C,) of the source; None: all of them
    num_left_out: int = 0  # cells of the source without a batch or without counts

    @cached_property
    def expression(self) -> sparse.csr_matrix:
        """log1p of counts per 10,000, (C, G); expression that is logarithmic already is returned as it is."""
        values = sparse.csr_matrix(self.values, dtype=np.float32)
        if not self.are_counts and (values.nnz == 0 or values.data.max() <= LARGEST_LOG):
            return values
        totals = np.asarray(values.sum(axis=1, dtype=np.float64)).ravel()
        factors = np.divide(COUNTS_PER_CELL, totals, out=np.zeros_like(totals), where=totals > 0)
        scaled = sparse.diags_array(factors.astype(np.float32)) @ values
        return sparse.csr_matrix(scaled, dtype=np.float32).log1p()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of values, genes, batches and labels."""
        found = hashlib.sha256()
        for array in (self.values.data.astype(np.float32), self.values.indices, self.values.indptr):
            found.update(np.ascontiguousarray(array).tobytes())
        found.update(repr((self.genes, self.batches, self.labels)).encode())
        return found.hexdigest()

    def take(self, rows: Int64) -> BatchedCells:
        """Return some of the cells."""
        labels = None if self.labels is None else tuple(self.labels[row] for row in rows)
        return replace(
            self,
            values=self.values[rows],
            names=tuple(self.names[row] for row in rows),
            batches=tuple(self.batches[row] for row in rows),
            labels=labels,
            rows=rows if self.rows is None else self.rows[rows],
        )

    def with_values(self, values: sparse.csr_matrix) -> BatchedCells:
        """Return the same cells with other values."""
        return replace(self, values=values)


def check_batches(cells: BatchedCells, batch_key: str = "batch") -> list[str]:
    """Refuse cells that cannot be integrated with a CorpusError; return warnings about small batches."""
    names, counts = np.unique(np.asarray(cells.batches, str), return_counts=True)
    if len(names) < 2:
        raise CorpusError(
            f"{cells.uri}: all {len(cells.batches):,} cells are of the batch {str(names[0])!r} ({batch_key}).",
            remedy="Name a column with at least two batches: with one there is nothing to integrate.",
        )
    if len(cells.batches) < FEWEST_CELLS:
        raise CorpusError(
            f"{cells.uri}: {len(cells.batches)} cells are too few to integrate (at least {FEWEST_CELLS}).",
            remedy="Give more cells.",
        )
    num_genes = len(np.unique(cells.values.indices))
    if num_genes < FEWEST_GENES:
        raise CorpusError(
            f"{cells.uri}: {num_genes} expressed genes are too few to integrate (at least {FEWEST_GENES}).",
            remedy="Give the whole expression of the cells.",
        )
    if len(names) > len(cells.batches) / 2:
        raise CorpusError(
            f"{cells.uri}: {len(cells.batches):,} cells have {len(names):,} batches in {batch_key!r}.",
            remedy="Name a column with several cells per batch.",
        )
    small = [f"{name} ({count})" for name, count in zip(names.tolist(), counts, strict=True) if count < FEW_CELLS]
    return [f"{len(small)} of {len(names)} batches have fewer than {FEW_CELLS} cells: {_few(small)}"] if small else []


def sample_batches(batches: Sequence[str], num_cells: int, *, seed: int) -> Int64:
    """Return rows (ascending) of about ``num_cells`` cells, each batch's share of them but one cell at least."""
    _, codes = np.unique(np.asarray(batches, str), return_inverse=True)
    if len(codes) <= num_cells:
        return np.arange(len(codes), dtype=np.int64)
    rng = np.random.default_rng(seed)
    chosen = []
    for batch in range(int(codes.max()) + 1):
        rows = np.flatnonzero(codes == batch)
        count = max(1, round(len(rows) * num_cells / len(codes)))
        chosen.append(rng.choice(rows, min(count, len(rows)), replace=False))
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
