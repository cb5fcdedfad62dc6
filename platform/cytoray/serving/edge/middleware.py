"""The edge as ASGI middleware: every request passes it once, in Serve's HTTP server or else in the replica."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

from starlette.requests import ClientDisconnect

from cytoray.errors import RequestError
from cytoray.serving.config import Limits
from cytoray.serving.edge.access_log import AccessLog
from cytoray.serving.edge.bodies import Bodies, Replay
from cytoray.serving.edge.config import EdgeConfig
from cytoray.serving.edge.exchange import App, Exchange, Receive, Scope, Send, begin
from cytoray.serving.edge.forwarding import Forwarder, Retries
from cytoray.serving.edge.gate import GATE, Gate
from cytoray.serving.edge.guard import Caller, Guard
from cytoray.serving.edge.metrics import CONTENT_TYPE, EdgeMetrics, Gather, render
from cytoray.serving.edge.tracing import traced
from cytoray.tasks import task_endpoints

ALIVE, READY, METRICS = "/healthz", "/readyz", "/metrics"
READY_S = 4.0  # Serve would let a probe wait for a replica as long as any other request
ROUTES = frozenset(
    ("/", "/assets", "/docs", "/explorer", "/healthz", "/metrics", "/openapi.json", "/readyz", "/version")
)
#: Routes below /v1 that are not endpoints of the table of tasks.
MORE = frozenset(("/v1/jobs", "/v1/model", "/v1/models", "/v1/uploads", "/v1/webhooks"))
SERVES_OWN = "/-/"  # Serve's probes, which its load balancers ask
PASSED = "cytoray.edge"  # in the state of a request that has passed an edge


NO_RETRIES = Retries(times=0)


@dataclass(frozen=True)
class Parts:
    """The parts of an edge; those of one process share metrics and gate."""

    config: EdgeConfig
    limits: Limits
    metrics: EdgeMetrics
    guard: Guard | None = None  # None: who may ask is checked by the edge of the replica
    retries: Retries = NO_RETRIES
    gather: Gather | None = None  # the metrics of all processes; None: the application answers /metrics
    echo_request_id: bool = True  # False if a server in front writes X-Request-Id
    gate: Gate = field(default_factory=lambda: GATE)
    clock: Callable[[], float] = field(default=time.monotonic)


class Edge:
    """Middleware: key, scope and quota; size and time of the body; drain; retries; metrics and access log."""

    def __init__(self, app: App, parts: Parts) -> None:
        self._app = app
        self._parts = parts
        self._bodies = Bodies(max_bytes=parts.limits.max_body_bytes, timeout_s=parts.config.body_timeout_s)
        self._log = AccessLog(parts.config.access_log)
        self._endpoints = frozenset(endpoint.route for endpoint in task_endpoints().values())
        self._routes = ROUTES | MORE | self._endpoints
        self._forwarder = Forwarder(
            app, parts.retries, parts.clock, lambda reason: parts.metrics.retries.labels(reason).inc()
        )
        parts.gate.is_guarded = True
        parts.metrics.draining.set_function(lambda: float(parts.gate.is_closed))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] == "websocket":
            await refuse_websocket(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            self.close()
        elif scope["type"] != "http" or str(scope["path"]).startswith(SERVES_OWN):
            await self._app(scope, receive, send)
        elif PASSED in (scope.get("state") or {}):
            await self._pass(scope, receive, send)
        else:
            await self._exchange(scope, receive, send)

    def close(self) -> None:
        """Close the access log."""
        self._log.close()

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what the edge of the HTTP server has admitted; check the key if that one could not."""
        if scope["state"][PASSED] or self._parts.guard is None:
            await self._app(scope, receive, send)
            return
        cleaned, exchange = begin(scope, routes=self._routes, now=self._parts.clock())
        try:
            caller = self._parts.guard.admit(scope, exchange)
        except RequestError as error:
            await exchange.refuse(send, error, echo_request_id=self._parts.echo_request_id)
            return
        try:
            _identify(cleaned, caller)
            await self._app(cleaned, receive, exchange.watch(send, before_start=self._quota_of(caller, exchange)))
        finally:
            self._parts.guard.leave(caller, cells=exchange.cells)

    async def _exchange(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request and record that."""
        parts = self._parts
        cleaned, exchange = begin(scope, routes=self._routes, now=parts.clock())
        parts.gate.in_flight += 1
        parts.metrics.in_flight.inc()
        try:
            with traced(cleaned, exchange):
                await self._answer(cleaned, receive, send, exchange)
        except RequestError as error:
            await exchange.refuse(send, error, echo_request_id=parts.echo_request_id)
        except ClientDisconnect:
            exchange.status = 499
        finally:
            parts.gate.in_flight -= 1
            parts.metrics.in_flight.dec()
            self._record(exchange)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, exchange: Exchange) -> None:
        """Pass an admitted request on; raises RequestError for one that is not."""
        parts = self._parts
        if parts.gate.is_closed and exchange.route != ALIVE:
            raise RequestError("The service is being stopped.", remedy="Ask another instance.", code="draining")
        exchange.is_repeatable |= exchange.route in self._endpoints
        caller = parts.guard.admit(scope, exchange) if parts.guard is not None else Caller()
        body = b""
        try:
            scope["state"][PASSED] = parts.guard is not None
            if parts.guard is not None:
                _identify(scope, caller)
            if parts.gather is not None and (scope["method"], scope["path"]) == ("GET", METRICS):
                await exchange.reply(send, render(await parts.gather()), media_type=CONTENT_TYPE)
                return
            body = await self._bodies.read(scope, receive)
            exchange.bytes_in = len(body)
            watched = exchange.watch(send, before_start=self._quota_of(caller, exchange))
            forwarded = self._forwarder.forward(scope, Replay(body, receive), watched, exchange=exchange)
            await (_probe(forwarded) if exchange.route == READY else forwarded)
        finally:
            self._bodies.release(body)
            if parts.guard is not None:
                parts.guard.leave(caller, cells=exchange.cells)

    def _quota_of(self, caller: Caller, exchange: Exchange) -> Callable[[], None]:
        """Return what adds the headers about the quota to an answer, once its number of cells is known."""

        def add() -> None:
            """Add the headers."""
            if self._parts.guard is not None:
                exchange.headers |= self._parts.guard.quota_headers(caller, cells=exchange.cells)

        return add

    def _record(self, exchange: Exchange) -> None:
        """Count and log a request that has been answered, or has failed."""
        metrics, seconds = self._parts.metrics, self._parts.clock() - exchange.started
        exchange.status = exchange.status or 500  # an exception is on its way to the handler outside
        metrics.requests.labels(exchange.route, str(exchange.status)).inc()
        metrics.seconds.labels(exchange.route).observe(seconds)
        if exchange.code:
            metrics.rejections.labels(exchange.code).inc()
        if exchange.cells:
            metrics.cells.labels(exchange.route, exchange.model).inc(exchange.cells)
        metrics.bytes_in.inc(exchange.bytes_in)
        metrics.bytes_out.inc(exchange.bytes_out)
        self._log.write(exchange, seconds=seconds)


async def _probe(forwarded: Coroutine[None, None, None]) -> None:
    """Wait for the answer to a probe; raises RequestError if it takes long, as while no replica has a model."""
    try:
        async with asyncio.timeout(READY_S):
            await forwarded
    except TimeoutError as error:
        raise RequestError(
            f"No replica has answered within {READY_S:g} s.",
            remedy="Wait until the model is loaded.",
            code="model_not_ready",
        ) from error


async def refuse_websocket(scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a WebSocket: with a problem if the server can send one, else by closing."""
    await receive()  # websocket.connect
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": 1003, "reason": "this service answers HTTP only"})
        return

    async def as_denial(message: dict[str, object]) -> None:
        """Send a message of an HTTP answer as one that denies a WebSocket."""
        await send({**message, "type": f"websocket.{message['type']}"})

    _, exchange = begin({**scope, "method": "WS"}, routes=frozenset(), now=0.0)
    error = RequestError("This service has no WebSocket.", remedy="Send HTTP.", code="unsupported_protocol")
    await exchange.refuse(as_denial, error)  # type: ignore[arg-type]


def _identify(scope: Scope, caller: Caller) -> None:
    """Give the application who asks, and keep the key from it."""
    scope["headers"] = [(name, value) for name, value in scope["headers"] if name.lower() != b"authorization"]
    scope["state"] |= {"key_id": caller.key_id, "key_owner": caller.owner, "caller_class": caller.allowance.kind}
    scope["state"]["allowed_models"] = caller.allowance.models
