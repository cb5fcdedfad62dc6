"""Cells of several batches, as integration reads them: counts over the genes of their own file, whatever these are."""

# C cells, G genes

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cytoray.corpus.checking.scan import NEGATIVE, NOT_FINITE, first_fault, scan_rows
from cytoray.corpus.config import SourceConfig
from cytoray.corpus.readers.base import CellReader
from cytoray.corpus.readers.opening import open_source
from cytoray.errors import CorpusError
from cytoray.tokens.labels import is_placeholder

Int64 = npt.NDArray[np.int64]
ROWS_AT_A_TIME = 4_096
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


def read_batched(uri: str, batch_key: str, *, label_key: str | None = None) -> BatchedCells:
    """Read the cells of a file that have a batch and a count; see ``read_from``."""
    with open_source(SourceConfig(uri=uri)) as reader:
        return read_from(reader, batch_key, label_key=label_key)


def read_from(reader: CellReader, batch_key: str, *, label_key: str | None = None) -> BatchedCells:
    """Read the cells that have a batch and at least one count; ``rows`` of the result are theirs.

    Genes that occur twice are added up. Raises CorpusError for a missing column, a negative value, one that is not
    finite, and if no cell is left.
    """
    uri, num_cells = reader.source.uri, reader.describe().num_cells
    found = reader.labels(batch_key)
    batches = [None if batch is None or is_placeholder(batch) else batch for batch in found]
    labels = None if label_key is None else tuple(reader.labels(label_key))
    parts = [_checked_rows(reader, start, min(start + ROWS_AT_A_TIME, num_cells), uri)
             for start in range(0, num_cells, ROWS_AT_A_TIME)]  # fmt: skip
    values = sparse.csr_matrix(sparse.vstack(parts, format="csr"))
    counted = np.diff(values.indptr) > 0
    rows = np.flatnonzero([batch is not None for batch in batches] & counted).astype(np.int64)
    if not len(rows):
        raise CorpusError(
            f"{uri}: no cell has a batch in {batch_key!r} and a count.", remedy="Name another column with --batch-key."
        )
    genes, values = _distinct_genes(reader.gene_names, values)
    every = BatchedCells(
        values=values,
        genes=genes,
        names=tuple(map(str, reader.obs.index)),
        batches=tuple("" if batch is None else batch for batch in batches),
        labels=labels,
        are_counts=reader.value_kind in ("counts", "near_counts"),
        uri=uri,
        num_left_out=num_cells - len(rows),
    )
    return every.take(rows)


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


def _checked_rows(reader: CellReader, start: int, stop: int, uri: str) -> sparse.csr_matrix:
    matrix = reader.read_rows(start, stop)
    scan = scan_rows(matrix, counts=False)
    if scan.faults.any():
        row = int(np.flatnonzero(scan.faults)[0])
        fault = NOT_FINITE if scan.faults[row] & NOT_FINITE else NEGATIVE
        first = int(matrix.indptr[row])
        entry = first + first_fault(matrix.data[first : matrix.indptr[row + 1]], fault)
        raise CorpusError(
            f"{uri}: the value of cell {str(reader.obs.index[start + row])!r}, gene "
            f"{reader.gene_names[matrix.indices[entry]]!r} is {matrix.data[entry]:g}.",
            remedy="Give raw counts, or expression that is not scaled.",
        )
    return sparse.csr_matrix(matrix, dtype=np.float32)


def _distinct_genes(names: Sequence[str], values: sparse.csr_matrix) -> tuple[tuple[str, ...], sparse.csr_matrix]:
    """Return distinct names in the order of the file, and the values of equal names added up."""
    positions: dict[str, int] = {}
    columns = np.array([positions.setdefault(name, len(positions)) for name in names], np.int64)
    if len(positions) == len(names):
        return tuple(names), values
    joined = sparse.csr_matrix(
        (np.ones(len(names), np.float32), (np.arange(len(names)), columns)), shape=(len(names), len(positions))
    )
    return tuple(positions), sparse.csr_matrix(values @ joined)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
