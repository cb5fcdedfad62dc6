"""Answer requests in batches: threads run what the scheduler chooses, and each request gets its parts in one answer.

A thread that is free takes the next batch itself, as late as possible: an idle model answers a single cell at once,
and batches grow while it is busy. An exception in a batch fails only the request that causes it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from cytoray.errors import RequestError, ServingError
from cytoray.serving.batching.config import BatchingConfig
from cytoray.serving.batching.forming import Batch
from cytoray.serving.batching.outlook import Outlook
from cytoray.serving.batching.queues import Int64, Ticket, Work
from cytoray.serving.batching.refusals import given_up, stopped
from cytoray.serving.batching.scheduler import Scheduler
from cytoray.serving.batching.stats import BatcherStats

Item = TypeVar("Item")
Result = TypeVar("Result")
PATIENCE = 10  # times its predicted duration that a batch may take before the replica is unhealthy


@dataclass(frozen=True)
class Part(Generic[Item]):
    """Some cells of a request."""

    item: Item
    rows: Int64 | None  # None for all


@dataclass(frozen=True)
class Done(Generic[Result]):
    """The results of a request's parts, the seconds until the first of them began, and from there to the last."""

    parts: tuple[tuple[Int64 | None, Result], ...]  # rows, None for all, and the result for them
    queued_s: float
    ran_s: float


Run = Callable[[Hashable, Sequence[Part[Any]]], Sequence[Any]]  # (kind, parts) -> a result for each part


@dataclass(eq=False)
class _Pending(Generic[Item]):
    """A request that waits for its answer."""

    ticket: Ticket[Item]
    answer: asyncio.Future[Done[Any]]
    loop: asyncio.AbstractEventLoop
    left: int  # cells without a result
    parts: list[tuple[Int64 | None, Any]] = field(default_factory=list)
    started: float | None = None


@dataclass(eq=False)
class _Running(Generic[Item]):
    batch: Batch[Item]
    since: float
    seconds: float = 0.0


