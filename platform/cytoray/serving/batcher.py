"""Combine waiting requests into batches whenever the model is free; a bad request does not fail its neighbours."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from cytoray.errors import ServingError

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Done(Generic[Result]):
    """A result, with the seconds it waited for the model and the seconds its batch ran."""

    result: Result
    queued_s: float
    ran_s: float


@dataclass(frozen=True)
class _Waiting(Generic[Item, Result]):
    item: Item
    cost: int
    answer: asyncio.Future[Done[Result]]
    since: float


class Batcher(Generic[Item, Result]):
    """A queue whose items are passed to ``run(items) -> results``, in one thread and in batches of limited cost.

    A batch is formed only when the thread is free, so batches grow under load and an idle service answers a single
    request at once. First come, first served; an item above the budget is run alone. Cancelled items are dropped.
    """

    def __init__(
        self, run: Callable[[Sequence[Item]], Sequence[Result]], *, cost: Callable[[Item], int], budget: int
    ) -> None:
        self._run = run
        self._cost = cost
        self._budget = budget
        self._queue: deque[_Waiting[Item, Result]] = deque()
        self._running: list[_Waiting[Item, Result]] = []
        self._running_since: float | None = None
        self._arrival = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cytoray-batch")
        self._loop: asyncio.Task[None] | None = None
        self._closed = False

    async def submit(self, item: Item) -> Done[Result]:
        """Queue ``item`` and wait for its result; raises what ``run`` raised for this item."""
        self._refuse_if_stopped()
        if self._loop is None:
            self._loop = asyncio.create_task(self._serve(), name="cytoray-batcher")
        clock = asyncio.get_running_loop()
        waiting = _Waiting[Item, Result](item, self._cost(item), clock.create_future(), clock.time())
        self._queue.append(waiting)
        self._arrival.set()
        return await waiting.answer

    def check(self, *, max_age_s: float) -> None:
        """Raise ServingError if the loop has died, or if a batch or a request has been pending for longer than this."""
        self._refuse_if_stopped()
        starts = [waiting.since for waiting in self._queue if not waiting.answer.done()]
        if self._running_since is not None:  # counted even if all its clients have given up: the thread may hang
            starts.append(self._running_since)
        age_s = asyncio.get_running_loop().time() - min(starts) if starts else 0.0
        if age_s > max_age_s:
            raise ServingError(f"Work has been pending for {age_s:.0f} s.", remedy="Replace this replica.")

    async def close(self) -> None:
        """Stop; requests that are still waiting get a ServingError."""
        self._closed = True
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.wait([self._loop])
        for waiting in (*self._running, *self._queue):
            _settle(waiting, ServingError("The service is shutting down.", remedy="Send the request again."))
        self._queue.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _refuse_if_stopped(self) -> None:
        if self._closed or (self._loop is not None and self._loop.done()):
            raise ServingError("The batcher of this replica has stopped.", remedy="Send the request again.")

    async def _serve(self) -> None:
        while True:
            await self._arrival.wait()
            self._running = self._cut()
            if self._running:
                await self._answer(self._running)
            else:
                self._arrival.clear()

    def _cut(self) -> list[_Waiting[Item, Result]]:
        """Take the next batch off the queue, oldest first."""
        batch: list[_Waiting[Item, Result]] = []
        spent = 0
        while self._queue:
            if self._queue[0].answer.done():  # its client has disconnected
                self._queue.popleft()
                continue
            spent += self._queue[0].cost
            if batch and spent > self._budget:
                break
            batch.append(self._queue.popleft())
        return batch

    async def _answer(self, batch: Sequence[_Waiting[Item, Result]]) -> None:
        """Run a batch and deliver its results; if it fails, run its items one by one."""
        clock = asyncio.get_running_loop()
        self._running_since = started = clock.time()
        job = clock.run_in_executor(self._thread, self._run_all, [waiting.item for waiting in batch])
        await asyncio.wait([job])  # not `await job`, which would raise the exception that is to be passed on
        self._running_since = None
        failure = job.exception()
        if failure is None:
            ran_s = clock.time() - started
            for waiting, result in zip(batch, job.result(), strict=True):
                _settle(waiting, Done(result, started - waiting.since, ran_s))
        elif len(batch) == 1:
            _settle(batch[0], failure)
        else:
            for waiting in batch:
                if not waiting.answer.done():
                    await self._answer([waiting])

    def _run_all(self, items: Sequence[Item]) -> Sequence[Result]:
        results = self._run(items)
        assert len(results) == len(items), "run must return one result for each item"
        return results


def _settle(waiting: _Waiting[Item, Result], outcome: Done[Result] | BaseException) -> None:
    """Deliver an outcome unless the request was cancelled."""
    if waiting.answer.done():
        return
    if isinstance(outcome, BaseException):
        waiting.answer.set_exception(outcome)
    else:
        waiting.answer.set_result(outcome)
