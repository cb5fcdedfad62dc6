"""A reverse proxy before an S3 server that does to requests what networks and stores do, by plan, and keeps a log.

It runs on a thread of its own. A plan is a list of faults; the first that fits a request (method, text in path and
query) and has strikes left is done to it, everything else passes untouched. Tests assert on the log that theirs fired.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Literal

from aiohttp import ClientSession, ClientTimeout, TCPConnector, web
from yarl import URL

Action = Literal[
    "status", "reset", "hang", "partial", "flip", "slow", "reset_after_apply", "drop_condition", "old_date"
]  # fmt: skip
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "te", "trailer", "upgrade"}
CHECKSUMS = ("x-amz-checksum-", "content-md5")  # taken from flipped replies: no client could see the flip then


@dataclass
class Fault:
    """What to do to the next ``n`` requests of ``method`` ('' = any) with ``key`` in their path or query."""

    do: Action
    method: str = "GET"
    key: str = ""
    n: int = 1
    status: int = 503
    code: str = "SlowDown"
    seconds: float = 60.0  # of a hang, or that the date of a reply is in the past
    fraction: float = 0.5  # of the body, before a partial reply ends
    chunk: int = 65_536  # of a slow reply
    delay: float = 0.01  # between its chunks
    ranged: bool | None = None  # only with (True) or without (False) a Range header
    skip: int = 0  # requests that fit and pass before the first strike
    fired: int = 0

    def fits(self, request: web.Request) -> bool:
        """Whether this is one of its requests; counts down what is to be skipped."""
        if self.n <= self.fired or (self.method and request.method != self.method):
            return False
        if self.key not in str(request.rel_url) or self.ranged not in (None, "Range" in request.headers):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.fired += 1
        return True


@dataclass(frozen=True)
class Seen:
    """One request as it came in, and what was done to it."""

    method: str
    path: str  # with the query
    range: str | None
    fault: Action | None


@dataclass
class FaultProxy:
    """The proxy as a test sees it."""

    upstream: str
    endpoint: str = ""
    log: list[Seen] = field(default_factory=list)
    plan: list[Fault] = field(default_factory=list)

    def set_plan(self, *faults: Fault) -> None:
        """Forget the old plan and log."""
        self.log.clear()
        self.plan = list(faults)

    def fired(self, action: Action | None = None) -> int:
        """How many requests something (or ``action``) was done to."""
        return sum(seen.fault is not None and action in (None, seen.fault) for seen in self.log)

    def requests(self, method: str, key: str = "") -> list[Seen]:
        """The requests of a method with ``key`` in their path or query."""
        return [seen for seen in self.log if seen.method == method and key in seen.path]

    def next_fault(self, request: web.Request) -> Fault | None:
        """Log a request and tell what is to be done to it."""
        fault = next((fault for fault in self.plan if fault.fits(request)), None)
        action = fault.do if fault else None
        self.log.append(Seen(request.method, str(request.rel_url), request.headers.get("Range"), action))
        return fault


@contextlib.contextmanager
def run_fault_proxy(upstream: str) -> Iterator[FaultProxy]:
    """A running proxy before the server at ``upstream`` (``http://host:port``)."""
    proxy = FaultProxy(upstream.rstrip("/"))
    ready, loop = threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        connector = TCPConnector(limit=64)
        async with ClientSession(
            auto_decompress=False, timeout=ClientTimeout(total=120), connector=connector
        ) as client:
            app = web.Application(client_max_size=2**30)  # which answers Expect: 100-continue

            async def handle(request: web.Request) -> web.StreamResponse:
                return await _handle(proxy, client, request)

            app.router.add_route("*", "/{path:.*}", handle)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            proxy.endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
            ready.set()
            await stop.wait()
            await runner.cleanup()
        hanging = asyncio.all_tasks() - {asyncio.current_task()}
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    try:
        if not ready.wait(10):
            raise RuntimeError("the fault proxy did not start")
        yield proxy
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


async def _handle(proxy: FaultProxy, client: ClientSession, request: web.Request) -> web.StreamResponse:
    """Forward one request, or do what the plan says."""
    fault = proxy.next_fault(request)
    action = fault.do if fault else None
    if fault and action == "status":
        await request.read()
        return _error(request, fault)
    if fault and action == "hang":
        await asyncio.sleep(fault.seconds)
    if action in ("reset", "hang"):
        return _abort(request)
    headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
    if action == "drop_condition":
        headers.pop("If-None-Match", None)
    # Verbatim and unread: pyarrow and boto3 send aws-chunked bodies that do not survive being put together again.
    body = request.content if request.body_exists else None
    url = URL(proxy.upstream + request.raw_path, encoded=True)  # as it came: signatures cover its escapes
    async with client.request(request.method, url, headers=headers, data=body, allow_redirects=False) as answer:
        content = await answer.read()
        if action == "reset_after_apply":
            return _abort(request)
        replied = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP}
        return await _reply(request, answer.status, replied, content, fault)


async def _reply(
    request: web.Request, status: int, headers: dict[str, str], content: bytes, fault: Fault | None
) -> web.StreamResponse:
    """Send an answer on, changed as planned."""
    action = fault.do if fault else None
    if action == "flip" and content:
        damaged = bytearray(content)
        damaged[len(damaged) // 2] ^= 1
        content = bytes(damaged)
        headers = {name: value for name, value in headers.items() if not name.lower().startswith(CHECKSUMS)}
    if fault and action == "old_date":
        headers = {name: value for name, value in headers.items() if name.lower() != "date"}
        headers["Date"] = formatdate(time.time() - fault.seconds, usegmt=True)
    if request.method != "HEAD":
        headers["Content-Length"] = str(len(content))
    response = web.StreamResponse(status=status, headers=headers)
    await response.prepare(request)
    if request.method == "HEAD":
        return response
    if fault and action == "partial":
        await response.write(content[: int(len(content) * fault.fraction)])
        return _abort(request)
    step = fault.chunk if fault and action == "slow" else max(1, len(content))
    for start in range(0, len(content), step):
        await response.write(content[start : start + step])
        if fault and action == "slow":
            await asyncio.sleep(fault.delay)
    await response.write_eof()
    return response


def _error(request: web.Request, fault: Fault) -> web.Response:
    """An S3 error document."""
    text = f"<?xml version='1.0'?><Error><Code>{fault.code}</Code><Message>By plan.</Message></Error>"
    body = b"" if request.method == "HEAD" else text.encode()
    return web.Response(status=fault.status, body=body, content_type="application/xml")


def _abort(request: web.Request) -> web.Response:
    """Cut the connection."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