class Batcher(Generic[Item]):
    """A queue in front of ``run``, which is called in threads of the batcher with parts of several requests."""

    def __init__(
        self,
        run: Run,
        *,
        config: BatchingConfig = BatchingConfig(),  # noqa: B008 - frozen
        clock: Callable[[], float] = time.monotonic,
        too_large: tuple[type[BaseException], ...] = (MemoryError,),
    ) -> None:
        """``too_large``: exceptions that a smaller batch avoids."""
        self.stats = BatcherStats(gauges=self._gauges)
        self.clock = clock
        self._run, self._config, self._too_large = run, config, too_large
        self._scheduler: Scheduler[Item] = Scheduler(config)
        self._pending: dict[Ticket[Item], _Pending[Item]] = {}
        self._running: set[_Running[Item]] = set()
        self._progress = clock()  # when a batch last began or ended
        self._lock = threading.RLock()
        self._is_dispatching = False
        self._refusal: str | None = None  # why no request is accepted any more
        self._is_closed = False
        self._threads = ThreadPoolExecutor(config.parallel_batches, thread_name_prefix="cytoray-batch")

    async def submit(self, work: Work[Item]) -> Done[Any]:
        """Queue a request and wait for its results.

        Raises RequestError if the request would not be answered in time, and what ``run`` raised for it. A cancelled
        request is not computed any further.
        """
        loop = asyncio.get_running_loop()
        with self._lock:
            self._refuse_if_stopped()
            now = self.clock()
            ticket = Ticket(work, now=now)
            with _counted(self.stats):
                self._scheduler.admit(ticket, now)
            pending = self._pending[ticket] = _Pending(ticket, loop.create_future(), loop, len(work.tokens))
            self._scheduler.add(ticket)
            self.stats.requests += 1
            self._dispatch()
        try:
            return await pending.answer
        finally:
            with self._lock:
                if self._pending.pop(ticket, None) is not None:  # cancelled, as the caller left or a time ended
                    self._scheduler.drop(ticket)
                    self.stats.cancelled += 1

    @contextmanager
    def expecting(self, outlook: Outlook) -> Iterator[None]:
        """Count a request as work while it is read in the block; raises RequestError (`overloaded`) before that."""
        with self._lock, _counted(self.stats):
            self._scheduler.expect(outlook, self.clock())
        try:
            yield
        finally:
            with self._lock:
                self._scheduler.forget(outlook)

    @property
    def is_busy(self) -> bool:
        """Whether a further request would wait for others."""
        with self._lock:
            return self._scheduler.is_busy

    def check(self) -> None:
        """Raise ServingError if the batcher was closed, or if a batch makes no progress."""
        with self._lock:
            self._refuse_if_stopped()
            now = self.clock()
            for running in self._running:
                self._check_progress(now - running.since, PATIENCE * running.batch.predicted_s)
            if not self._running and self._scheduler.has_work:
                self._check_progress(now - self._progress, 0.0)

    async def drain(self) -> None:
        """Accept no further requests, and wait until those that were admitted are answered."""
        with self._lock:
            self._refusal = self._refusal or "The service is shutting down."
            answers = [pending.answer for pending in self._pending.values()]
        if answers:
            await asyncio.wait(answers)

    async def close(self) -> None:
        """Stop; requests that still wait get a ServingError."""
        with self._lock:
            self._refusal = "The batcher of this replica has stopped."
            self._is_closed = True
            waiting = [*self._pending.values()]
            self._pending.clear()
            for pending in waiting:
                self._scheduler.drop(pending.ticket)
        for pending in waiting:
            _settle(pending, stopped("The service is shutting down."))
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _refuse_if_stopped(self) -> None:
        if self._refusal is not None:
            raise stopped(self._refusal)

    def _check_progress(self, elapsed_s: float, expected_s: float) -> None:
        if elapsed_s > self._config.stall_s + expected_s:
            raise ServingError(
                f"No progress for {elapsed_s:.0f} s, while work is pending.", remedy="Replace this replica."
            )

    def _dispatch(self) -> None:
        """Start batches while threads are free; called under the lock."""
        if self._is_dispatching:  # by a batch that ended while it was started below
            return
        self._is_dispatching = True
        try:
            while not self._is_closed and len(self._running) < self._config.parallel_batches:
                batch = self._scheduler.next(self.clock())
                self._give_up()
                if batch is None:
                    break
                self._progress = self.clock()
                running = _Running(batch, self._progress)
                self._running.add(running)
                self._threads.submit(self._answer, running).add_done_callback(partial(self._finish, running))
        finally:
            self._is_dispatching = False

    def _answer(self, running: _Running[Item]) -> Sequence[Any]:
        """Run a batch, in a thread."""
        running.since = self.clock()
        parts = [Part(take.ticket.work.item, take.all_or_rows) for take in running.batch.takes]
        results = self._run(running.batch.kind, parts)
        assert len(results) == len(parts), "run must return one result for each part"
        running.seconds = self.clock() - running.since
        return results

    def _finish(self, running: _Running[Item], job: Future[Sequence[Any]]) -> None:
        """Start the next batch, and hand out the results of this one; called in the thread that ran it."""
        with self._lock:
            self._running.discard(running)
            self._progress = self.clock()
            if self._is_closed or job.cancelled():
                return
            failure = job.exception()
            outcomes = self._collect(running, job.result()) if failure is None else self._isolate(running, failure)
            self._dispatch()
        _deliver(outcomes)

    def _collect(self, running: _Running[Item], results: Sequence[Any]) -> list[tuple[_Pending[Item], Any]]:
        """Add results to their requests; returns the requests that are complete, with their answers."""
        batch, outcomes = running.batch, []
        self._scheduler.done(batch, running.seconds, self._progress)
        self._count(running)
        for take, result in zip(batch.takes, results, strict=True):
            pending = self._pending.get(take.ticket)
            if pending is None:
                continue
            if pending.started is None:
                pending.started = running.since
            pending.parts.append((take.all_or_rows, result))
            pending.left -= len(take.rows)
            if not pending.left:
                del self._pending[take.ticket]
                self._scheduler.release(take.ticket)
                self.stats.answered += 1
                queued_s = pending.started - take.ticket.since
                outcomes.append((pending, Done(tuple(pending.parts), queued_s, self._progress - pending.started)))
        return outcomes

    def _isolate(self, running: _Running[Item], failure: BaseException) -> list[tuple[_Pending[Item], Any]]:
        """Queue the halves of a batch that failed, or fail its only request."""
        is_too_large = isinstance(failure, self._too_large)
        self.stats.failed_batches += 1
        self.stats.out_of_memory += is_too_large
        if self._scheduler.retry(running.batch, is_too_large=is_too_large):
            self.stats.split_batches += 1
            return []
        ticket = running.batch.takes[0].ticket
        pending = self._pending.pop(ticket, None)
        if pending is None:
            return []
        self._scheduler.drop(ticket)
        self.stats.failed += 1
        return [(pending, failure)]

    def _give_up(self) -> None:
        """Answer the requests that the scheduler gave up."""
        outcomes: list[tuple[_Pending[Item], Any]] = []
        while self._scheduler.lost:
            pending = self._pending.pop(self._scheduler.lost.pop(), None)
            if pending is not None:
                self.stats.deadline_exceeded += 1
                outcomes.append((pending, given_up(self.clock() - pending.ticket.since)))
        _deliver(outcomes)

    def _count(self, running: _Running[Item]) -> None:
        stats, batch = self.stats, running.batch
        stats.batches += 1
        stats.cells += batch.cells
        stats.tokens += batch.tokens
        stats.padded_tokens += batch.padded_tokens
        stats.busy_s += running.seconds
        stats.predicted_s += batch.predicted_s
        stats.prediction_error_s += abs(batch.predicted_s - running.seconds)

    def _gauges(self) -> dict[str, float]:
        with self._lock:
            scheduler, oldest = self._scheduler, self._scheduler.oldest()
            return {
                "queued_cells": float(scheduler.cells),
                "queued_tokens": float(scheduler.tokens),
                "queue_age_s": 0.0 if oldest is None else self.clock() - oldest,
                "interactive_backlog_s": scheduler.backlog_s(bulk=False),
                "bulk_backlog_s": scheduler.backlog_s(bulk=True),
                "running_batches": float(len(self._running)),
            }


