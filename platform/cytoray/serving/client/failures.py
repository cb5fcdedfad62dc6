"""Failures of a request: what the service or a server in front of it answered, and whether asking again can help."""

from __future__ import annotations

import json
from typing import Any, Literal

import httpx

from cytoray.errors import CytorayError, RequestError, ServingError

# passing: ask again. busy: ask again, and less often. smaller: ask for fewer cells. fitting: ask again, with patience.
Kind = Literal["passing", "busy", "smaller", "fitting", "final"]

_STANDARD_MEMBERS = {
    "type",
    "title",
    "detail",
    "instance",
    "code",
}  # of a problem; further members describe the mistake
_KINDS: dict[str, Kind] = {
    "overloaded": "busy",
    "rate_limited": "busy",
    "draining": "passing",
    "model_not_ready": "passing",
    "replica_lost": "passing",
    "fitting": "fitting",
    "deadline_exceeded": "smaller",
    "too_large": "smaller",
    "use_jobs": "smaller",
    "body_timeout": "smaller",
    "internal": "final",
    "jobs_off": "final",
}
_STATUSES: dict[int, Kind] = {
    408: "smaller",
    413: "smaller",
    429: "busy",
    500: "passing",
    502: "passing",
    503: "busy",
    504: "smaller",
}
_STILL = {"deadline_exceeded", "body_timeout"}  # of one cell: the service was busy, so ask again
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


class Failure(Exception):
    """A request that was not answered."""

    def __init__(self, error: CytorayError, kind: Kind, *, wait_s: float = 0.0, reached: bool = True) -> None:
        super().__init__(str(error))
        self.error, self.kind = error, kind
        self.wait_s = wait_s  # that the service asks for
        self.reached = reached  # whether a server was there

    def for_cells(self, num_cells: int) -> Kind:
        """Return what can help a request of so many cells; 0 if it is not about cells."""
        if self.kind != "smaller" or num_cells > 1:
            return self.kind
        code = self.error.details.get("code")
        return "passing" if code in _STILL or self.error.details.get("status") in (408, 504) else "final"


def failure_of(response: httpx.Response) -> Failure:
    """Convert an error response: RequestError for a 4xx status of the service, ServingError for all others."""
    error = _error_of(response)
    status, code = response.status_code, error.details.get("code")
    if code is None:
        kind = _STATUSES.get(status, "final")
    else:
        kind = _KINDS.get(str(code), "passing" if status in (429, 502, 503, 504) else "final")
    return Failure(error, kind, wait_s=_retry_after(response))


def failure_to_connect(error: httpx.TransportError, url: str) -> Failure:
    """Convert a failure of the connection."""
    reached = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
    found = ServingError(
        f"No answer from {url}: {type(error).__name__}.",
        remedy="Check that the service is running and the URL is right; for many cells raise the timeout.",
        url=url,
    )
    is_wrong = isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError | httpx.ProxyError)
    return Failure(found, "final" if is_wrong else "passing", reached=reached)


def _retry_after(response: httpx.Response) -> float:
    """Return the seconds that the service asks to wait; 0 if it does not say."""
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdecimal() and len(text) < 7 else 0.0


def _error_of(response: httpx.Response) -> CytorayError:
    try:
        problem = json.loads(response.content)
    except ValueError:
        problem = None
    if not isinstance(problem, dict) or "code" not in problem:
        status, text = response.status_code, " ".join(response.text.split())[:200]
        unknown = ("This is not an answer of the service.", "Check that the URL is a cytoray service.")
        reason, remedy = _ANSWERS_IN_FRONT.get(status, unknown)
        return ServingError(f"HTTP {status}: {reason} It says: {text or 'nothing'}.", remedy=remedy, status=status)
    details: dict[str, Any] = {
        key: value for key, value in problem.items() if key not in _STANDARD_MEMBERS | {"problem", "remedy"}
    }
    if 400 <= response.status_code < 500:
        return RequestError(str(problem["detail"]), code=str(problem["code"]), **details)
    return ServingError(str(problem["detail"]), code=str(problem["code"]), **details)
