"""Connections to one service: requests are sent again after failures that may pass, until a deadline."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pydantic_core

from cytoray.serving.client.failures import Failure, failure_of, failure_to_connect
from cytoray.serving.client.pace import Pace
from cytoray.serving.client.settings import Settings
from cytoray.serving.payloads.media import JSON

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
_CONNECT_S = 5.0  # for which a service that has never answered is waited for
_FITTING_PAUSE_S = 1.0
_OUTSIDE_ATTEMPTS = 5
_PART_BYTES = 2**20


@dataclass(frozen=True)
class Sent:
    """One request."""

    method: str
    route: str
    content: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    num_cells: int = 0


class Connection:
    """The connections of a client, and whether the service has answered any request."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        limits = httpx.Limits(max_connections=settings.parallel, max_keepalive_connections=settings.parallel)
        self._http = httpx.AsyncClient(
            base_url=settings.url.rstrip("/"),
            timeout=httpx.Timeout(settings.timeout, pool=None),
            headers=settings.headers,
            trust_env=False,
            limits=limits,
            transport=settings.transport,
        )
        self._is_known = False  # the service has answered before

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def get(self, route: str) -> dict[str, Any]:
        """Return a JSON document of the service."""
        response = await self.ask(Sent("GET", route, headers={"Accept": JSON}), Pace(1))
        found: dict[str, Any] = pydantic_core.from_json(response.content)
        return found

    async def post(self, route: str, content: bytes) -> dict[str, Any]:
        """Return the JSON answer to a JSON request that is not about cells."""
        response = await self.ask(Sent("POST", route, content, {"Content-Type": JSON, "Accept": JSON}), Pace(1))
        found: dict[str, Any] = pydantic_core.from_json(response.content)
        return found

    async def outside(
        self, method: str, url: str, *, file: Path | None = None, start: int = 0, stop: int = 0
    ) -> httpx.Response:
        """Send a file to the store of the service, or ask it for bytes, by a URL that was signed for this."""
        headers = {"Range": f"bytes={start}-{stop - 1}"} if stop else {}
        if file is not None:
            headers["Content-Length"] = str(file.stat().st_size)
        async with httpx.AsyncClient(timeout=self.settings.timeout, trust_env=False) as http:
            for attempt in range(_OUTSIDE_ATTEMPTS):
                try:
                    content = None if file is None else _content(file)
                    response = await http.request(method, url, content=content, headers=headers)
                except httpx.TransportError as error:
                    failure = failure_to_connect(error, url.partition("?")[0])
                else:
                    if response.is_success:
                        return response
                    failure = failure_of(response)
                await asyncio.sleep(_pause(attempt))
        raise failure.error

    async def ask(self, sent: Sent, pace: Pace) -> httpx.Response:
        """Return the answer to a request; raises Failure if it is refused, or not answered by the deadline."""
        failed_at, attempt = 0.0, 0  # of the first failure
        headers = {"Idempotency-Key": uuid.uuid4().hex, **sent.headers}
        while True:
            try:
                async with pace.turn():
                    response = await self._send(sent, headers)
                pace.answered()
                return response
            except Failure as failure:
                kind = failure.for_cells(sent.num_cells)
                if kind in ("final", "smaller"):
                    raise
                if kind == "busy":
                    pace.refused(failure.wait_s)
                pause = _FITTING_PAUSE_S if kind == "fitting" else _pause(attempt)
                pause, now = max(pause, failure.wait_s), time.monotonic()
                failed_at = failed_at or now
                if now + pause > failed_at + self._time_for(failure):
                    raise
            await asyncio.sleep(pause)
            attempt += 1

    def _time_for(self, failure: Failure) -> float:
        """Return for how many seconds a request is sent again after a failure."""
        if failure.kind == "fitting":
            return self.settings.patience
        if not failure.reached and not self._is_known:
            return min(_CONNECT_S, self.settings.deadline)
        return self.settings.deadline

    async def _send(self, sent: Sent, headers: Mapping[str, str]) -> httpx.Response:
        """Send a request once; raises Failure if it is not answered with success."""
        content = sent.content or None
        try:
            response = await self._http.request(sent.method, sent.route, content=content, headers=headers)
        except httpx.TransportError as error:
            raise failure_to_connect(error, self.settings.url) from error
        if not response.is_success and not (response.is_redirect and "Range" in headers):
            raise failure_of(response)
        content_type = response.headers.get("content-type", "").partition(";")[0]
        if "Accept" in headers and content_type not in (headers["Accept"], JSON):
            raise failure_of(response)  # a page of another server
        self._is_known = True
        return response


async def _content(file: Path) -> AsyncIterator[bytes]:
    """Yield the content of a file in parts."""
    with file.open("rb") as opened:
        while part := await asyncio.to_thread(opened.read, _PART_BYTES):
            yield part


def _pause(attempt: int) -> float:
    """Return the seconds before the next attempt, longer each time and different for each request."""
    return min(_FIRST_PAUSE_S * 2.0**attempt, _LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)
