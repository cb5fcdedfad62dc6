"""The batcher answers each request once, isolates what fails and forgets who left; gates decide, not sleeps."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any

import numpy as np
import pytest

from cytoray.errors import RequestError, ServingError
from cytoray.serving.batching.batcher import Batcher, Done, Part
from cytoray.serving.batching.config import BatchingConfig
from cytoray.serving.batching.queues import Work


class Clock:
    """A clock that moves only when it is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Model:
    """Squares cells, each with as many tokens as it says; waits at a gate, fails on 13, holds at most ``most``."""

    def __init__(self, *, most: int = 10**9) -> None:
        self.batches: list[list[int]] = []
        self.most = most
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def __call__(self, kind: Hashable, parts: Sequence[Part[list[int]]]) -> list[list[int]]:
        given = [
            [part.item[row] for row in (range(len(part.item)) if part.rows is None else part.rows)] for part in parts
        ]
        cells = [cell for cells in given for cell in cells]
        self.batches.append(sorted(cells))
        self.entered.set()
        assert self.gate.wait(20)
        if 13 in cells:
            raise ArithmeticError("thirteen")
        if len(cells) > self.most:
            raise MemoryError
        return [[cell**2 for cell in cells] for cells in given]


def work(*cells: int, **options: Any) -> Work[list[int]]:
    return Work(list(cells), "squares", np.array(cells, np.int64), **options)


def squares(done: Done[list[int]]) -> list[int]:
    """The results in the order of the request."""
    found: dict[int, int] = {}
    for rows, result in done.parts:
        found |= dict(zip(range(len(result)) if rows is None else rows.tolist(), result, strict=True))
    assert sum(len(result) for _, result in done.parts) == len(found)
    return [found[row] for row in sorted(found)]


Scenario = Callable[[Batcher[list[int]], Model, Clock], Awaitable[None]]


def run(scenario: Scenario, *, model: Model | None = None, **config: Any) -> Model:
    model, clock = model or Model(), Clock()

    async def main() -> None:
        batcher: Batcher[list[int]] = Batcher(model, config=BatchingConfig(**config), clock=clock)
        try:
            await asyncio.wait_for(scenario(batcher, model, clock), 20)
        finally:
            model.gate.set()
            await batcher.close()

    asyncio.run(main())
    return model


async def block(batcher: Batcher[list[int]], model: Model) -> asyncio.Task[Any]:
    """Occupy the model with the cell 1 and shut the gate behind it."""
    model.gate.clear()
    model.entered.clear()
    first = asyncio.create_task(batcher.submit(work(1)))
    await asyncio.to_thread(model.entered.wait, 20)
    return first


async def queue(batcher: Batcher[list[int]], *works: Work[list[int]]) -> list[asyncio.Task[Any]]:
    """Submit requests and return once all of them are queued."""
    tasks = [asyncio.create_task(batcher.submit(one)) for one in works]
    await asyncio.sleep(0)
    return tasks


def test_a_lone_request_waits_for_nobody() -> None:
    async def scenario(batcher: Batcher[list[int]], model: Model, clock: Clock) -> None:
        assert squares(await batcher.submit(work(7))) == [49]

    assert run(scenario).batches == [[7]]


def test_cells_of_similar_length_go_together_and_come_back_in_order() -> None:
    async def scenario(batcher: Batcher[list[int]], model: Model, clock: Clock) -> None:
        first = await block(batcher, model)
        tasks = await queue(batcher, work(1000, 20, 1001, 21), work(1002), work(22, 20))
        model.gate.set()
        assert [squares(done) for done in await asyncio.gather(*tasks)] == [
            [1000**2, 20**2, 1001**2, 21**2], [1002**2], [22**2, 20**2],
        ]  # fmt: skip
        await first

    batches = run(scenario).batches
    assert sorted(batches[1:]) == [[20, 20, 21, 22], [1000, 1001, 1002]]


