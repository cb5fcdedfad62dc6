"""Pass a request on and turn answers of Ray Serve itself, which are plain text or none at all, into problems.

A replica that dies takes its requests with it. Answers do not depend on who gives them and requests change nothing, so
another replica is asked, within the time that the request has. If that one dies as well, the request may be what kills
them: it is tried once more, alone, so that others of which the same is suspected do not die with it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.requests import ClientDisconnect

from cytoray.errors import RequestError
from cytoray.serving.edge.bodies import Replay
from cytoray.serving.edge.exchange import App, Exchange, Message, Scope, Send

PAUSE_S = 0.2  # before another replica is asked: Serve needs a moment to notice that one is gone
JSON = b"json"
SUSPECTED = 2  # replicas that were lost with a request before it is tried alone


@dataclass(frozen=True)
class Retries:
    """How often a request is sent again after its replica was lost, and until when."""

    times: int = 2
    within_s: float = 60.0


@dataclass(frozen=True)
class Forwarder:
    """Passes requests on to ``app``; ``on_retry`` is called with the reason of each retry."""

    app: App
    retries: Retries
    clock: Callable[[], float]
    on_retry: Callable[[str], None]
    _alone: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def forward(self, scope: Scope, replay: Replay, send: Send, *, exchange: Exchange) -> None:
        """Pass a request on; raises RequestError instead of an answer that is not the application's.

        Raises ClientDisconnect if the client has left before it was answered.
        """
        while True:
            suspected = self._alone if exchange.retries >= SUSPECTED else contextlib.nullcontext()
            async with suspected:
                held = _Held(send)
                replay.rewind()
                await self.app({**scope, "state": dict(scope["state"])}, replay, held)
            if held.is_answered:
                return
            if replay.is_abandoned:
                raise ClientDisconnect
            if held.status in (None, 500) and exchange.retries >= max(self.retries.times, SUSPECTED):
                raise _poison(exchange.retries + 1)
            if held.status not in (None, 500) or not self._may_repeat(exchange):
                raise _problem(held.status)
            exchange.retries += 1
            self.on_retry("replica_lost")
            await asyncio.sleep(PAUSE_S * exchange.retries)

    def _may_repeat(self, exchange: Exchange) -> bool:
        """Return whether a request can be sent once more: it changes nothing, and there is time."""
        in_time = self.clock() - exchange.started < self.retries.within_s
        return exchange.is_repeatable and in_time and exchange.retries < self.retries.times


class _Held:
    """``send`` that holds back the head of an answer until its body comes, and an answer in plain text altogether."""

    def __init__(self, send: Send) -> None:
        self.status: int | None = None  # of an answer of Ray Serve itself, which is dropped
        self.is_answered = False
        self._send = send
        self._head: Message | None = None

    async def __call__(self, message: Message) -> None:
        """Take a message of the answer."""
        if message["type"] == "http.response.start":
            if int(message["status"]) >= 400 and not _is_ours(message):
                self.status = int(message["status"])
            else:
                self._head = message
            return
        if self._head is not None:
            await self._send(self._head)
            self._head, self.is_answered = None, True
        if self.is_answered:
            await self._send(message)


def _is_ours(head: Message) -> bool:
    """Return whether the application has made this error: it answers in JSON."""
    return any(name.lower() == b"content-type" and JSON in value for name, value in head.get("headers", ()))


def _poison(losses: int) -> RequestError:
    """Return the problem of a request that replicas do not survive."""
    return RequestError(
        f"{losses} replicas have ended while they worked on this request.",
        remedy="Do not send it again as it is: report its id to the operator.",
        code="poison_request",
    )


def _problem(status: int | None) -> RequestError:
    """Return the problem for an answer that Ray Serve has given instead of the application; None if it gave none."""
    if status == 408:
        return RequestError(
            "No answer in the time that the service allows.", remedy="Send fewer cells.", code="deadline_exceeded"
        )
    if status in (429, 503):
        return RequestError(
            "More requests wait than the service accepts, or no replica is ready.",
            remedy="Send the request again after `Retry-After`.",
            code="overloaded",
        )
    if status == 404:
        return RequestError(
            "No application is deployed here.", remedy="Wait until it is, or deploy it.", code="model_not_ready"
        )
    if status is None or status >= 500:
        return RequestError(
            "The replica that worked on this request has ended.", remedy="Send the request again.", code="replica_lost"
        )
    return RequestError(f"Ray Serve has refused this request with HTTP {status}.", code="http_error")
