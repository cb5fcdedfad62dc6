"""Requests that are a sparse matrix: named arrays, as an Arrow stream, an npz file or an h5ad file holds them."""

# C cells, G genes, N non-zero entries over all cells

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pydantic_core
from pydantic import ValidationError

from cytoray.serving.config import Limits
from cytoray.serving.payloads.json_cells import malformed, pointer_of, refuse_repeated_keys
from cytoray.serving.payloads.parsed import (
    MATRIX_PLACES,
    SAMPLE,
    ParsedRequest,
    bad_matrix,
    check_amount,
    check_num_cells,
)
from cytoray.tasks.messages import NAME_LENGTH, CellsRequest

TEXTS = ("genes", "ensembl_ids", "genomes", "ids")
NUMBERS = ("indptr", "indices", "data")
REQUIRED = ("genes", *NUMBERS)
_PLAIN = (np.int64, np.int32, np.uint32, np.uint16)  # that mix with int64
_CELLS = ("genes", "ensembl_ids", "genomes", "cells")  # members of a request that the arrays stand for
_STAND_IN = b'{"genes":["-"],"cells":[{"i":[],"v":[]}],'  # for the schema; replaced by the arrays


@dataclass(frozen=True)
class Matrix:
    """The arrays of a body: ``indptr`` (C + 1,), ``indices`` and ``data`` (N,), and texts."""

    genes: Sequence[str]
    indptr: npt.NDArray[Any]
    indices: npt.NDArray[Any]
    data: npt.NDArray[Any]
    ensembl_ids: Sequence[str] | None = None
    genomes: Sequence[str] | None = None
    ids: Sequence[str | None] | None = None

    def as_request(self, asked: CellsRequest) -> ParsedRequest:
        """Return the request; RequestError if the arrays are no matrix or a text is too long."""
        if not self.genes:
            raise malformed("/genes: there are no genes.", "/genes")
        if len(self.indptr) < 2:
            raise malformed("/indptr: there are no cells.", "/indptr")
        for name in TEXTS:
            _check_length(name, getattr(self, name))
        num_cells = len(self.indptr) - 1
        if self.ids is not None and len(self.ids) != num_cells:
            raise bad_matrix(f"There are {num_cells} cells, but {len(self.ids)} ids.", pointer="/ids")
        with np.errstate(over="ignore"):  # such a value becomes infinite, which is rejected with the values
            values = np.asarray(self.data, np.float32)
        return ParsedRequest(
            genes=tuple(self.genes),
            ensembl_ids=tuple(self.ensembl_ids) if self.ensembl_ids else None,
            genomes=tuple(self.genomes) if self.genomes else None,
            indptr=self._checked_indptr(),
            columns=self.indices if self.indices.dtype in _PLAIN else self.indices.astype(np.int64),
            values=values,
            cell_ids=tuple(self.ids) if self.ids is not None else (None,) * num_cells,
            asked=asked,
            places=MATRIX_PLACES,
        )

    def _checked_indptr(self) -> npt.NDArray[np.int64]:
        """Return the starts of the cells; RequestError if they do not fit the entries."""
        indptr = self.indptr.astype(np.int64)
        if len(self.indices) != len(self.data):
            problem = f"There are {len(self.indices)} entries in `indices`, but {len(self.data)} in `data`."
            raise bad_matrix(problem, pointer="/indices")
        if indptr[0] != 0 or indptr[-1] != len(self.indices):
            problem = f"`indptr` must go from 0 to {len(self.indices)}, the length of `indices`."
            raise bad_matrix(problem, pointer=f"/indptr/{0 if indptr[0] else len(indptr) - 1}")
        if (falls := np.diff(indptr) < 0).any():
            place = int(falls.argmax()) + 1
            raise bad_matrix(f"/indptr/{place} is smaller than the entry before.", pointer=f"/indptr/{place}")
        return indptr


def check_sizes(lengths: Mapping[str, int], *, limits: Limits) -> None:
    """Raise RequestError if an array is longer than the limits allow, before its texts become Python's."""
    for name in ("genes", "ensembl_ids", "genomes"):
        check_amount(name.replace("_", " "), seen=lengths.get(name, 0), limit=limits.max_genes, pointer=f"/{name}")
    for name, extra in (("indptr", 1), ("ids", 0)):
        check_num_cells(lengths.get(name, 0) - extra, limit=limits.max_cells, places=MATRIX_PLACES)
    for name in ("indices", "data"):
        check_amount("non-zero values", seen=lengths.get(name, 0), limit=limits.max_nonzeros, pointer=f"/{name}")


def read_options(
    kind: type[CellsRequest], options: Mapping[str, str], *, members: bytes = b"", ignored: Sequence[str] = ()
) -> CellsRequest:
    """Return the request without its cells, from the query of the URL and ``members``, a JSON object in the body.

    A value in the query may be written as in JSON; a text needs no quotes. RequestError for one that does not fit.
    """
    given = {name: _read_option(kind, name, text) for name, text in options.items() if name not in ignored}
    inside = _read_members(members)
    for name in (*given, *inside):
        if name in _CELLS or (name in given and name in inside):
            raise malformed(f"/{name[:NAME_LENGTH]} is given twice.", f"/{name}")
    text = pydantic_core.to_json(given | inside)
    try:
        asked = kind.model_validate_json(_STAND_IN + text[1:] if len(text) > 2 else _STAND_IN[:-1] + b"}")
    except ValidationError as error:
        mistakes = error.errors(include_input=False, include_url=False, include_context=False)
    else:
        return asked.model_copy(update={"cells": [], "genes": []})
    pointers = [pointer_of(one["loc"]) for one in mistakes[:SAMPLE]]
    errors = [{"pointer": at, "detail": one["msg"]} for at, one in zip(pointers, mistakes, strict=False)]
    raise malformed(f"{pointers[0]}: {mistakes[0]['msg']}.", pointers[0], errors=errors)


def _read_option(kind: type[CellsRequest], name: str, text: str) -> Any:
    """Return the value of an option: a text for a member that is one, else JSON."""
    field = kind.model_fields.get(name)
    if field is not None and field.annotation is str:
        return text
    try:
        return pydantic_core.from_json(text, cache_strings=False)
    except ValueError:
        return text


def _read_members(members: bytes) -> dict[str, Any]:
    if not members:
        return {}
    try:
        found = json.loads(members)
        refuse_repeated_keys(members)
    except (ValueError, RecursionError) as error:
        raise malformed("The members of the request are not a JSON object.", "/request") from error
    if not isinstance(found, dict):
        raise malformed("The members of the request are not a JSON object.", "/request")
    return found


def _check_length(member: str, texts: Sequence[str | None] | None) -> None:
    """Raise RequestError if a text is too long, or has half of a character, which an answer could not repeat."""
    given = [text for text in texts or () if text is not None]
    if "".join(given).isascii() and max(map(len, given), default=0) <= NAME_LENGTH:  # most requests, in little time
        return
    for place, text in enumerate(texts or ()):
        if text is not None and not text.isascii() and any("\ud800" <= one <= "\udfff" for one in text):
            raise malformed(f"/{member}/{place}: the text is not valid Unicode.", f"/{member}/{place}")
        if text is not None and len(text) > NAME_LENGTH:
            pointer = f"/{member}/{place}"
            raise malformed(f"{pointer}: String should have at most {NAME_LENGTH} characters.", pointer)
