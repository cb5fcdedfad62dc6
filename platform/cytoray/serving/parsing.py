"""Parse the bytes of a request into checked sparse cells over the model's vocabulary; errors name the bad entry."""

# C cells, G genes of the request, N non-zero entries over all cells

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from cytoray.errors import RequestError
from cytoray.serving.config import Limits
from cytoray.tasks.messages import CellPayload, CellsRequest, Message
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.vocabulary import GeneMapping

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

SAMPLE = 20  # entries listed in a problem
_NOUNS = {"ensembl_ids": "Ensembl ids", "genomes": "genomes"}
Asked = TypeVar("Asked", bound=Message)


@dataclass(frozen=True)
class ParsedRequest:
    """C cells over the G genes of a request, in compressed sparse rows, checked but not yet mapped to a vocabulary."""

    genes: tuple[str, ...]  # (G,)
    ensembl_ids: tuple[str, ...] | None  # (G,), empty text if a gene has none
    genomes: tuple[str, ...] | None  # (G,), empty text if it is unknown
    indptr: Int64  # (C + 1,)
    columns: Int64  # (N,) into genes
    values: Float32  # (N,)
    cell_ids: tuple[str | None, ...]  # (C,)
    asked: CellsRequest  # the request, without its cells


def parse_request(body: bytes, *, kind: type[CellsRequest], limits: Limits) -> ParsedRequest:
    """Read and check a JSON body of ``kind``; RequestError has the code, pointer and sample of the first mistake."""
    _check_amount("numbers", seen=body.count(b","), limit=2 * limits.max_nonzeros + 2**20)
    payload = validate_body(body, kind=kind)
    _check_num_cells(len(payload.cells), limit=limits.max_cells)
    _check_amount("non-zero values", seen=sum(len(cell.v) for cell in payload.cells), limit=limits.max_nonzeros)
    _check_genes(payload)
    _check_distinct([cell.id for cell in payload.cells], pointer="/cells/{}/id", noun="Cell id")
    _check_lengths(payload.cells)
    with np.errstate(over="ignore"):  # 1e39 becomes infinite, which _check_values rejects
        values = _flatten((cell.v for cell in payload.cells), dtype=np.float64).astype(np.float32)
    request = ParsedRequest(
        genes=tuple(payload.genes),
        ensembl_ids=tuple(payload.ensembl_ids) or None,
        genomes=tuple(payload.genomes) or None,
        indptr=np.concatenate([[0], np.cumsum([len(cell.i) for cell in payload.cells])]).astype(np.int64),
        columns=_flatten((cell.i for cell in payload.cells), dtype=np.int64),
        values=values,
        cell_ids=tuple(cell.id for cell in payload.cells),
        asked=payload.model_copy(update={"cells": []}),
    )
    _check_columns(request)
    _check_values(request)
    return request


def select_cells(request: ParsedRequest, mapping: GeneMapping, *, min_gene_overlap: float) -> SparseCells:
    """Map the cells to the vocabulary; raises RequestError ``unknown_genes``.

    In a mixture of species, genes of the other species do not count as unknown, and its cells are left without genes.
    """
    matched = int((mapping.ids >= 0).sum())
    total = len(request.genes)
    if matched == 0 or matched < min_gene_overlap * (mapping.origin >= 0).sum():
        raise RequestError(
            f"The model knows {matched} of the {total} genes of this request; it does not know, for example,"
            f" {', '.join(mapping.unknown[:5])}. The genes look like {mapping.id_type} ids, species {mapping.species}.",
            remedy="Send human HGNC symbols or Ensembl gene ids (ENSG…) in `genes`.",
            code="unknown_genes",
            pointer="/genes",
            matched=matched,
            total=total,
            unknown=list(mapping.unknown[:SAMPLE]),
            id_type=mapping.id_type,
            species=mapping.species,
        )
    rows = np.arange(len(request.cell_ids), dtype=np.uint64)  # ids are not needed: results depend on content only
    foreign = mapping.of_other_species(request.values, request.columns, request.indptr)
    values = np.where(np.repeat(foreign, np.diff(request.indptr)), np.float32(0), request.values)
    return mapping.apply(values, request.columns, request.indptr, rows)


