"""Cells that a client sends: checked before the request is made, and encoded as an Arrow stream or as JSON."""

# C cells, G genes

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import pydantic_core
import scipy.sparse as sp

from cytoray.errors import CorpusError, RequestError

if TYPE_CHECKING:
    import anndata

_MOST_SMALL = 65_535  # counts up to here fit uint16
_ROWS_OF_COLUMNS = 8_192  # cells that are read at a time from a file that is stored by gene
_COLUMN_ENTRIES = 2**22  # entries of it that are looked at at a time


class CellSource(Protocol):
    """Interface of cells that a client sends in parts: ``Cells`` in memory, ``FileCells`` in a file."""

    @property
    def num_cells(self) -> int:
        """Number of cells C."""

    @property
    def genes(self) -> list[str]:
        """Names of the G genes."""

    @property
    def ensembl_ids(self) -> list[str] | None:
        """Ensembl ids of the G genes; None if none are known."""

    def name(self, row: int) -> str:
        """Return the name of a cell in messages."""

    def block(self, rows: range) -> Cells:
        """Return some neighbouring cells, in memory."""


@dataclass(frozen=True, eq=False)
class Cells:
    """C cells over the names, and if known the Ensembl ids and genomes, of G genes."""

    genes: list[str]  # (G,)
    ensembl_ids: list[str] | None  # (G,), empty text if a gene has none
    counts_CG: sp.csr_matrix
    ids: Sequence[str] | None = None  # (C,), sent
    genomes: list[str] | None = None  # (G,), empty text if it is unknown
    names: Sequence[str] | None = None  # (C,), for messages; ``ids`` if None

    @property
    def num_cells(self) -> int:
        """Number of cells C."""
        return int(self.counts_CG.shape[0])

    def block(self, rows: range) -> Cells:
        """Return some neighbouring cells."""
        part = slice(rows.start, rows.stop)
        return replace(
            self,
            counts_CG=self.counts_CG[part],
            ids=None if self.ids is None else self.ids[part],
            names=None if self.names is None else self.names[part],
        )

    def name(self, row: int) -> str:
        """Return what a message calls a cell."""
        names = self.ids if self.names is None else self.names
        return f"row {row}" if names is None else str(names[row])


def check_cells(
    genes: Sequence[str],
    matrix: Any,
    *,
    ensembl_ids: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
) -> Cells:
    """Combine the rows of a dense or sparse ``matrix`` (C, G) with its genes; RequestError if their numbers differ."""
    counts_CG = sp.csr_matrix(matrix, copy=True)
    counts_CG.sum_duplicates()
    num_cells, num_genes = counts_CG.shape
    _check_length("genes", genes, num_genes, axis="column")
    if ensembl_ids is not None:
        _check_length("ensembl_ids", ensembl_ids, num_genes, axis="column")
    if ids is not None:
        _check_length("ids", ids, num_cells, axis="row")
    gene_ids = None if ensembl_ids is None else [str(gene_id) for gene_id in ensembl_ids]
    return Cells([str(gene) for gene in genes], gene_ids, counts_CG, ids)


@dataclass(frozen=True, eq=False)
class GeneNames:
    """Identities of the columns of a file or table; columns with the same name, id and genome become one."""

    genes: list[str]  # (G,)
    ensembl_ids: list[str] | None  # (G,)
    genomes: list[str] | None  # (G,)
    places: npt.NDArray[np.int64] | None = None  # of each column among the genes; None if they are the columns

    @staticmethod
    def of_columns(names: list[str], ensembl_ids: list[str] | None, genomes: list[str] | None) -> GeneNames:
        """Return the genes of columns (names, ids and genomes of each)."""
        blank = [""] * len(names)
        columns = list(zip(names, ensembl_ids or blank, genomes or blank, strict=True))
        first = {gene: place for place, gene in enumerate(dict.fromkeys(columns))}
        if len(first) == len(columns):
            return GeneNames(names, ensembl_ids, genomes)
        return GeneNames(
            [name for name, _, _ in first],
            None if ensembl_ids is None else [gene_id for _, gene_id, _ in first],
            None if genomes is None else [genome for _, _, genome in first],
            np.array([first[gene] for gene in columns]),
        )

    def cells(self, matrix: Any, names: Sequence[str]) -> Cells:
        """Return the rows of a matrix over the columns as cells."""
        counts_CG = sp.csr_matrix(matrix, copy=True)
        if self.places is not None:
            shape = (counts_CG.shape[0], len(self.genes))
            counts_CG = sp.csr_matrix((counts_CG.data, self.places[counts_CG.indices], counts_CG.indptr), shape=shape)
        counts_CG.sum_duplicates()
        return Cells(self.genes, self.ensembl_ids, counts_CG, genomes=self.genomes, names=names)


