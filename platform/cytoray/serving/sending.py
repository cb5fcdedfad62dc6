"""Cells that a client sends: checked before the request is made, and encoded as an Arrow stream or as JSON."""

# C cells, G genes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pydantic_core
import scipy.sparse as sp

from cytoray.errors import CorpusError, RequestError

if TYPE_CHECKING:
    import anndata

_MOST_SMALL = 65_535  # counts up to here fit uint16


@dataclass(frozen=True, eq=False)
class Cells:
    """C cells over the names, and if known the Ensembl ids and genomes, of G genes."""

    genes: list[str]  # (G,)
    ensembl_ids: list[str] | None  # (G,), empty text if a gene has none
    counts_CG: sp.csr_matrix
    ids: Sequence[str] | None = None  # (C,), sent
    genomes: list[str] | None = None  # (G,), empty text if it is unknown
    names: Sequence[str] | None = None  # (C,), for messages; ``ids`` if None

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


def cells_of_adata(adata: anndata.AnnData, *, matrix: str, gene_names: str) -> Cells:
    """Return the cells of an AnnData, with gene names, Ensembl ids and genomes found as in files.

    Columns with the same name, id and genome are summed, as they are everywhere else in cytoray.
    """
    # Only here: a client that sends arrays needs neither pandas nor the readers.
    from cytoray.corpus.config import SourceConfig
    from cytoray.corpus.readers import genes

    column = None if gene_names == "index" else gene_names
    source = SourceConfig(uri="memory://AnnData", gene_column=column)
    var = adata.raw.var if matrix == "raw.X" and adata.raw is not None else adata.var
    names = genes.gene_names(var, source)
    ensembl_ids = genes.ensembl_ids(var, names, source)
    cells = check_cells(names, _matrix(adata, matrix), ensembl_ids=ensembl_ids)
    genomes = genes.gene_genomes(var)
    return _summed(replace(cells, genomes=genomes, names=list(adata.obs_names)))


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
    """Return the matrix named X, raw.X or layers/NAME, in memory."""
    there = {"X": adata.X, **{f"layers/{name}": layer for name, layer in adata.layers.items()}}
    if adata.raw is not None:
        there["raw.X"] = adata.raw.X
    found = there.get(matrix)
    if found is None:
        names = ", ".join(name for name, held in there.items() if held is not None) or "none"
        raise CorpusError(f"The AnnData has no matrix {matrix!r}.", remedy=f"It has {names}.", key=matrix)
    return found[:] if adata.isbacked else found


def _summed(cells: Cells) -> Cells:
    """Return the same cells with one column for each combination of name, id and genome."""
    blank = [""] * len(cells.genes)
    genes = list(zip(cells.genes, cells.ensembl_ids or blank, cells.genomes or blank, strict=True))
    places = {gene: place for place, gene in enumerate(dict.fromkeys(genes))}
    if len(places) == len(genes):
        return cells
    columns = np.array([places[gene] for gene in genes])[cells.counts_CG.indices]
    shape = (cells.counts_CG.shape[0], len(places))
    counts_CG = sp.csr_matrix((cells.counts_CG.data, columns, cells.counts_CG.indptr), shape=shape)
    counts_CG.sum_duplicates()
    return replace(
        cells,
        genes=[name for name, _, _ in places],
        ensembl_ids=None if cells.ensembl_ids is None else [gene_id for _, gene_id, _ in places],
        genomes=None if cells.genomes is None else [genome for _, _, genome in places],
        counts_CG=counts_CG,
    )
