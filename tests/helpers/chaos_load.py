"""Load on a service: requests in turn or at a rate, each answer compared with the offline one and recorded."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import aiohttp
import numpy as np
from chaos_cells import GENES, Oracle

from cytoray.errors import CytorayError
from cytoray.serving.client import Client

ROUTE = "/v1/annotate"
JSON = {"Content-Type": "application/json"}
BROKEN = frozenset(
    (0, kind)
    for kind in ("ClientConnectorError", "ServerDisconnectedError", "ClientOSError", "ClientConnectionResetError")
)  # connections that were cut or refused
AWAY = BROKEN | {(404, "model_not_ready"), (503, "overloaded")}  # while there is no HTTP server, or one just begins
PATIENCE_S = 120.0  # for an answer; the service's own deadline is shorter


@dataclass(frozen=True)
class Record:
    """One request and its answer."""

    start: float
    seconds: float
    status: int  # 0 if the connection failed
    code: str = ""  # of a problem, or the kind of a connection's failure
    wrong: str | None = None  # how the answer differs from the offline one
    retry_after: str | None = None
    version: str = ""

    @property
    def is_good(self) -> bool:
        """Whether the answer came and is right."""
        return self.status == 200 and self.wrong is None


@dataclass(frozen=True)
class Summary:
    """The figures of a load."""

    requests: int
    failed: int
    wrong: int
    p50_ms: float
    p99_ms: float
    worst_ms: float
    codes: dict[str, int] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)


def summarise(records: list[Record]) -> Summary:
    """Return the figures of some records."""
    good = [record.seconds * 1000 for record in records if record.status == 200] or [0.0]
    codes = Counter(f"{record.status} {record.code}".strip() for record in records if record.status != 200)
    return Summary(
        requests=len(records),
        failed=sum(record.status != 200 for record in records),
        wrong=sum(record.wrong is not None for record in records),
        p50_ms=float(np.quantile(good, 0.5)),
        p99_ms=float(np.quantile(good, 0.99)),
        worst_ms=max(good),
        codes=dict(codes),
        versions=dict(Counter(record.version for record in records if record.version)),
    )


class Load:
    """Requests to a service from the beginning of the block to its end, in a thread.

    Closed loop: ``concurrency`` requests are in flight. Open loop: ``rate`` requests begin per second, at random
    times, whatever becomes of those before. ``with_client``: the bundled client sends them, with its retries.
    """

    def __init__(
        self,
        url: str,
        oracle: Oracle,
        *,
        concurrency: int = 8,
        rate: float | None = None,
        with_client: bool = False,
        headers: dict[str, str] | None = None,
        seed: int = 0,
    ) -> None:
        self.records: list[Record] = []
        self._url, self._oracle = url, oracle
        self._concurrency, self._rate, self._with_client = concurrency, rate, with_client
        self._headers = JSON | (headers or {})
        self._random = random.Random(seed)
        self._stopped = threading.Event()
        self._more = threading.Condition()
        self._thread = threading.Thread(target=self._run_clients if with_client else self._run, name="load")
        self._failure: BaseException | None = None
        self.num_good = 0  # right answers so far

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Send no more requests, and wait for the answers to those in flight."""
        self._stopped.set()
        self._thread.join(PATIENCE_S * 2)
        assert not self._thread.is_alive(), "requests are still in flight"
        if self._failure is not None:
            raise self._failure

    def wait_for(self, number: int, *, timeout_s: float = 120.0) -> None:
        """Wait until ``number`` further requests have been answered rightly."""
        aim = self.num_good + number
        with self._more:
            reached = self._more.wait_for(lambda: self.num_good >= aim or self._failure is not None, timeout_s)
        assert reached, f"{aim - self.num_good} of {number} answers have not come: {self.summary}"

    @property
    def summary(self) -> Summary:
        """The figures so far."""
        return summarise(list(self.records))

    @property
    def failures(self) -> list[Record]:
        """The requests without a right answer."""
        return [record for record in self.records if not record.is_good]

    def longest_gap(self) -> float:
        """Longest time in seconds without a right answer."""
        ends = sorted(record.start + record.seconds for record in self.records if record.is_good)
        return max((after - before for before, after in itertools.pairwise(ends)), default=0.0)

    def _add(self, record: Record) -> None:
        with self._more:
            self.records.append(record)
            self.num_good += record.is_good
            self._more.notify_all()

    def _run(self) -> None:
        try:
            asyncio.run(self._send_all())
        except BaseException as error:  # noqa: BLE001 - raised again by the test's thread
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._more:
            self._failure = error
            self._more.notify_all()

    async def _send_all(self) -> None:
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=5)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector, headers=self._headers) as session:
            if self._rate is None:
                await asyncio.gather(*(self._send_in_turn(session, start) for start in range(self._concurrency)))
                return
            flying: set[asyncio.Task[None]] = set()
            number, due = 0, time.monotonic()
            while not self._stopped.is_set():
                due += self._random.expovariate(self._rate)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                task = asyncio.create_task(self._send(session, number))
                flying.add(task)
                task.add_done_callback(flying.discard)
                number += 1
            await asyncio.gather(*flying)

    async def _send_in_turn(self, session: aiohttp.ClientSession, number: int) -> None:
        while not self._stopped.is_set():
            if not await self._send(session, number):
                await asyncio.sleep(0.05)  # as any client would that is refused: it does not count at full speed
            number += 1

    async def _send(self, session: aiohttp.ClientSession, number: int) -> bool:
        body = self._oracle.bodies[number % len(self._oracle.bodies)]
        start = time.monotonic()
        try:
            async with session.post(self._url + ROUTE, data=body) as answer:
                content = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._add(Record(start, time.monotonic() - start, 0, type(error).__name__))
            return False
        seconds, headers = time.monotonic() - start, answer.headers
        if answer.status != 200:
            retry_after, code = headers.get("retry-after"), headers.get("x-problem-code", "")
            self._add(Record(start, seconds, answer.status, code, retry_after=retry_after))
            return False
        wrong = self._oracle.find_fault(number, content)
        self._add(Record(start, seconds, 200, wrong=wrong, version=headers["x-model-version"]))
        return True

    def _run_clients(self) -> None:
        try:
            with ThreadPoolExecutor(self._concurrency, thread_name_prefix="client") as threads:
                list(threads.map(self._ask_in_turn, range(self._concurrency)))
        except BaseException as error:  # noqa: BLE001 - raised again by the test's thread
            self._fail(error)

    def _ask_in_turn(self, number: int) -> None:
        with Client(self._url) as client:
            while not self._stopped.is_set():
                self._add(self._ask(client, number))
                number += 1

    def _ask(self, client: Any, number: int) -> Record:
        start = time.monotonic()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                answer = client.annotate(GENES, self._oracle.counts[number % len(self._oracle.counts)])
        except CytorayError as error:
            return Record(start, time.monotonic() - start, 1, str(error.details.get("code", error))[:80])
        wrong = self._oracle.compare(number, answer.model_version, np.asarray(answer.embeddings), list(answer.labels))
        return Record(start, time.monotonic() - start, 200, wrong=wrong, version=answer.model_version)