class FileCells:
    """Cells in a file, read in parts: ``rows(start, stop)`` returns their matrix over the columns of ``named``."""

    def __init__(
        self, named: GeneNames, names: Sequence[str], rows: Callable[[int, int], Any], *, read_at_once: int = 1
    ) -> None:
        self.names = names
        self._named, self._step = named, read_at_once
        self._lock = threading.Lock()  # readers of files are not for several threads
        self._read = lru_cache(maxsize=2)(rows)

    @property
    def num_cells(self) -> int:
        """Number of cells C."""
        return len(self.names)

    @property
    def genes(self) -> list[str]:
        """Names of the G genes."""
        return self._named.genes

    @property
    def ensembl_ids(self) -> list[str] | None:
        """Ensembl ids of the G genes; None if none are known."""
        return self._named.ensembl_ids

    def name(self, row: int) -> str:
        """Return the name of a cell in messages."""
        return str(self.names[row])

    def block(self, rows: range) -> Cells:
        """Read some neighbouring cells; a file that is stored by gene is read many cells at a time."""
        with self._lock:
            return self._block(rows)

    def _block(self, rows: range) -> Cells:
        if self._step == 1:
            return self._named.cells(self._read(rows.start, rows.stop), self.names[rows.start : rows.stop])
        first, last = rows.start // self._step, (max(rows.stop - 1, rows.start)) // self._step
        slabs = [self._slab(number) for number in range(first, last + 1)]
        offset = first * self._step
        matrix = sp.vstack(slabs, format="csr")[rows.start - offset : rows.stop - offset]
        return self._named.cells(matrix, self.names[rows.start : rows.stop])

    def _slab(self, number: int) -> Any:
        return self._read(number * self._step, min((number + 1) * self._step, self.num_cells))


def cells_of_adata(adata: anndata.AnnData, *, matrix: str, gene_names: str) -> CellSource:
    """Return the cells of an AnnData, with gene names, Ensembl ids and genomes found as in files.

    Columns with the same name, id and genome are summed, as they are everywhere else in cytoray. Of a backed AnnData X
    and raw.X are read in parts, when they are sent.
    """
    # Only here: a client that sends arrays needs neither pandas nor the readers.
    from cytoray.corpus.config import SourceConfig
    from cytoray.corpus.readers import genes

    column = None if gene_names == "index" else gene_names
    source = SourceConfig(uri="memory://AnnData", gene_column=column)
    var = adata.raw.var if matrix == "raw.X" and adata.raw is not None else adata.var
    names = genes.gene_names(var, source)
    named = GeneNames.of_columns(names, genes.ensembl_ids(var, names, source), genes.gene_genomes(var))
    cell_names = list(adata.obs_names)
    found = _matrix(adata, matrix)
    if not adata.isbacked or sp.issparse(found) or isinstance(found, np.ndarray):
        return named.cells(found, cell_names)
    if getattr(found, "format", "csr") == "csc":
        by_gene = found.group
        return FileCells(
            named, cell_names, lambda start, stop: _rows_by_gene(by_gene, start, stop), read_at_once=_ROWS_OF_COLUMNS
        )
    return FileCells(named, cell_names, lambda start, stop: found[start:stop])


