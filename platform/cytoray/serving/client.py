"""Python client of the service: ``Client(url).annotate_adata(adata)``; takes AnnData, numpy or scipy, returns numpy.

Every endpoint of the table of tasks is a method: ``client.map(adata)``, ``client.genes(["CD3D"], neighbours=5)``.
"""

# C cells, G genes, K labels, D width

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import httpx
import numpy as np
import numpy.typing as npt
import pydantic_core
import scipy.sparse as sp

from cytoray.errors import RequestError, ServingError
from cytoray.serving.payloads.answering import read_answer
from cytoray.serving.payloads.media import ARROW, JSON
from cytoray.serving.sending import Cells, cells_of_adata, check_cells, encode_cells, encode_stream
from cytoray.tasks import find_endpoint, task_endpoints
from cytoray.tasks.annotation.answers import Annotations
from cytoray.tasks.endpoint import Answers
from cytoray.tasks.messages import CellsRequest
from cytoray.tokens.gene_table import unversioned

if TYPE_CHECKING:
    import anndata

Float32 = npt.NDArray[np.float32]
Wire = Literal["arrow", "json"]

_STANDARD_MEMBERS = {
    "type",
    "title",
    "detail",
    "instance",
    "code",
}  # of a problem; further members describe the mistake
_SHOWN = 5  # names in a warning
PATIENCE_S = 900.0  # a large reference takes minutes to be fitted to other genes
_POLL_S = 1.0  # between requests, while it is
KEY_VARIABLE = "CYTORAY_API_KEY"
# Answers that are not the service's: those of Ray Serve, or of another server in front of it.
_ANSWERS_IN_FRONT = {
    401: ("A server in front of the service requires credentials.", "Ask its operator."),
    403: ("A server in front of the service refuses this request.", "Ask its operator."),
    404: ("No service is deployed at this URL.", "Check the URL, and `serve status` if it is right."),
    408: ("The time of the server in front of the service is over.", "Lower cells_per_request, or try again later."),
    413: ("The request is too large for the server in front of the service.", "Lower cells_per_request."),
    429: ("The service has too many requests.", "Try again later."),
    500: ("The process that worked on this request has ended, or failed.", "Send it again; see the service's log."),
    502: ("The server in front of the service got no answer from it.", "Try again later; see the service's log."),
    503: ("The service is starting, stopping or has too many requests.", "Try again later."),
    504: ("The time of the server in front of the service is over.", "Lower cells_per_request, or try again later."),
}