def validate_body(body: bytes, *, kind: type[Asked]) -> Asked:
    """Read a JSON body as ``kind``; raises RequestError ``malformed_payload`` that points to the mistakes."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False, include_context=False)
    pointer = "".join(f"/{part}" for part in found[0]["loc"])
    raise RequestError(
        f"{pointer or 'The body'}: {found[0]['msg']}.",
        remedy="See /docs for the format of a request, with an example.",
        code="malformed_payload",
        pointer=pointer,
        errors=[{"pointer": "".join(f"/{p}" for p in one["loc"]), "detail": one["msg"]} for one in found[:SAMPLE]],
    )


def _flatten(lists: Iterable[Sequence[float]], *, dtype: type[np.generic]) -> npt.NDArray[Any]:
    return np.fromiter(chain.from_iterable(lists), dtype=dtype)


def _check_amount(what: str, *, seen: int, limit: int) -> None:
    if seen > limit:
        raise RequestError(
            f"The request has {seen} {what}; the limit is {limit}.",
            remedy="Send fewer cells in one request.",
            code="too_large",
            what=what,
            seen=seen,
            limit=limit,
        )


def _check_num_cells(seen: int, *, limit: int) -> None:
    if seen > limit:
        raise RequestError(
            f"The request has {seen} cells; the limit is {limit}.",
            remedy="Split it into several requests, or answer whole files by a job: `python -m jobs.answer`.",
            code="use_jobs",
            pointer="/cells",
            what="cells",
            seen=seen,
            limit=limit,
        )


def _check_genes(payload: CellsRequest) -> None:
    """Reject Ensembl ids and genomes whose number differs from that of the genes, and duplicate genes."""
    genes = payload.genes
    given = {"ensembl_ids": payload.ensembl_ids, "genomes": payload.genomes}
    beside = {member: texts for member, texts in given.items() if texts}
    for member, texts in beside.items():
        if len(texts) != len(genes):
            problem = f"There are {len(genes)} genes, but {len(texts)} {_NOUNS[member]}."
            raise _bad_matrix(problem, pointer=f"/{member}", genes=len(genes), **{member: len(texts)})
    # Two genes may share a symbol, but not the id and the genome as well.
    if beside:
        genes = [f"{gene} ({', '.join(others)})" for gene, *others in zip(genes, *beside.values(), strict=True)]
    _check_distinct(genes, pointer="/genes/{}", noun="Gene")


def _check_distinct(names: Sequence[str | None], *, pointer: str, noun: str) -> None:
    given = [name for name in names if name is not None]
    if len(set(given)) == len(given):
        return
    seen: set[str] = set()
    for position, name in enumerate(names):
        if name is not None and name in seen:
            raise _bad_matrix(f"{noun} {name!r} is given more than once.", pointer=pointer.format(position), name=name)
        if name is not None:
            seen.add(name)


def _check_lengths(cells: Sequence[CellPayload]) -> None:
    for row, cell in enumerate(cells):
        if len(cell.i) != len(cell.v):
            problem = f"/cells/{row} has {len(cell.i)} indices in `i` but {len(cell.v)} values in `v`."
            raise _bad_matrix(problem, pointer=f"/cells/{row}", cell=row)


def _check_columns(request: ParsedRequest) -> None:
    """Reject indices outside the genes, and duplicate genes in one cell."""
    num_genes = len(request.genes)
    outside = (request.columns < 0) | (request.columns >= num_genes)
    if outside.any():
        cell, place = _locate(request, int(outside.argmax()))
        index = int(request.columns[outside.argmax()])
        problem = f"/cells/{cell}/i/{place} is {index}, but `genes` has {num_genes} entries (0 to {num_genes - 1})."
        raise _bad_matrix(problem, pointer=f"/cells/{cell}/i/{place}", cell=cell, index=index)
    row_of_entry = np.repeat(np.arange(len(request.cell_ids)), np.diff(request.indptr))
    keys = row_of_entry * num_genes + request.columns
    if (np.diff(keys) > 0).all():  # ascending within each cell, as most clients send them
        return
    order = np.argsort(keys, kind="stable")
    twice = np.flatnonzero(np.diff(keys[order]) == 0)
    if len(twice):
        cell, place = _locate(request, int(order[twice + 1].min()))
        gene = request.genes[request.columns[order[twice + 1].min()]]
        problem = f"Gene {gene} is given more than once in /cells/{cell}."
        raise _bad_matrix(problem, pointer=f"/cells/{cell}/i/{place}", cell=cell, gene=gene)


def _check_values(request: ParsedRequest) -> None:
    """Reject values that are negative or not finite."""
    bad = ~np.isfinite(request.values) | (request.values < 0)
    if not bad.any():
        return
    entry = int(bad.argmax())
    cell, place = _locate(request, entry)
    value, gene = request.values[entry], request.genes[request.columns[entry]]
    kind = "not a number" if np.isnan(value) else "infinite" if np.isinf(value) else "negative"
    raise RequestError(
        f"The value of gene {gene} in /cells/{cell} is {kind}; {int(bad.sum())} values are negative or not finite.",
        remedy="Send raw counts, or expression that is finite and not negative.",
        code="bad_values",
        pointer=f"/cells/{cell}/v/{place}",
        cell=cell,
        gene=gene,
        kind=kind,
        count=int(bad.sum()),
    )


def _locate(request: ParsedRequest, entry: int) -> tuple[int, int]:
    """Return the cell of an entry, and its position within that cell."""
    cell = int(np.searchsorted(request.indptr, entry, side="right")) - 1
    return cell, entry - int(request.indptr[cell])


def _bad_matrix(problem: str, **details: Any) -> RequestError:
    return RequestError(
        problem, remedy="Send each gene once and one value for each index.", code="bad_matrix", **details
    )
