"""Read h5ad files by row range, from disk or object storage, never holding the whole matrix in memory."""

# C cells (rows read), G genes (columns of the file)

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Literal

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from cytoray import storage
from cytoray.corpus.config import SourceConfig
from cytoray.corpus.counts import RECOVERABLE_SAMPLE_SHARE, recover_counts
from cytoray.corpus.elements import (
    explained,
    find_matrices,
    is_by_column,
    matrix_shape,
    open_h5,
    read_frame,
    read_row_range,
    read_turned,
)
from cytoray.errors import CorpusError

ValueKind = Literal["counts", "recoverable", "expression", "negative"]
_PREFERENCE: dict[ValueKind, int] = {"counts": 0, "recoverable": 1, "expression": 2, "negative": 3}
SAMPLE_ROWS = 256
INTEGER_TOLERANCE = 1e-3  # counts that went through floats
# A column-compressed matrix has no rows to range over: below this size it is turned round in memory.
MAX_CSC_ENTRIES = 200_000_000


@dataclass(frozen=True)
class SourceDescription:
    """What a file holds, told before any cell is read."""

    uri: str
    num_bytes: int
    version: str
    matrix: str
    value_kind: ValueKind
    num_cells: int
    num_genes: int


class H5adReader:
    """One open h5ad file; use as a context manager."""

    def __init__(self, source: SourceConfig) -> None:
        self.source = source
        self.info = storage.info(source.uri)
        self._turned: dict[str, sparse.csr_matrix] = {}
        self._raw_file = storage.open_read(source.uri)
        try:
            self._file = open_h5(self._raw_file, source.uri, self.info.num_bytes)
        except CorpusError:
            self._raw_file.close()
            raise

    def __enter__(self) -> H5adReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        self._raw_file.close()

    @cached_property
    def obs(self) -> pd.DataFrame:
        """The table of cells, index = cell names."""
        return self._frame("obs")

    @cached_property
    def matrix(self) -> str:
        """The matrix that is read: the one asked for, or by preference counts before anything else."""
        if self.source.matrix != "auto":
            if self.source.matrix not in self._elements:
                raise CorpusError(
                    f"{self.source.uri}: there is no matrix {self.source.matrix!r}.",
                    remedy=f"This file holds: {', '.join(self._elements) or 'none at all'}.",
                    uri=self.source.uri,
                )
            return self.source.matrix
        if not self._elements:
            raise CorpusError(
                f"{self.source.uri}: the file has no expression matrix (no X, raw.X or layers).",
                remedy="Write the counts to X and save again.",
                uri=self.source.uri,
            )
        return min(self._elements, key=lambda name: _PREFERENCE[self._kind_of(name)])

    @cached_property
    def value_kind(self) -> ValueKind:
        """What the values of the chosen matrix are, judged from a spread sample of its rows."""
        return self._kind_of(self.matrix)

    @cached_property
    def gene_names(self) -> list[str]:
        """Names of the G genes, from the index of var or from ``gene_column``."""
        column = self.source.gene_column
        if column is None:
            return [str(name) for name in self._var.index]
        if column not in self._var:
            raise self._no_column("var", column, list(self._var.columns))
        return [str(name) for name in self._var[column]]

    @cached_property
    def ensembl_ids(self) -> list[str] | None:
        """Ensembl ids of the G genes, where ``ensembl_column`` names them."""
        column = self.source.ensembl_column
        if column is None:
            return None
        if column not in self._var:
            raise self._no_column("var", column, list(self._var.columns))
        return ["" if pd.isna(value) else str(value) for value in self._var[column]]

    def describe(self) -> SourceDescription:
        """Size, shape and kind of values."""
        num_cells, num_genes = self._shape(self.matrix)
        for what, expected, seen in (("obs", num_cells, len(self.obs)), ("var", num_genes, len(self.gene_names))):
            if expected != seen:
                raise CorpusError(
                    f"{self.source.uri}: {self.matrix} has {expected:,} entries along {what}, but {what} has {seen:,}.",
                    remedy="The file is inconsistent: write it again from its source.",
                    uri=self.source.uri,
                )
        return SourceDescription(
            self.source.uri, self.info.num_bytes, self.info.version, self.matrix, self.value_kind, num_cells, num_genes
        )

    def labels(self, key: str) -> list[str | None]:
        """One label a cell from a column of obs; None where it is missing."""
        if key not in self.obs:
            raise self._no_column("obs", key, list(self.obs.columns))
        column = self.obs[key]
        return [None if missing else str(value) for value, missing in zip(column, column.isna(), strict=True)]

    def read_rows(self, start: int, stop: int) -> sparse.csr_matrix:
        """Cells ``start`` to ``stop`` of the chosen matrix as float32 CSR, shape (C, G)."""
        return self._read(self.matrix, start, stop)

    @cached_property
    def _elements(self) -> dict[str, str]:
        """Matrices of the file by their name in AnnData, and their key."""
        with explained(self.source.uri, "the list of matrices"):
            return find_matrices(self._file)

    @cached_property
    def _var(self) -> pd.DataFrame:
        """The table of the chosen matrix's genes."""
        return self._frame(self._elements[self.matrix].replace("X", "var") if self.matrix == "raw.X" else "var")

    def _shape(self, matrix: str) -> tuple[int, int]:
        with explained(self.source.uri, matrix):
            return matrix_shape(self._file[self._elements[matrix]])

    def _read(self, matrix: str, start: int, stop: int) -> sparse.csr_matrix:
        with explained(self.source.uri, f"{matrix}, rows {start:,} to {stop:,}:"):
            element = self._file[self._elements[matrix]]
            if is_by_column(element):
                return self._turn(matrix, element)[start:stop]
            return read_row_range(element, start, stop)

    def _turn(self, matrix: str, element: h5py.Group) -> sparse.csr_matrix:
        """A column-compressed matrix turned into rows, once."""
        if matrix not in self._turned:
            if element["data"].shape[0] > MAX_CSC_ENTRIES:
                raise CorpusError(
                    f"{self.source.uri}: {matrix} is column-compressed (CSC) and too large to turn round in memory.",
                    remedy="Save it as CSR: adata.X = adata.X.tocsr(); adata.write_h5ad(...).",
                    uri=self.source.uri,
                )
            self._turned = {matrix: read_turned(element)}
        return self._turned[matrix]

    def _kind_of(self, matrix: str) -> ValueKind:
        num_cells, _ = self._shape(matrix)
        middle, last = max(0, num_cells // 2 - SAMPLE_ROWS // 2), max(0, num_cells - SAMPLE_ROWS)
        parts = [self._read(matrix, s, min(s + SAMPLE_ROWS, num_cells)) for s in sorted({0, middle, last})]
        return judge_values(sparse.vstack(parts, format="csr"))

    def _frame(self, key: str) -> pd.DataFrame:
        with explained(self.source.uri, key):
            if key in self._file:
                return read_frame(self._file, key)
        raise CorpusError(
            f"{self.source.uri}: the file has no {key!r}, so it is not an AnnData file.",
            remedy="Write it with adata.write_h5ad(...).",
            uri=self.source.uri,
        )

    def _no_column(self, table: str, column: str, there: Sequence[str]) -> CorpusError:
        return CorpusError(
            f"{self.source.uri}: {table} has no column {column!r}.",
            remedy=f"Columns there: {', '.join(there) or 'none'}.",
            uri=self.source.uri,
            columns=list(there),
        )


def judge_values(sample: sparse.csr_matrix) -> ValueKind:
    """What the values of a sample of cells are; NaN and Inf are judged by the rest and refused later, by cell."""
    values = sample.data[np.isfinite(sample.data)]
    if (values < 0).any():
        return "negative"
    if np.abs(values - np.rint(values)).max(initial=0) <= INTEGER_TOLERANCE:
        return "counts"
    if values.max() <= 30:
        _, recovered = recover_counts(sample)
        if recovered.mean() >= RECOVERABLE_SAMPLE_SHARE:
            return "recoverable"
    return "expression"


def expand_sources(sources: Sequence[SourceConfig]) -> list[SourceConfig]:
    """Replace each prefix by the h5ad files below it; CorpusError if two files would give the same cell ids."""
    expanded: list[SourceConfig] = []
    for source in sources:
        if not source.uri.endswith("/"):
            expanded.append(source)
            continue
        found = [uri for uri in storage.list_files(source.uri) if uri.endswith(".h5ad")]
        if not found:
            raise CorpusError(
                f"{source.uri}: no .h5ad file below this prefix.", remedy="Check the path.", uri=source.uri
            )
        for uri in found:
            name = (source.name or "") + uri.removeprefix(source.uri)
            expanded.append(source.model_copy(update={"uri": uri, "name": name}))
    for identity, count in Counter(source.identity for source in expanded).items():
        if count > 1:
            raise CorpusError(
                f"{count} sources are called {identity!r}, so their cells could not be told apart.",
                remedy="Give each a `name`, or list the file once.",
            )
    return expanded
