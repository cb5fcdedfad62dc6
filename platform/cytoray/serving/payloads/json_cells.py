"""Read JSON bodies: pydantic checks the structure, a compiled scanner reads the numbers of the cells."""

# C cells, N non-zero entries over all cells

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from cytoray.errors import RequestError
from cytoray.serving.config import Limits
from cytoray.serving.payloads import json_kernels as kernels
from cytoray.serving.payloads.parsed import (
    JSON_PLACES,
    SAMPLE,
    ParsedRequest,
    bad_matrix,
    check_amount,
    check_num_cells,
)
from cytoray.tasks.messages import NAME_LENGTH, CellPayload, CellsRequest, Message
from cytoray.tokens.compiling import as_input

Asked = TypeVar("Asked", bound=Message)
_REMEDY = "See /docs for the format of a request, with an example."
_LISTS_OF_GENES, _VALUES_OF_A_CELL, _OTHERS = 4, 16, 4096  # entries of a body that are not numbers of cells


def read_message(body: bytes, *, kind: type[Asked], limits: Limits) -> Asked:
    """Read a JSON body as ``kind``, which is not about cells; RequestError points to the first mistake."""
    _scan(body, np.empty((0, 2, 4), np.int64), limits=limits)
    return _validate(body, kind=kind)


def read_cells(body: bytes, *, kind: type[CellsRequest], limits: Limits) -> ParsedRequest:
    """Read a JSON body of ``kind``, with pointers to its first mistake in structure or types."""
    spans = np.full((limits.max_cells, 2, 4), -1, np.int64)
    text, num_cells = _scan(body, spans, limits=limits)
    check_num_cells(num_cells, limit=limits.max_cells)
    counts = spans[:num_cells, :, kernels.COUNT]
    check_amount("non-zero values", seen=int(counts[:, 1].clip(0).sum()), limit=limits.max_nonzeros)
    payload = _validate(text, kind=kind)
    source = as_input(np.frombuffer(body, np.uint8), np.uint8)
    numbers = [_numbers(source, spans[row], row, cell) for row, cell in enumerate(payload.cells)]
    lengths = [len(columns) for columns, _ in numbers]
    return ParsedRequest(
        genes=tuple(payload.genes),
        ensembl_ids=tuple(payload.ensembl_ids) or None,
        genomes=tuple(payload.genomes) or None,
        indptr=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        columns=np.concatenate([columns for columns, _ in numbers]),
        values=np.concatenate([values for _, values in numbers]),
        cell_ids=tuple(cell.id for cell in payload.cells),
        asked=payload.model_copy(update={"cells": []}),
        places=JSON_PLACES,
    )


def warm_up() -> None:
    """Compile the scanner, or load it from the cache of compiled code, before the first request needs it."""
    body = b'{"genes": ["a"], "cells": [{"i": [0], "v": [0.5]}]}'
    read_cells(body, kind=CellsRequest, limits=Limits())


def malformed(problem: str, pointer: str, **details: Any) -> RequestError:
    """Build the error for a body that is not a valid request."""
    return RequestError(problem, remedy=_REMEDY, code="malformed_payload", pointer=pointer, **details)


def pointer_of(place: Sequence[int | str]) -> str:
    """Return the pointer to a place in a body; names, which a client may send of any length, are cut off."""
    return "".join(f"/{str(part)[:NAME_LENGTH]}" for part in place)


def _scan(body: bytes, spans: kernels.Int64, *, limits: Limits) -> tuple[bytes, int]:
    """Write the ``spans`` of the cells' numbers; returns the body with blanks for them, and the number of cells."""
    source = as_input(np.frombuffer(body, np.uint8), np.uint8)
    most = _LISTS_OF_GENES * limits.max_genes + _VALUES_OF_A_CELL * limits.max_cells + _OTHERS
    found, num_cells, entries = kernels.scan_body(source, spans, most)
    if found == kernels.TOO_DEEP:
        raise malformed(f"The body has more than {kernels.MAX_DEPTH} levels of lists and objects.", "")
    if found == kernels.TOO_MANY:
        check_num_cells(num_cells, limit=limits.max_cells)
        check_amount("entries beside the numbers of cells", seen=int(entries), limit=most)
    if not 0 < num_cells <= len(spans):
        return body, int(num_cells)
    text = bytearray(body)
    kernels.blank(np.frombuffer(text, np.uint8), spans)
    return bytes(text), int(num_cells)


