"""Cells of a request as sparse rows over its genes, whatever the format of the body, and the checks of all formats."""

# C cells, G genes of the request, N non-zero entries over all cells

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cytoray.errors import RequestError
from cytoray.serving.config import Limits
from cytoray.tasks.messages import CellsRequest

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Integers = npt.NDArray[np.integer[Any]]

SAMPLE = 20  # entries listed in a problem
_NOUNS = {"ensembl_ids": "Ensembl ids", "genomes": "genomes"}
_MOST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Places:
    """Pointers to the parts of a body in one format."""

    cell: Callable[[int], str]
    cell_id: Callable[[int], str]
    index: Callable[[int, int, int], str]  # cell, place in the cell, entry
    value: Callable[[int, int, int], str]


JSON_PLACES = Places(
    cell=lambda cell: f"/cells/{cell}",
    cell_id=lambda cell: f"/cells/{cell}/id",
    index=lambda cell, place, _: f"/cells/{cell}/i/{place}",
    value=lambda cell, place, _: f"/cells/{cell}/v/{place}",
)
MATRIX_PLACES = Places(
    cell=lambda cell: f"/indptr/{cell}",
    cell_id=lambda cell: f"/ids/{cell}",
    index=lambda cell, place, entry: f"/indices/{entry}",
    value=lambda cell, place, entry: f"/data/{entry}",
)


@dataclass(frozen=True)
class ParsedRequest:
    """C cells over the G genes of a request, in compressed sparse rows, checked but not yet mapped to a vocabulary."""

    genes: tuple[str, ...]  # (G,)
    ensembl_ids: tuple[str, ...] | None  # (G,), empty text if a gene has none
    genomes: tuple[str, ...] | None  # (G,), empty text if it is unknown
    indptr: Int64  # (C + 1,)
    columns: Integers  # (N,) into genes
    values: Float32  # (N,)
    cell_ids: tuple[str | None, ...]  # (C,)
    asked: CellsRequest  # the request, without its cells
    places: Places = JSON_PLACES


def check_request(request: ParsedRequest, *, limits: Limits) -> ParsedRequest:
    """Return the request; raises RequestError for the first thing in it that is beyond the limits or inconsistent."""
    check_num_cells(len(request.cell_ids), limit=limits.max_cells, places=request.places)
    check_amount("genes", seen=len(request.genes), limit=limits.max_genes, pointer="/genes")
    check_amount("non-zero values", seen=len(request.values), limit=limits.max_nonzeros)
    _check_genes(request)
    _check_distinct_ids(request)
    _check_columns(request)
    _check_values(request)
    return request


def check_amount(what: str, *, seen: int, limit: int, pointer: str = "") -> None:
    """Raise RequestError ``too_large`` if there is more of something than its limit."""
    if seen > limit:
        raise RequestError(
            f"The request has {seen} {what}; the limit is {limit}.",
            remedy="Send fewer genes in one request: those that no cell has can be left out."
            if what == "genes"
            else "Send fewer cells in one request.",
            code="too_large",
            pointer=pointer,
            what=what,
            seen=seen,
            limit=limit,
        )


def check_num_cells(seen: int, *, limit: int, places: Places = JSON_PLACES) -> None:
    """Raise RequestError ``use_jobs`` if there are too many cells."""
    if seen > limit:
        raise RequestError(
            f"The request has {seen} cells; the limit is {limit}.",
            remedy="Split it into several requests, or send a job (POST /v1/jobs); offline: `python -m jobs.answer`.",
            code="use_jobs",
            pointer="/cells" if places is JSON_PLACES else "/indptr",
            what="cells",
            seen=seen,
            limit=limit,
        )


def bad_matrix(problem: str, **details: Any) -> RequestError:
    """Build the error for parts of a request that do not fit together."""
    return RequestError(
        problem, remedy="Send one value for each index, and each gene once per cell.", code="bad_matrix", **details
    )


