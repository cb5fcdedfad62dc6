"""The service from Python: ``Client(url).annotate(genes, counts)``; numpy and scipy in, numpy out."""

# C cells, G genes, K labels, D width

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pydantic_core
import scipy.sparse as sp

from cytoray.errors import RequestError, ServingError

Float32 = npt.NDArray[np.float32]

_STANDARD_MEMBERS = {"type", "title", "detail", "instance", "code"}  # of a problem; the others name offenders


@dataclass(frozen=True)
class Annotations:
    """What the service says of C cells, in the order they were given."""

    labels: tuple[str, ...]  # (C,)
    label_names: tuple[str, ...]  # (K,) of the columns of probabilities
    probabilities: Float32  # (C, K)
    embeddings: Float32  # (C, D), unit length
    model_version: str


class Client:
    """A connection to one service; sends many cells in several requests. Use as a context manager, or ``close`` it."""

    def __init__(self, url: str, timeout: float = 60.0, *, cells_per_request: int = 256) -> None:
        """``timeout`` in seconds, for each request."""
        assert cells_per_request > 0
        self.url = url.rstrip("/")
        self._cells_per_request = cells_per_request
        self._http = httpx.Client(base_url=self.url, timeout=timeout, trust_env=False)

    def embed(self, genes: Sequence[str], matrix: sp.csr_matrix, *, ids: Sequence[str] | None = None) -> Float32:
        """Embeddings, shape (C, D), of the C rows of ``matrix`` (C, G) over ``genes``.

        Raises RequestError (with the service's ``code``) for input it refuses, ServingError where it cannot answer.
        """
        cells, _ = self._ask("/v1/embed", genes, matrix, ids=ids)
        return _embeddings(cells)

    def annotate(self, genes: Sequence[str], matrix: sp.csr_matrix, *, ids: Sequence[str] | None = None) -> Annotations:
        """Labels, probabilities and embeddings of the C rows of ``matrix`` (C, G) over ``genes``; raises like embed."""
        cells, version = self._ask("/v1/annotate", genes, matrix, ids=ids)
        label_names = tuple(cells[0]["probabilities"]) if cells else ()
        rows = [[cell["probabilities"][name] for name in label_names] for cell in cells]
        return Annotations(
            labels=tuple(cell["label"] for cell in cells),
            label_names=label_names,
            probabilities=np.array(rows, np.float32).reshape(len(cells), len(label_names)),
            embeddings=_embeddings(cells),
            model_version=version,
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self.close()

    def _ask(
        self, route: str, genes: Sequence[str], matrix: sp.csr_matrix, *, ids: Sequence[str] | None
    ) -> tuple[list[dict[str, Any]], str]:
        """Send all rows, some at a time; returns the answered cells and the one model version that answered."""
        counts_CG = sp.csr_matrix(matrix, copy=True)
        counts_CG.sum_duplicates()
        assert counts_CG.shape[1] == len(genes), "matrix needs one column for each gene"
        assert ids is None or len(ids) == counts_CG.shape[0], "ids needs one entry for each row"
        cells: list[dict[str, Any]] = []
        versions: set[str] = set()
        for rows in _chunks(counts_CG.shape[0], size=self._cells_per_request):
            answer = self._post(route, _encode(genes, counts_CG, rows=rows, ids=ids))
            versions.add(answer["model"]["version"])
            cells.extend(answer["cells"])
        if len(versions) > 1:
            raise ServingError(
                f"The service changed its model while answering (versions {', '.join(sorted(versions))}).",
                remedy="Ask again: answers of two versions must not be mixed.",
            )
        return cells, versions.pop() if versions else ""

    def _post(self, route: str, body: bytes) -> dict[str, Any]:
        try:
            response = self._http.post(route, content=body, headers={"Content-Type": "application/json"})
        except httpx.TransportError as error:
            raise ServingError(
                f"No answer from {self.url}: {type(error).__name__}.",
                remedy="Check that the service runs, the URL, and for many or large cells the timeout.",
                url=self.url,
            ) from error
        if response.status_code != 200:
            raise _error_of(response)
        answer: dict[str, Any] = pydantic_core.from_json(response.content)
        return answer


def _chunks(num_rows: int, *, size: int) -> Iterator[range]:
    for start in range(0, num_rows, size):
        yield range(start, min(start + size, num_rows))


def _encode(genes: Sequence[str], counts_CG: sp.csr_matrix, *, rows: range, ids: Sequence[str] | None) -> bytes:
    cells = []
    for row in rows:
        entries = slice(counts_CG.indptr[row], counts_CG.indptr[row + 1])
        cell: dict[str, Any] = {"i": counts_CG.indices[entries].tolist(), "v": counts_CG.data[entries].tolist()}
        cells.append(cell if ids is None else {"id": str(ids[row]), **cell})
    return pydantic_core.to_json({"genes": list(genes), "cells": cells})


def _embeddings(cells: Sequence[dict[str, Any]]) -> Float32:
    width = len(cells[0]["embedding"]) if cells else 0
    return np.array([cell["embedding"] for cell in cells], np.float32).reshape(len(cells), width)


def _error_of(response: httpx.Response) -> RequestError | ServingError:
    """The error a problem stands for; a 4xx is the request's fault, everything else the service's."""
    try:
        problem = json.loads(response.content)
    except ValueError:
        problem = None
    if not isinstance(problem, dict) or "code" not in problem:
        text = " ".join(response.text.split())[:200]
        remedy = (
            "Ask again later." if response.status_code in (429, 503) else "Check that the URL is a cytoray service."
        )
        return ServingError(f"HTTP {response.status_code}: {text}", remedy=remedy, status=response.status_code)
    details = {key: value for key, value in problem.items() if key not in _STANDARD_MEMBERS | {"problem", "remedy"}}
    if 400 <= response.status_code < 500:
        return RequestError(str(problem["detail"]), code=str(problem["code"]), **details)
    return ServingError(str(problem["detail"]), code=str(problem["code"]), **details)