class Client:
    """A connection to one service; sends many cells in several requests. Use as a context manager, or ``close`` it."""

    def __init__(
        self,
        url: str,
        timeout: float = 60.0,
        *,
        cells_per_request: int = 256,
        patience: float = PATIENCE_S,
        key: str | None = None,
        wire: Wire = "arrow",
    ) -> None:
        """Connect to the service at ``url``; ``timeout`` in seconds applies to each request.

        ``patience`` is how many seconds a request is repeated while the service is being fitted to its genes; ``key``
        is the API key, if the service requires one (default: $CYTORAY_API_KEY). ``wire`` is how cells and their answers
        travel, "arrow" or "json"; the answers are the same, and so is JSON to a service that does not read Arrow.
        """
        if cells_per_request < 1:
            raise RequestError(f"cells_per_request is {cells_per_request}.", remedy="It must be at least 1.")
        self.url = url.rstrip("/")
        self._cells_per_request, self._patience, self._wire = cells_per_request, patience, wire
        key = key or os.environ.get(KEY_VARIABLE)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=self.url, timeout=timeout, headers=headers, trust_env=False)

    def embed_adata(self, adata: anndata.AnnData, *, matrix: str = "X", gene_names: str = "index") -> Float32:
        """Return the embeddings (C, D) of the C cells of ``adata``; arguments and errors as in ``annotate_adata``."""
        embeddings: Float32 = self._ask("embed", cells_of_adata(adata, matrix=matrix, gene_names=gene_names))
        return embeddings

    def annotate_adata(self, adata: anndata.AnnData, *, matrix: str = "X", gene_names: str = "index") -> Annotations:
        """Return labels, probabilities and embeddings of the C cells of ``adata``, which is not changed.

        Names, Ensembl ids and genomes are sent, taken from ``adata.var`` by the rules for files, so that the answers
        are those of ``scGPT.process_data`` and of the offline jobs: a cell without a gene that the model knows has NaN
        and the label None, with a warning that names it. ``matrix`` is X, raw.X or layers/NAME; ``gene_names`` is
        "index" or a column of ``var``. Raises CorpusError for a missing matrix or column; otherwise as ``embed``.
        """
        found: Annotations = self._ask("annotate", cells_of_adata(adata, matrix=matrix, gene_names=gene_names))
        return found

    def embed(
        self,
        genes: Sequence[str],
        matrix: sp.csr_matrix,
        *,
        ensembl_ids: Sequence[str] | None = None,
        ids: Sequence[str] | None = None,
    ) -> Float32:
        """Return the embeddings (C, D) of the C rows of ``matrix`` (C, G) over ``genes``; ``ids`` are names of cells.

        ``ensembl_ids`` (G entries, empty if unknown) identify genes whose names are not in the model's vocabulary.
        Raises RequestError (with the service's ``code``) for input that is refused, ServingError if the service
        cannot answer. Warns about unknown genes if no Ensembl ids were sent.
        """
        embeddings: Float32 = self._ask("embed", check_cells(genes, matrix, ensembl_ids=ensembl_ids, ids=ids))
        return embeddings

    def annotate(
        self,
        genes: Sequence[str],
        matrix: sp.csr_matrix,
        *,
        ensembl_ids: Sequence[str] | None = None,
        ids: Sequence[str] | None = None,
    ) -> Annotations:
        """Return labels, probabilities and embeddings of the C rows of ``matrix`` (C, G); see ``embed``."""
        found: Annotations = self._ask("annotate", check_cells(genes, matrix, ensembl_ids=ensembl_ids, ids=ids))
        return found

    def ask(self, endpoint: str, sent: Cells | None = None, /, **members: Any) -> Any:
        """Ask any endpoint by name: ``client.ask("embed", check_cells(genes, matrix))``.

        ``sent`` are cells, made by ``sending.check_cells`` or ``sending.cells_of_adata``, None for an endpoint that is
        not about cells; ``members`` are further members of the request. Returns what the endpoint makes of the
        answers, an array for instance. Raises RequestError for an unknown endpoint; otherwise as ``embed``.
        """
        return self._ask(endpoint, sent, **members)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return the method of an endpoint of the table.

        If it is about cells, it takes an AnnData (``matrix`` and ``gene_names`` as in ``annotate_adata``), or genes and
        a matrix; otherwise the members of the request in their order. Further members are given by name.
        """
        if name.startswith("_") or name not in task_endpoints():
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return partial(self._call, name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *task_endpoints()})

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self.close()

    def _call(self, name: str, /, *given: Any, matrix: str = "X", gene_names: str = "index", **members: Any) -> Any:
        """Ask an endpoint with what its method was given."""
        kind = find_endpoint(name).request
        if not issubclass(kind, CellsRequest):
            names = (name for name in kind.model_fields if name != "model")  # that is the first, by inheritance
            return self._ask(name, None, **dict(zip(names, given, strict=False)), **members)
        if len(given) == 1 and hasattr(given[0], "obs_names"):
            return self._ask(name, cells_of_adata(given[0], matrix=matrix, gene_names=gene_names), **members)
        if len(given) == 2:
            return self._ask(name, check_cells(*given), **members)
        raise RequestError(
            f"{name} was given {', '.join(type(one).__name__ for one in given) or 'no cells'}.",
            remedy=f"Write client.{name}(adata) or client.{name}(genes, matrix).",
        )

    def _ask(self, name: str, sent: Cells | None, /, **members: Any) -> Any:
        """Send a request, cells ``cells_per_request`` at a time; join the answers, all of one model version."""
        endpoint = find_endpoint(name)
        if sent is None:
            return endpoint.read(Answers([], self._post(endpoint.route, pydantic_core.to_json(members), JSON)))
        num_cells, step = sent.counts_CG.shape[0], self._cells_per_request
        answers = [
            self._post_cells(endpoint.route, sent, range(start, min(start + step, num_cells)), **members)
            for start in range(0, num_cells, step)
        ]
        if not answers:
            return endpoint.read(Answers([], {}))
        versions = sorted({answer["model"]["version"] for answer in answers})
        if len(versions) > 1:
            raise ServingError(
                f"The service changed its model while answering (versions {', '.join(versions)}).",
                remedy="Send the request again: answers of two versions must not be mixed.",
            )
        _warn_of_unknown_genes(sent, answers[0]["genes"])
        empty = [number * step + row for number, answer in enumerate(answers) for row in _empty_cells(answer)]
        _warn_of_empty_cells(sent, empty)
        _warn_of_values(sent, [warning for answer in answers for warning in answer["warnings"]])
        cells = [cell for answer in answers for cell in answer["cells"]]
        return endpoint.read(Answers(cells, answers[0], len(sent.genes), lambda: self._send("GET", "/version")))

    def _post_cells(self, route: str, sent: Cells, rows: range, /, **members: Any) -> dict[str, Any]:
        """Return the answer to some of the cells; a service that does not read Arrow is sent JSON from then on."""
        if self._wire == "arrow":
            try:
                return self._post(route, encode_stream(sent, rows, **members), ARROW)
            except RequestError as error:
                if error.code != "unsupported_media_type":
                    raise
            self._wire = "json"
        return self._post(route, encode_cells(sent, rows, **members), JSON)

    def _post(self, route: str, body: bytes, media_type: str) -> dict[str, Any]:
        """Return the answer to a request, which is repeated while the service is being fitted to its genes."""
        deadline = time.monotonic() + self._patience
        headers = {"Content-Type": media_type, "Accept": media_type}
        while True:
            try:
                return self._send("POST", route, content=body, headers=headers)
            except ServingError as error:
                if error.details.get("code") != "fitting" or time.monotonic() + _POLL_S > deadline:
                    raise
            time.sleep(_POLL_S)

    def _send(self, method: str, route: str, **options: Any) -> dict[str, Any]:
        """Return the content of a reply."""
        try:
            response = self._http.request(method, route, **options)
        except httpx.TransportError as error:
            raise ServingError(
                f"No answer from {self.url}: {type(error).__name__}.",
                remedy="Check that the service is running and the URL is right; for many cells raise the timeout.",
                url=self.url,
            ) from error
        if response.status_code != 200:
            raise _error_of(response)
        if response.headers.get("content-type", "").startswith(ARROW):
            return read_answer(response.content)
        answer: dict[str, Any] = pydantic_core.from_json(response.content)
        return answer


def _warn_of_unknown_genes(sent: Cells, genes: dict[str, Any]) -> None:
    """Warn if the model does not know all genes by name and Ensembl ids might identify the others."""
    unknown = genes["unknown"]
    if sent.ensembl_ids is not None or not unknown or any(map(unversioned, unknown)):
        return
    warnings.warn(
        f"The model knows {genes['matched']:,} of the {len(sent.genes):,} genes by name; it does not know, for "
        f"example, {', '.join(unknown[:_SHOWN])}. If the data have Ensembl ids, send them as well: use annotate_adata "
        "or embed_adata, or the argument ensembl_ids.",
        UserWarning,
        stacklevel=4,
    )


def _empty_cells(answer: dict[str, Any]) -> list[int]:
    """Return the positions of the cells of one request that have no gene that the model knows."""
    return [row for warning in answer["warnings"] if warning["code"] == "empty_cells" for row in warning["indices"]]


def _warn_of_empty_cells(sent: Cells, empty: list[int]) -> None:
    """Warn about cells without an answer, and name them."""
    if not empty:
        return
    names = ", ".join(sent.name(row) for row in empty[:_SHOWN]) + (", …" if len(empty) > _SHOWN else "")
    warnings.warn(
        f"{len(empty):,} of {sent.counts_CG.shape[0]:,} cells have no gene that the model knows: {names}. Their "
        "results are NaN, their labels None.",
        UserWarning,
        stacklevel=4,
    )


def _warn_of_values(sent: Cells, found: Sequence[dict[str, Any]]) -> None:
    """Warn, once, if values do not look like raw counts."""
    doubtful = [warning for warning in found if warning["code"] == "not_counts"]
    if not doubtful:
        return
    num_cells = sum(warning["num_cells"] for warning in doubtful)
    warnings.warn(
        f"The values of {num_cells:,} of {sent.counts_CG.shape[0]:,} cells do not look like raw counts "
        f"({doubtful[0]['kind']}). Models were trained on raw counts: send those if you have them, such as "
        "matrix='raw.X' or 'layers/counts'.",
        UserWarning,
        stacklevel=4,
    )


def _error_of(response: httpx.Response) -> RequestError | ServingError:
    """Convert an error response: RequestError for a 4xx status, ServingError for all others."""
    try:
        problem = json.loads(response.content)
    except ValueError:
        problem = None
    if not isinstance(problem, dict) or "code" not in problem:
        status, text = response.status_code, " ".join(response.text.split())[:200]
        unknown = ("This is not an answer of the service.", "Check that the URL is a cytoray service.")
        reason, remedy = _ANSWERS_IN_FRONT.get(status, unknown)
        return ServingError(f"HTTP {status}: {reason} It says: {text or 'nothing'}.", remedy=remedy, status=status)
    details = {key: value for key, value in problem.items() if key not in _STANDARD_MEMBERS | {"problem", "remedy"}}
    if 400 <= response.status_code < 500:
        return RequestError(str(problem["detail"]), code=str(problem["code"]), **details)
    return ServingError(str(problem["detail"]), code=str(problem["code"]), **details)