def _numbers(source: kernels.Bytes, spans: kernels.Int64, row: int, cell: CellPayload) -> tuple[Any, Any]:
    """Return the columns and values (N,) of a cell; RequestError if an index is not an integer or one lacks a value."""
    if (place := int(spans[0, kernels.NOT_INTEGER])) >= 0:
        pointer = f"/cells/{row}/i/{place}"
        raise malformed(f"{pointer}: Input should be a valid integer of at most 18 digits.", pointer)
    num_columns = int(spans[0, kernels.COUNT]) if spans[0, 0] >= 0 else len(cell.i)
    num_values = int(spans[1, kernels.COUNT]) if spans[1, 0] >= 0 else len(cell.v)
    if num_columns != num_values:
        problem = f"/cells/{row} has {num_columns} indices in `i` but {num_values} values in `v`."
        raise bad_matrix(problem, pointer=f"/cells/{row}", cell=row)
    columns = np.array(cell.i, np.int64)  # of an empty list, or of one whose key is written with escapes
    if spans[0, 0] >= 0:
        columns = np.empty(num_columns, np.int64)
        kernels.read_integers(source, int(spans[0, kernels.START]), columns)
    decimals = np.array(cell.v, np.float64)
    if spans[1, 0] >= 0:
        decimals = _decimals(source, spans[1])
    with np.errstate(over="ignore"):  # 1e39 becomes infinite, which is rejected with the values
        return columns, decimals.astype(np.float32)


def _decimals(source: kernels.Bytes, span: kernels.Int64) -> npt.NDArray[np.float64]:
    """Return the numbers of one array, correctly rounded to float64."""
    decimals = np.empty(int(span[kernels.COUNT]), np.float64)
    if kernels.read_decimals(source, int(span[kernels.START]), decimals):
        return decimals
    text = source[span[kernels.START] : span[kernels.STOP]].tobytes()
    return np.fromstring(text, np.float64, sep=" , ")


def _validate(body: bytes, *, kind: type[Asked]) -> Asked:
    """Validate the structure of a body; RequestError points to the mistakes, repeated keys included."""
    try:
        found = kind.model_validate_json(body)
    except ValidationError as error:
        mistakes = error.errors(include_input=False, include_url=False, include_context=False)
    else:
        refuse_repeated_keys(body)
        return found
    pointers = [pointer_of(one["loc"]) for one in mistakes[:SAMPLE]]
    pointer = pointers[0]
    raise malformed(
        f"{pointer or 'The body'}: {mistakes[0]['msg']}.",
        pointer,
        errors=[{"pointer": at, "detail": one["msg"]} for at, one in zip(pointers, mistakes, strict=False)],
    )


class _Repeated(dict[str, Any]):
    """An object of JSON that gives a key twice."""

    key: str


def refuse_repeated_keys(body: bytes) -> None:
    """Raise RequestError if an object of a valid body has a key twice: readers differ in which of the values counts."""
    repeated: list[_Repeated] = []

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Return an object, noted if it has fewer keys than were given."""
        built = dict(pairs)
        if len(built) == len(pairs):
            return built
        names = [name for name, _ in pairs]
        noted = _Repeated(pairs)
        noted.key = next(name for place, name in enumerate(names) if name in names[:place])[:NAME_LENGTH]
        repeated.append(noted)
        return noted

    whole = json.loads(body, object_pairs_hook=build)
    if repeated:
        pointer, key = _find_repeated(whole, "")
        raise malformed(f"{pointer}: The key {key!r} is given more than once.", pointer)


def _find_repeated(value: Any, pointer: str) -> tuple[str, str]:
    """Return the pointer and name of the first repeated key; empty if no key is repeated below ``value``."""
    if isinstance(value, _Repeated):
        return f"{pointer}/{value.key}", value.key
    if isinstance(value, dict | list):
        for name, below in value.items() if isinstance(value, dict) else enumerate(value):
            found = _find_repeated(below, f"{pointer}{pointer_of((name,))}")
            if found[1]:
                return found
    return "", ""
