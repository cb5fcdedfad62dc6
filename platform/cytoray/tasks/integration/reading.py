"""Read cells of several batches from a file: counts over the genes of the file."""

# C cells, G genes

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from cytoray.corpus.checking.scan import NEGATIVE, NOT_FINITE, first_fault, scan_rows
from cytoray.corpus.config import SourceConfig
from cytoray.corpus.readers.base import CellReader
from cytoray.corpus.readers.opening import open_source
from cytoray.errors import CorpusError
from cytoray.tasks.integration.cells import BatchedCells
from cytoray.tokens.labels import is_placeholder

ROWS_AT_A_TIME = 4_096


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