@contextmanager
def _counted(stats: BatcherStats) -> Iterator[None]:
    """Count the refusals of a block."""
    try:
        yield
    except RequestError as error:
        stats.overloaded += error.code == "overloaded"
        stats.deadline_exceeded += error.code == "deadline_exceeded"
        raise


def _deliver(outcomes: Sequence[tuple[_Pending[Any], Any]]) -> None:
    """Settle requests in their event loops, with one call for each loop."""
    for loop in {pending.loop for pending, _ in outcomes}:
        own = [(pending, outcome) for pending, outcome in outcomes if pending.loop is loop]
        loop.call_soon_threadsafe(_settle_all, own)


def _settle_all(outcomes: Sequence[tuple[_Pending[Any], Any]]) -> None:
    for pending, outcome in outcomes:
        _settle(pending, outcome)


def _settle(pending: _Pending[Any], outcome: Done[Any] | BaseException) -> None:
    """Deliver an outcome unless the request was cancelled."""
    if pending.answer.done():
        return
    if isinstance(outcome, StopIteration):  # which a future does not accept
        outcome = RuntimeError(f"{type(outcome).__name__}: {outcome}")
    if isinstance(outcome, BaseException):
        pending.answer.set_exception(outcome)
    else:
        pending.answer.set_result(outcome)