def _rows_by_gene(group: Any, start: int, stop: int) -> sp.csr_matrix:
    """Read some rows of a matrix that is stored by column, looking at a part of its entries at a time."""
    indptr = group["indptr"][:].astype(np.int64)
    marks = [*range(0, int(indptr[-1]), _COLUMN_ENTRIES), int(indptr[-1])]
    rows, columns, values = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [group["data"][:0]]
    for first, last in pairwise(marks):
        indices = group["indices"][first:last]
        here = np.flatnonzero((indices >= start) & (indices < stop))
        rows.append(indices[here].astype(np.int64) - start)
        columns.append(np.searchsorted(indptr, first + here, side="right") - 1)
        values.append(group["data"][first:last][here])
    shape = (stop - start, len(indptr) - 1)
    entries = (np.concatenate(rows), np.concatenate(columns))
    return sp.coo_matrix((np.concatenate(values), entries), shape=shape).tocsr()


def cells_of_frame(frame: Any) -> Cells:
    """Return the rows of a pandas DataFrame whose columns are genes; its index names the cells."""
    names = [str(name) for name in frame.index]
    return replace(check_cells([str(gene) for gene in frame.columns], frame.to_numpy()), names=names)


def encode_cells(cells: Cells, rows: range, /, **members: Any) -> bytes:
    """Encode some of the rows as the JSON body of a request, which may have further members."""
    counts_CG, encoded = cells.counts_CG, []
    for row in rows:
        entries = slice(counts_CG.indptr[row], counts_CG.indptr[row + 1])
        cell: dict[str, Any] = {"i": counts_CG.indices[entries].tolist(), "v": counts_CG.data[entries].tolist()}
        encoded.append(cell if cells.ids is None else {"id": str(cells.ids[row]), **cell})
    body: dict[str, Any] = {**members, "genes": cells.genes, "cells": encoded}
    if cells.ensembl_ids is not None:
        body["ensembl_ids"] = cells.ensembl_ids
    if cells.genomes is not None:
        body["genomes"] = cells.genomes
    return pydantic_core.to_json(body)


def encode_stream(cells: Cells, rows: range, /, **members: Any) -> bytes:
    """Encode some of the rows as the Arrow stream of a request, which may have further members."""
    import pyarrow as pa

    part_CG = cells.counts_CG[rows.start : rows.stop]
    ids = None if cells.ids is None else [str(cells.ids[row]) for row in rows]
    texts = {"genes": cells.genes, "ensembl_ids": cells.ensembl_ids, "genomes": cells.genomes, "ids": ids}
    columns: dict[str, Any] = {name: pa.array([those], pa.list_(pa.string())) for name, those in texts.items() if those}
    columns |= {"indptr": [part_CG.indptr], "indices": [part_CG.indices], "data": [_compact(part_CG.data)]}
    batch = pa.record_batch(columns).replace_schema_metadata({"request": pydantic_core.to_json(members)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def _compact(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return values as the service reads them from JSON, float32; small counts take half of that."""
    with np.errstate(over="ignore"):  # the service refuses values that become infinite
        floats = values.astype(np.float64).astype(np.float32)
    if not len(floats) or not (floats.min() >= 0 and floats.max() <= _MOST_SMALL):  # not for NaN either
        return floats
    small = floats.astype(np.uint16)
    return small if np.array_equal(small, floats) else floats


def _check_length(name: str, entries: Sequence[str], expected: int, *, axis: str) -> None:
    if len(entries) != expected:
        raise RequestError(
            f"{name} has {len(entries):,} entries, but the matrix has {expected:,} {axis}s.",
            remedy=f"Give one entry of {name} for each {axis}; the matrix has cells as rows and genes as columns.",
            code="bad_matrix",
            argument=name,
            seen=len(entries),
            expected=expected,
        )


def _matrix(adata: anndata.AnnData, matrix: str) -> Any:
    """Return the matrix named X, raw.X or layers/NAME."""
    there = {"X": adata.X, **{f"layers/{name}": layer for name, layer in adata.layers.items()}}
    if adata.raw is not None:
        there["raw.X"] = adata.raw.X
    found = there.get(matrix)
    if found is None:
        names = ", ".join(name for name, held in there.items() if held is not None) or "none"
        raise CorpusError(f"The AnnData has no matrix {matrix!r}.", remedy=f"It has {names}.", key=matrix)
    return found
