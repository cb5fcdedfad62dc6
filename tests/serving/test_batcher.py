"""The batcher gathers what waits, isolates what fails and forgets who left; no clock decides anything here."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence

import pytest

from cytoray.errors import ServingError
from cytoray.serving.batcher import Batcher


class Model:
    """Squares numbers; records its batches, waits at a gate while that is shut, fails on negative numbers."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.entered.set()
        assert self.gate.wait(20)
        if min(items) < 0:
            raise ArithmeticError(f"negative: {min(items)}")
        return [item * item for item in items]


def run(scenario: Callable[[Batcher[int, int], Model], Awaitable[None]], *, budget: int = 100) -> Model:
    model = Model()

    async def main() -> None:
        batcher = Batcher(model, cost=abs, budget=budget)
        try:
            await asyncio.wait_for(scenario(batcher, model), 20)
        finally:
            model.gate.set()
            await batcher.close()

    asyncio.run(main())
    return model


async def block(batcher: Batcher[int, int], model: Model) -> asyncio.Task[object]:
    """Occupy the model with the item 1 and shut the gate behind it."""
    model.gate.clear()
    first = asyncio.create_task(batcher.submit(1))
    await asyncio.to_thread(model.entered.wait, 20)
    return first


async def queue(batcher: Batcher[int, int], *items: int) -> list[asyncio.Task[object]]:
    """Submit ``items`` and return once all of them are queued."""
    tasks = [asyncio.create_task(batcher.submit(item)) for item in items]
    await asyncio.sleep(0)
    return tasks


def results(done: Sequence[object]) -> list[int]:
    return [one.result for one in done]


def test_a_lone_request_waits_for_nobody() -> None:
    async def scenario(batcher: Batcher[int, int], model: Model) -> None:
        assert (await batcher.submit(7)).result == 49

    assert run(scenario).batches == [[7]]


def test_what_waits_goes_together_and_comes_back_to_its_owner() -> None:
    async def scenario(batcher: Batcher[int, int], model: Model) -> None:
        tasks = [await block(batcher, model), *await queue(batcher, 2, 3, 4)]
        model.gate.set()
        assert results(await asyncio.gather(*tasks)) == [1, 4, 9, 16]

    assert run(scenario).batches == [[1], [2, 3, 4]]


def test_the_budget_cuts_batches_in_order_and_an_oversized_item_goes_alone() -> None:
    async def scenario(batcher: Batcher[int, int], model: Model) -> None:
        tasks = [await block(batcher, model), *await queue(batcher, 6, 5, 5, 50, 2, 3)]
        model.gate.set()
        assert results(await asyncio.gather(*tasks)) == [1, 36, 25, 25, 2500, 4, 9]

    assert run(scenario, budget=10).batches == [[1], [6], [5, 5], [50], [2, 3]]


def test_a_failing_request_fails_alone() -> None:
    async def scenario(batcher: Batcher[int, int], model: Model) -> None:
        tasks = [await block(batcher, model), *await queue(batcher, 2, -3, 4, -5)]
        model.gate.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert results([outcomes[0], outcomes[1], outcomes[3]]) == [1, 4, 16]
        assert [str(outcomes[at]) for at in (2, 4)] == ["negative: -3", "negative: -5"]
        assert (await batcher.submit(9)).result == 81  # and the loop lives on

    run(scenario)


def test_whoever_left_is_not_computed() -> None:
    async def scenario(batcher: Batcher[int, int], model: Model) -> None:
        first = await block(batcher, model)
        stays, leaves = await queue(batcher, 2, 3)
        leaves.cancel()
        await asyncio.sleep(0)
        model.gate.set()
        assert results(await asyncio.gather(first, stays)) == [1, 4]

    assert run(scenario).batches == [[1], [2]]


def test_leaving_while_running_harms_nobody() -> None:
    async def scenario(batcher: Batcher[int, int], model: Model) -> None:
        first = await block(batcher, model)
        first.cancel()
        await asyncio.sleep(0)
        model.gate.set()
        assert (await batcher.submit(2)).result == 4

    run(scenario)


def test_an_item_without_a_cost_is_refused_at_once() -> None:
    async def scenario(batcher: Batcher[int, int], model: Model) -> None:
        with pytest.raises(TypeError):
            await batcher.submit("no number")  # type: ignore[arg-type]
        assert (await batcher.submit(3)).result == 9

    run(scenario)


def test_a_wrong_number_of_results_fails_the_requests_not_the_loop() -> None:
    async def main() -> None:
        batcher = Batcher(lambda items: [], cost=abs, budget=10)
        for _ in range(2):
            with pytest.raises(AssertionError, match="one result for each item"):
                await asyncio.wait_for(batcher.submit(1), 20)
        await batcher.close()

    asyncio.run(main())


def test_a_hanging_model_is_unhealthy_even_when_its_clients_gave_up() -> None:
    async def scenario(batcher: Batcher[int, int], model: Model) -> None:
        batcher.check(max_age_s=0.0)
        first = await block(batcher, model)
        batcher.check(max_age_s=60.0)
        first.cancel()
        await asyncio.sleep(0)
        with pytest.raises(ServingError, match="pending"):
            batcher.check(max_age_s=0.0)

    run(scenario)


def test_closing_answers_those_who_wait_and_refuses_those_who_come() -> None:
    async def scenario(batcher: Batcher[int, int], model: Model) -> None:
        tasks = [await block(batcher, model), *await queue(batcher, 2)]
        await batcher.close()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ServingError, ServingError]
        with pytest.raises(ServingError, match="stopped"):
            await batcher.submit(3)
        with pytest.raises(ServingError, match="stopped"):
            batcher.check(max_age_s=60.0)

    run(scenario)
