"""One request at the edge: what is recorded about it, its cleaned headers, and its answers by the edge itself."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from cytoray.errors import RequestError
from cytoray.serving.problems import CASES, PROBLEM_TYPE, problem_body, valid_request_id

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# With these a client could switch off time limits, keep work running that nobody waits for, or choose a replica.
STRIPPED = frozenset(
    ("x_request_timeout_seconds", "x_request_disconnect_disabled", "serve_multiplexed_model_id", "x_session_id")
)
STRIPPED_PREFIX = "x_serve_router_"  # the headers by which parts of Serve direct requests
CELLS_HEADER = b"x-cells"  # by which a replica reports the number of cells that it has answered
MODEL_HEADER = b"x-model"  # and the name of the model that has answered
CODE_HEADER = b"x-problem-code"  # and the code of the problem that it has answered with
OTHER = "other"
SAFE = frozenset(("GET", "HEAD", "OPTIONS"))
_ROUTE = re.compile(r"/(v1/[a-z][a-z0-9_-]*|[a-z.]+)?(?:/.*)?")
_OF_MODEL = re.compile(r"/v1/models/.+/([a-z][a-z0-9_-]*)")  # a route of one model: /v1/models/NAME/embed


@dataclass
class Exchange:
    """A request and what became known about it until it was answered."""

    method: str
    path: str
    route: str  # one of a fixed list, else OTHER
    request_id: str
    started: float
    is_repeatable: bool = False  # it changes nothing, or has an Idempotency-Key
    key_id: str = ""
    kind: str | None = None
    code: str = ""  # of the problem that was the answer
    status: int | None = None
    model: str = ""  # that has answered
    cells: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    retries: int = 0
    headers: dict[str, str] = field(default_factory=dict)  # for the answer, whoever makes it

    def watch(self, send: Send, *, before_start: Callable[[], None] = lambda: None) -> Send:
        """Return ``send`` that records the answer, and adds ``headers`` to it."""

        async def watched(message: Message) -> None:
            """Send a message of the answer."""
            if message["type"] == "http.response.start":
                self.status = int(message["status"])
                self._read_head(dict(message.get("headers", ())))
                before_start()
                message = {**message, "headers": [*message.get("headers", ()), *_encoded(self.headers)]}
            elif message["type"] == "http.response.body":
                self.bytes_out += len(message.get("body", b""))
            await send(message)

        return watched

    async def refuse(self, send: Send, error: RequestError, *, echo_request_id: bool = True) -> None:
        """Answer with the problem of ``error``; ``X-Request-Id`` may be written by a server in front instead."""
        members = {key: value for key, value in error.details.items() if key not in ("code", "retry_after_s")}
        body = problem_body(error.code, detail=str(error), instance=self.path, request_id=self.request_id, **members)
        headers = {
            "Content-Type": PROBLEM_TYPE,
            "Content-Length": str(len(body)),
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
        }
        if echo_request_id:
            headers["X-Request-Id"] = self.request_id
        headers["X-Problem-Code"] = error.code
        status = CASES[error.code].status
        if status == 401:
            headers["WWW-Authenticate"] = 'Bearer realm="cytoray"'
        if status in (429, 503):
            headers["Retry-After"] = str(error.details.get("retry_after_s", 1))
        watched = self.watch(send)
        await watched({"type": "http.response.start", "status": status, "headers": _encoded(headers)})
        await watched({"type": "http.response.body", "body": body, "more_body": False})

    async def reply(self, send: Send, body: bytes, *, media_type: str) -> None:
        """Answer a request that needs no application."""
        headers = {"Content-Type": media_type, "Content-Length": str(len(body)), "X-Request-Id": self.request_id}
        watched = self.watch(send)
        await watched({"type": "http.response.start", "status": 200, "headers": _encoded(headers)})
        await watched({"type": "http.response.body", "body": body, "more_body": False})

    def _read_head(self, headers: dict[bytes, bytes]) -> None:
        """Record what the head of the answer reports."""
        self.model = headers.get(MODEL_HEADER, b"").decode("latin-1")
        self.code = headers.get(CODE_HEADER, b"").decode()
        cells = headers.get(CELLS_HEADER, b"")
        self.cells = int(cells) if cells.isdigit() else 0


def begin(scope: Scope, *, routes: frozenset[str], now: float) -> tuple[Scope, Exchange]:
    """Return a request without the headers that clients must not send, with a valid id, and its exchange."""
    kept: list[tuple[bytes, bytes]] = []
    given = ""
    for name, value in scope["headers"]:
        plain = name.decode("latin-1").lower().replace("-", "_")
        if plain == "x_request_id":
            given = value.decode("latin-1")
        elif plain not in STRIPPED and not plain.startswith(STRIPPED_PREFIX):
            kept.append((name, value))
    request_id = valid_request_id(given)
    kept.append((b"x-request-id", request_id.encode()))
    cleaned = {**scope, "headers": kept, "state": dict(scope.get("state") or {})}
    method, path = str(scope["method"]), str(scope["path"])
    exchange = Exchange(method, path, route_of(path, routes), request_id, now)
    exchange.is_repeatable = method in SAFE or bool(header(scope, b"idempotency-key"))
    return cleaned, exchange


def route_of(path: str, routes: frozenset[str]) -> str:
    """Return the route of a path for metrics and scopes: one of ``routes``, else OTHER.

    That of /v1/models/NAME/embed is /v1/embed: the same is asked, and a key needs the same scope.
    """
    of_model = _OF_MODEL.fullmatch(path)
    if of_model and f"/v1/{of_model[1]}" in routes:
        return f"/v1/{of_model[1]}"
    match = _ROUTE.fullmatch(path)
    found = f"/{match[1] or ''}" if match else OTHER
    return found if found in routes else OTHER


def header(scope: Scope, name: bytes) -> str:
    """Return a header of a request; empty if it is missing."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name), "")


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]
