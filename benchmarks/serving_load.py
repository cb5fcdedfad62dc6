"""Load on a service over HTTP: a fixed number of clients that wait for their answers, or requests at random times.

Requests are bytes that are made beforehand, and answers are kept as bytes: the generator shares a core with the proxy.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from cytoray.serving.payloads.media import JSON

READ_BYTES = 2**26


@dataclass(frozen=True)
class Body:
    """A request that can be sent many times."""

    number: int  # of its answer
    content: bytes
    num_cells: int
    media_type: str = JSON


@dataclass
class Load:
    """What came of requests: seconds and cells of those answered, seconds of those refused, an answer to each body."""

    seconds: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    cells: int = 0
    elapsed_s: float = 0.0
    answers: dict[int, bytes] = field(default_factory=dict)
    without_retry_after: int = 0

    @property
    def cells_per_s(self) -> float:
        """Cells answered per second."""
        return self.cells / self.elapsed_s

    def ms(self, share: float) -> float:
        """Return a quantile of the latency of answered requests in milliseconds."""
        return quantile_ms(self.seconds, share)


def quantile_ms(seconds: Sequence[float], share: float) -> float:
    """Return a quantile in milliseconds; NaN of nothing."""
    ordered = sorted(seconds)
    return round(1e3 * ordered[min(int(share * len(ordered)), len(ordered) - 1)], 2) if ordered else float("nan")


class Connection:
    """One HTTP connection that is kept alive."""

    def __init__(self, url: str, *, accept: str = JSON) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._accept = accept
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, route: str, body: Body) -> tuple[int, dict[str, str], bytes]:
        """Send a request; returns status, headers and content."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port, limit=READ_BYTES)
        reader, writer = self._streams
        head = (
            f"POST {route} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: {body.media_type}\r\n"
            f"Accept: {self._accept}\r\nContent-Length: {len(body.content)}\r\n\r\n"
        )
        writer.write(head.encode() + body.content)
        await writer.drain()
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        content = await _read_chunks(reader) if "content-length" not in headers else b""
        content = content or await reader.readexactly(int(headers.get("content-length", 0)))
        if headers.get("connection") == "close":
            self.close()
        return int(first.split()[1]), headers, content

    def close(self) -> None:
        """Close the connection; the next request opens one."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    """Read a body with chunked encoding."""
    chunks: list[bytes] = []
    while size := int(await reader.readuntil(b"\r\n"), 16):
        chunks.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readexactly(2)
    return b"".join(chunks)


async def ask(connection: Connection, route: str, body: Body, load: Load, *, due: float | None = None) -> None:
    """Send one request and record its answer; its latency counts from ``due``, by default from now."""
    started = time.perf_counter() if due is None else due
    status, headers, content = await connection.post(route, body)
    seconds = time.perf_counter() - started
    if status == 200:
        load.seconds.append(seconds)
        load.cells += body.num_cells
        load.answers[body.number] = content
    elif status in (429, 503, 504):
        load.refused_s.append(seconds)
        load.without_retry_after += status != 504 and "retry-after" not in headers
    else:
        raise RuntimeError(f"HTTP {status}: {content[:500]!r}")


async def run_closed(url: str, route: str, bodies: Sequence[Body], *, clients: int, num: int, accept: str) -> Load:
    """Send ``num`` requests from ``clients`` clients, each of which sends its next one after an answer."""
    load, connections = Load(), [Connection(url, accept=accept) for _ in range(clients)]
    numbers = iter(range(num))

    async def work(connection: Connection) -> None:
        """Send requests while there are any left."""
        for number in numbers:
            await ask(connection, route, bodies[number % len(bodies)], load)

    started = time.perf_counter()
    await asyncio.gather(*(work(connection) for connection in connections))
    load.elapsed_s = time.perf_counter() - started
    for connection in connections:
        connection.close()
    return load


async def run_open(url: str, route: str, bodies: Sequence[Body], *, rate: float, num: int, accept: str) -> Load:
    """Send ``num`` requests, ``rate`` per second at random (Poisson) times, whether or not others were answered."""
    load, spare = Load(), [Connection(url, accept=accept)]
    rng, tasks = random.Random(0), []

    async def send(body: Body, due: float) -> None:
        """Send a request on a connection that nobody uses."""
        connection = spare.pop() if spare else Connection(url, accept=accept)
        await ask(connection, route, body, load, due=due)
        spare.append(connection)

    started = due = time.perf_counter()
    for number in range(num):
        due += rng.expovariate(rate)
        await asyncio.sleep(max(due - time.perf_counter(), 0))
        tasks.append(asyncio.create_task(send(bodies[number % len(bodies)], due)))
    await asyncio.gather(*tasks)
    load.elapsed_s = time.perf_counter() - started
    for connection in spare:
        connection.close()
    return load