def test_a_large_request_is_answered_in_several_batches() -> None:
    async def scenario(batcher: Batcher[list[int]], model: Model, clock: Clock) -> None:
        cells = [100 + number % 3 for number in range(50)]
        assert squares(await batcher.submit(work(*cells))) == [cell**2 for cell in cells]

    batches = run(scenario, max_batch_tokens=1030).batches
    assert [len(batch) for batch in batches] == [10] * 5


def test_a_cell_above_the_budget_is_alone() -> None:
    async def scenario(batcher: Batcher[list[int]], model: Model, clock: Clock) -> None:
        assert squares(await batcher.submit(work(5000, 5000))) == [5000**2] * 2

    assert run(scenario, max_batch_tokens=1000).batches == [[5000], [5000]]


def test_a_failing_request_fails_alone() -> None:
    async def scenario(batcher: Batcher[list[int]], model: Model, clock: Clock) -> None:
        first = await block(batcher, model)
        tasks = await queue(batcher, work(12), work(14), work(14, 13, 12), work(12, 14), work(13))
        model.gate.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [squares(outcomes[at]) for at in (0, 1, 3)] == [[144], [196], [144, 196]]
        assert [str(outcomes[at]) for at in (2, 4)] == ["thirteen"] * 2
        assert squares(await batcher.submit(work(9))) == [81]  # and the batcher lives on
        found = batcher.stats.snapshot()
        assert (found["answered"], found["failed"], found["queued_cells"]) == (5, 2, 0)
        await first

    assert len(run(scenario, max_batch_tokens=10_000).batches) < 12


def test_a_batch_that_does_not_fit_into_memory_is_divided_and_later_ones_are_smaller() -> None:
    async def scenario(batcher: Batcher[list[int]], model: Model, clock: Clock) -> None:
        assert squares(await batcher.submit(work(*[100] * 32))) == [100**2] * 32
        assert batcher.stats.out_of_memory == 3
        assert squares(await batcher.submit(work(*[100] * 32))) == [100**2] * 32
        assert batcher.stats.out_of_memory == 3

    run(scenario, model=Model(most=8))


def test_a_cell_that_never_fits_fails() -> None:
    async def scenario(batcher: Batcher[list[int]], model: Model, clock: Clock) -> None:
        with pytest.raises(MemoryError):
            await batcher.submit(work(100, 100))
        assert batcher.stats.snapshot()["queued_cells"] == 0

    run(scenario, model=Model(most=0))


def test_whoever_left_is_not_computed() -> None:
    async def scenario(batcher: Batcher[list[int]], model: Model, clock: Clock) -> None:
        first = await block(batcher, model)
        stays, leaves = await queue(batcher, work(20), work(21, 300))
        leaves.cancel()
        await asyncio.sleep(0)
        model.gate.set()
        assert [squares(done) for done in await asyncio.gather(first, stays)] == [[1], [400]]
        assert batcher.stats.cancelled == 1

    assert run(scenario).batches == [[1], [20]]


def test_whoever_leaves_a_large_request_leaves_the_rest_of_it_uncomputed() -> None:
    async def scenario(batcher: Batcher[list[int]], model: Model, clock: Clock) -> None:
        model.gate.clear()
        (large,) = await queue(batcher, work(*[100] * 50))
        await asyncio.to_thread(model.entered.wait, 20)
        large.cancel()
        await asyncio.sleep(0)
        model.gate.set()
        assert squares(await batcher.submit(work(2))) == [4]

    assert run(scenario, max_batch_tokens=1000).batches == [[100] * 10, [2]]