def _check_genes(request: ParsedRequest) -> None:
    """Reject Ensembl ids and genomes whose number differs from that of the genes."""
    for member in ("ensembl_ids", "genomes"):
        texts: Sequence[str] | None = getattr(request, member)
        if texts is not None and len(texts) != len(request.genes):
            problem = f"There are {len(request.genes)} genes, but {len(texts)} {_NOUNS[member]}."
            raise bad_matrix(problem, pointer=f"/{member}", genes=len(request.genes), **{member: len(texts)})


def _check_distinct_ids(request: ParsedRequest) -> None:
    given = [name for name in request.cell_ids if name is not None]
    if len(set(given)) == len(given):
        return
    seen: set[str] = set()
    for cell, name in enumerate(request.cell_ids):
        if name is not None and name in seen:
            pointer = request.places.cell_id(cell)
            raise bad_matrix(f"Cell id {name!r} is given more than once.", pointer=pointer, name=name)
        if name is not None:
            seen.add(name)


def _check_columns(request: ParsedRequest) -> None:
    """Reject indices outside the genes, and duplicate genes in one cell."""
    num_genes = len(request.genes)
    outside = (request.columns < 0) | (request.columns >= num_genes)
    if outside.any():
        entry = int(outside.argmax())
        cell, place = _locate(request, entry)
        index, pointer = int(request.columns[entry]), request.places.index(cell, place, entry)
        problem = f"{pointer} is {index}, but `genes` has {num_genes} entries (0 to {num_genes - 1})."
        raise bad_matrix(problem, pointer=pointer, cell=cell, index=index)
    row_of_entry = np.repeat(np.arange(len(request.cell_ids)), np.diff(request.indptr))
    keys = row_of_entry * num_genes + request.columns
    if (np.diff(keys) > 0).all():  # ascending within each cell, as most clients send them
        return
    order = np.argsort(keys, kind="stable")
    twice = np.flatnonzero(np.diff(keys[order]) == 0)
    if len(twice):
        entry = int(order[twice + 1].min())
        cell, place = _locate(request, entry)
        gene = request.genes[request.columns[entry]]
        problem = f"Gene {gene} is given more than once in {request.places.cell(cell)}."
        raise bad_matrix(problem, pointer=request.places.index(cell, place, entry), cell=cell, gene=gene)


def _check_values(request: ParsedRequest) -> None:
    """Reject values that are negative or not finite, and cells whose sum is beyond float32."""
    bad = ~np.isfinite(request.values) | (request.values < 0)
    if bad.any():
        entry, count = int(bad.argmax()), int(bad.sum())
        value = request.values[entry]
        kind = "not a number" if np.isnan(value) else "infinite" if np.isinf(value) else "negative"
        raise _bad_values(request, entry, kind, count, f"{count} values are negative or not finite")
    if float(request.values.max(initial=0)) * max(len(request.genes), 1) <= _MOST:
        return
    starts = np.concatenate([[0.0], np.cumsum(request.values, dtype=np.float64)])[request.indptr]
    if (np.diff(starts) > _MOST).any():
        cell = int((np.diff(starts) > _MOST).argmax())
        start, stop = request.indptr[cell : cell + 2].tolist()
        entry = start + int(request.values[start:stop].argmax())
        raise _bad_values(request, entry, "too large", 1, "those of this cell add up to more than a float32 holds")


def _bad_values(request: ParsedRequest, entry: int, kind: str, count: int, more: str) -> RequestError:
    cell, place = _locate(request, entry)
    gene = request.genes[request.columns[entry]]
    return RequestError(
        f"The value of gene {gene} in {request.places.cell(cell)} is {kind}; {more}.",
        remedy="Send raw counts, or expression that is finite and not negative.",
        code="bad_values",
        pointer=request.places.value(cell, place, entry),
        cell=cell,
        gene=gene,
        kind=kind,
        count=count,
    )


def _locate(request: ParsedRequest, entry: int) -> tuple[int, int]:
    """Return the cell of an entry, and its position within that cell."""
    cell = int(np.searchsorted(request.indptr, entry, side="right")) - 1
    return cell, entry - int(request.indptr[cell])
