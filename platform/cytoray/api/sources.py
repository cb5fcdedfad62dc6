"""Open an AnnData, in memory or backed, or a file of cells with one kind of reader, by ranges of rows."""

# C cells, G genes

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from cytoray import storage
from cytoray.api.config import checked
from cytoray.corpus.config import ModalityConfig, SourceConfig
from cytoray.corpus.readers.base import CellReader, Format
from cytoray.corpus.readers.h5ad import open_rows
from cytoray.corpus.readers.opening import open_source
from cytoray.corpus.readers.rows import RawRows, RowSource, plain_numbers
from cytoray.corpus.readers.source import Modality, SourceReader
from cytoray.errors import CorpusError

logger = logging.getLogger(__name__)
IN_MEMORY = "memory://AnnData"
COUNTS = ("counts", "near_counts")


def open_cells(cells: Any, *, matrix: str, gene_names: str) -> CellReader:
    """A reader of ``cells``: an AnnData, or the path or URI of any file that cytoray reads.

    ``matrix`` is X, raw.X or layers/NAME; ``gene_names`` is ``index`` or a column of var. The AnnData is never
    changed. Raises CorpusError for what is neither, StorageError for what cannot be reached.
    """
    column = None if gene_names == "index" else gene_names
    if isinstance(cells, str | Path):
        return open_source(_source(str(cells), matrix, column))
    if not isinstance(cells, anndata.AnnData):
        raise CorpusError(
            f"These cells are a {type(cells).__name__}.", remedy="Give an AnnData, or the path or s3:// URI of a file."
        )
    uri = str(cells.filename) if cells.isbacked else IN_MEMORY
    return SourceReader(_source(uri, matrix, column), _HeldContents(cells), contextlib.ExitStack())


def matrix_with_counts(cells: Any) -> str | None:
    """Name of the matrix that holds raw counts, judged from a sample of each; None if none does."""
    with open_cells(cells, matrix="auto", gene_names="index") as reader:
        return reader.matrix if reader.value_kind in COUNTS else None


def _source(uri: str, matrix: str, column: str | None) -> SourceConfig:
    return checked(SourceConfig, {"uri": uri, "matrix": matrix, "gene_column": column})


class _HeldContents:
    """The contents of an AnnData object, with the interface of file formats."""

    format: Format = "h5ad"
    num_bytes, version = 0, ""

    def __init__(self, adata: anndata.AnnData) -> None:
        self.notes: list[str] = []
        self._adata = adata

    def matrices(self) -> dict[str, RowSource]:
        """X, raw.X and the layers, as far as they are there."""
        adata = self._adata
        found: dict[str, RowSource] = {}
        if adata.isbacked or adata.X is not None:
            found["X"] = self._rows("X", lambda part: part.X)
        if adata.raw is not None:
            found["raw.X"] = self._rows("raw/X", lambda part: part.raw.X)
        for name in adata.layers:
            found[f"layers/{name}"] = _HeldRows(adata, partial(_layer, name=name))
        return found

    def obs(self) -> pd.DataFrame:
        """The caller's own table of cells: only to be looked at."""
        obs: pd.DataFrame = self._adata.obs
        return obs

    def var(self, matrix: str) -> pd.DataFrame:
        """The table of genes; raw.X has one of its own."""
        var: pd.DataFrame = self._adata.raw.var if matrix == "raw.X" else self._adata.var
        return var

    def modality_names(self) -> tuple[str, ...]:
        """None: this API reads one matrix."""
        return ()

    def modality(self, config: ModalityConfig) -> Modality:
        """None: this API reads one matrix."""
        raise KeyError(config.name)

    def _rows(self, key: str, pick: Callable[[Any], Any]) -> RowSource:
        """A matrix that may be on disk: then read there, by the readers of files."""
        adata = self._adata
        if not adata.isbacked or adata.is_view:
            return _HeldRows(adata, pick)
        if not adata.file.is_open:
            adata.file.open()
        uri = str(adata.filename)
        return open_rows(adata.file[key], source=(uri, storage.info(uri).version, f"/{key}"))


class _HeldRows:
    """A matrix of an AnnData in memory; a CSC one is turned into CSR once, all else is copied range by range."""

    def __init__(self, adata: anndata.AnnData, pick: Callable[[Any], Any]) -> None:
        self._adata, self._pick = adata, pick
        self._matrix: Any = None
        # anndata cannot slice a view of a backed file again, so that one is read as a whole.
        in_pieces = adata.is_view and not adata.isbacked
        probe = pick(adata[:0]) if in_pieces else pick(adata)
        _check_kind(probe)
        if sparse.issparse(probe) and probe.format == "csc":
            logger.info("the matrix is stored by gene (CSC): turning it into rows (CSR) once, which takes a copy of it")
            self._matrix = pick(adata).tocsr()
        elif not in_pieces:
            self._matrix = probe
        self.shape = (int(adata.n_obs), int(probe.shape[1]))
        self.num_entries: int | None = None

    def read(self, start: int, stop: int) -> RawRows:
        """Rows ``start`` to ``stop``, in arrays of their own."""
        part = self._pick(self._adata[start:stop]) if self._matrix is None else self._matrix[start:stop]
        rows = sparse.csr_matrix(part if sparse.issparse(part) else plain_numbers(np.asarray(part)))
        # Readers tidy rows in place: whether or not scipy's slices share memory, these must not be the caller's.
        return RawRows(rows.data.copy(), rows.indices.copy(), rows.indptr.astype(np.int64))

    def sample_values(self) -> None:
        """Rows are cheap here."""
        return


def _layer(adata: anndata.AnnData, *, name: str) -> Any:
    return adata.layers[name]


def _check_kind(matrix: Any) -> None:
    if not (isinstance(matrix, np.ndarray) or (sparse.issparse(matrix) and matrix.format in ("csr", "csc"))):
        raise CorpusError(
            f"The matrix is a {type(matrix).__name__}, which cannot be read here.",
            remedy="Give a NumPy array or a CSR or CSC matrix of scipy (call .compute() or .get() first).",
        )