def test_a_deadline_that_passed_in_the_queue_is_answered_before_the_next_batch() -> None:
    async def scenario(batcher: Batcher[list[int]], model: Model, clock: Clock) -> None:
        first = await block(batcher, model)
        late, early = await queue(batcher, work(20, deadline=clock.now + 5), work(21, deadline=clock.now + 5000))
        clock.now += 10
        model.gate.set()
        with pytest.raises(RequestError, match="After waiting for 10 s") as refused:
            await late
        assert refused.value.code == "deadline_exceeded"
        assert squares(await early) == [441]
        await first

    assert run(scenario).batches == [[1], [21]]


def test_a_wrong_number_of_results_fails_the_requests_not_the_batcher() -> None:
    async def main() -> None:
        batcher: Batcher[list[int]] = Batcher(lambda kind, parts: [])
        for _ in range(2):
            with pytest.raises(AssertionError, match="one result for each part"):
                await asyncio.wait_for(batcher.submit(work(1)), 20)
        await batcher.close()

    asyncio.run(main())


def test_health_is_progress_not_the_age_of_requests() -> None:
    async def scenario(batcher: Batcher[list[int]], model: Model, clock: Clock) -> None:
        first = await block(batcher, model)
        waiting = await queue(batcher, work(20))
        clock.now += 59
        batcher.check()
        first.cancel()  # the thread may hang although its client has left
        await asyncio.sleep(0)
        clock.now += 2
        with pytest.raises(ServingError, match="No progress for 61 s"):
            batcher.check()
        model.gate.set()
        await asyncio.gather(*waiting)
        clock.now += 1000
        batcher.check()

    run(scenario)


def test_a_service_may_be_busy_for_longer_than_a_batch_may() -> None:
    clock, entered, permits = Clock(), threading.Semaphore(0), threading.Semaphore(0)

    def answer(kind: Hashable, parts: Sequence[Part[list[int]]]) -> list[int]:
        entered.release()
        assert permits.acquire(timeout=20)
        return [0 for _ in parts]

    async def main() -> None:
        config = BatchingConfig(max_batch_tokens=100)
        batcher: Batcher[list[int]] = Batcher(answer, config=config, clock=clock)
        waiting = await queue(batcher, *(work(100) for _ in range(10)))
        for _ in range(10):
            await asyncio.to_thread(entered.acquire)
            clock.now += 50
            batcher.check()
            permits.release()
        await asyncio.gather(*waiting)
        await batcher.close()

    asyncio.run(main())


def test_two_threads_run_batches_at_the_same_time() -> None:
    meeting = threading.Barrier(2, timeout=20)

    def meet(kind: Hashable, parts: Sequence[Part[list[int]]]) -> list[int]:
        meeting.wait()
        return [0 for _ in parts]

    async def main() -> None:
        batcher: Batcher[list[int]] = Batcher(meet, config=BatchingConfig(parallel_batches=2))
        await asyncio.wait_for(asyncio.gather(*(batcher.submit(work(1)) for _ in range(2))), 20)
        await batcher.close()

    asyncio.run(main())


def test_draining_answers_what_was_admitted_and_refuses_the_rest() -> None:
    async def scenario(batcher: Batcher[list[int]], model: Model, clock: Clock) -> None:
        tasks = [await block(batcher, model), *await queue(batcher, work(20), work(500))]
        drained = asyncio.create_task(batcher.drain())
        await asyncio.sleep(0)
        with pytest.raises(ServingError, match="shutting down"):
            await batcher.submit(work(3))
        assert not drained.done()
        model.gate.set()
        await drained
        assert [squares(task.result()) for task in tasks] == [[1], [400], [250_000]]

    run(scenario)


def test_closing_answers_those_who_wait_and_refuses_those_who_come() -> None:
    async def scenario(batcher: Batcher[list[int]], model: Model, clock: Clock) -> None:
        tasks = [await block(batcher, model), *await queue(batcher, work(2))]
        await batcher.close()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ServingError, ServingError]
        with pytest.raises(ServingError, match="stopped"):
            await batcher.submit(work(3))
        with pytest.raises(ServingError, match="stopped"):
            batcher.check()

    run(scenario)
