"""A service with more work than it can do: what clients get at once, who comes first, and that it stays healthy."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
import scipy.sparse as sp

from cytoray.errors import RequestError
from cytoray.model.predictor import CellPredictor, Predictions
from cytoray.serving.batching.config import BatchingConfig
from cytoray.serving.batching.costs import Sample
from cytoray.serving.cell_work import Caller
from cytoray.serving.payloads.media import ARROW, JSON, read_form
from cytoray.serving.sending import Cells, encode_cells, encode_stream
from cytoray.tasks import find_endpoint
from cytoray.tokens.cells import SparseCells

EMBED = find_endpoint("embed")


class Slow:
    """A model whose batches wait for a permit; its canary does not."""

    def __init__(self, bundle: Any) -> None:
        self.sizes: list[int] = []
        self.permits = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)
        self._real = CellPredictor(bundle, empty_cells="nan")

    def predict(self, cells: SparseCells) -> Predictions:
        if threading.current_thread().name.startswith("cytoray-batch"):
            self.sizes.append(cells.num_cells)
            self.entered.release()
            assert self.permits.acquire(timeout=20)
        return self._real.predict(cells)


@pytest.fixture
def slow(bundle: Any) -> Slow:
    return Slow(bundle)


@pytest.fixture
def service(bundle: Any, slow: Slow, build_service: Any, runner: asyncio.Runner) -> Any:
    batching = BatchingConfig(max_batch_tokens=200, interactive_cells=2, stall_s=1000)
    service = build_service(bundle, predictor=slow, batching=batching, max_cells=100, max_nonzeros=4000)
    yield service
    slow.permits.release(1000)
    runner.run(service.close())


async def start(service: Any, slow: Slow, *bodies: bytes, **options: Any) -> list[asyncio.Task[Any]]:
    """Send requests one after another, the first until its first batch runs."""
    tasks = []
    for body in bodies:
        tasks.append(asyncio.create_task(service.answer(EMBED, body, **options)))
        before = service.stats.requests
        while service.stats.requests == before and not tasks[-1].done():
            await asyncio.sleep(0.001)
    return tasks


def test_a_large_request_neither_holds_up_a_small_one_nor_health_checks(
    service: Any, slow: Slow, runner: asyncio.Runner, make_counts: Any, as_request: Any
) -> None:
    large, small = (json.dumps(as_request(make_counts(size))).encode() for size in (90, 1))

    async def ask() -> None:
        (bulk,) = await start(service, slow, large)
        await asyncio.to_thread(slow.entered.acquire)  # its first batch runs
        (one,) = await start(service, slow, small)
        await service.check(timeout_s=20)
        service.check_ready()
        slow.permits.release(2)
        answer = json.loads((await one).content)
        assert len(answer["cells"]) == 1
        assert not bulk.done()
        slow.permits.release(1000)
        assert len(json.loads((await bulk).content)["cells"]) == 90

    runner.run(ask())
    assert slow.sizes[1] == 1
    assert sum(slow.sizes) == 91
    assert len(slow.sizes) > 5


def test_a_client_that_leaves_takes_its_cells_along(
    service: Any, slow: Slow, runner: asyncio.Runner, make_counts: Any, as_request: Any
) -> None:
    large = json.dumps(as_request(make_counts(90))).encode()

    async def ask() -> None:
        (bulk,) = await start(service, slow, large)
        await asyncio.to_thread(slow.entered.acquire)
        bulk.cancel()
        await asyncio.wait([bulk])
        slow.permits.release(1000)
        await service.drain()

    runner.run(ask())
    assert len(slow.sizes) == 1
    found = service.stats.snapshot()
    assert (found["cancelled"], found["queued_cells"], found["queue_age_s"]) == (1, 0, 0)


def test_overload_is_answered_at_once_with_the_time_to_come_back(
    bundle: Any, slow: Slow, build_service: Any, connect: Any, runner: asyncio.Runner, make_counts: Any, as_request: Any
) -> None:
    batching = BatchingConfig(max_batch_tokens=200, max_queued_tokens=300)
    service = build_service(bundle, predictor=slow, batching=batching, max_cells=100, max_nonzeros=4000)
    http = connect(service)
    body = as_request(make_counts(8))

    async def fill() -> list[asyncio.Task[Any]]:
        return await start(service, slow, *[json.dumps(body).encode()] * 2)

    waiting = runner.run(fill())
    response = http.post("/v1/embed", json=body)
    assert (response.status_code, response.json()["code"]) == (503, "overloaded")
    assert response.headers["retry-after"] == str(response.json()["retry_after_s"])
    slow.permits.release(1000)
    runner.run(asyncio.wait(waiting))
    assert http.post("/v1/embed", json=body).status_code == 200
    assert (service.stats.overloaded, service.stats.answered) == (1, 3)


@pytest.mark.parametrize("media_type", [JSON, ARROW])
def test_a_busy_service_refuses_a_request_without_reading_it(
    service: Any, slow: Slow, runner: asyncio.Runner, make_counts: Any, as_request: Any, media_type: str
) -> None:
    """Reading takes processor time from the model, and at five times the load most requests are refused."""
    encode = {JSON: encode_cells, ARROW: encode_stream}[media_type]

    def body(cells: int) -> bytes:
        """Return a request that cannot be answered: an index is out of range."""
        return encode(Cells(["a"], None, sp.csr_matrix(make_counts(cells))), range(cells))

    good = json.dumps(as_request(make_counts(90))).encode()
    form = read_form(content_type=media_type, content_encoding="", accept="", options=(), about_cells=True)

    async def ask() -> None:
        await start(service, slow, good, good)
        costs, now = service._batcher._scheduler.costs, service._batcher.clock()
        costs.learn(EMBED.run, Sample(1000, 1000, 10.0), bucket=1, now=now)  # 40 s wait already
        for cells, code in ((40, "overloaded"), (2, "bad_matrix")):  # interactive requests would not wait for so long
            with pytest.raises(RequestError) as caught:
                await service.answer(EMBED, body(cells), form)
            assert caught.value.code == code
        slow.permits.release(1000)
        await service.drain()

    runner.run(ask())


def test_callers_are_told_apart_by_their_keys(
    service: Any, slow: Slow, runner: asyncio.Runner, make_counts: Any, as_request: Any
) -> None:
    large = json.dumps(as_request(make_counts(90))).encode()
    some = json.dumps(as_request(make_counts(10, seed=1))).encode()

    async def ask() -> None:
        greedy = await start(service, slow, *[large] * 3, caller=Caller("greedy"))
        (modest,) = await start(service, slow, some, caller=Caller("modest"))
        while not modest.done():
            slow.permits.release()
            await asyncio.to_thread(slow.entered.acquire)
            await asyncio.sleep(0)
        assert not any(task.done() for task in greedy)
        for task in greedy:
            task.cancel()
        await asyncio.wait(greedy)

    runner.run(ask())
    assert len(slow.sizes) < 25  # all of them need 34


def test_a_request_is_bulk_if_its_caller_says_so(
    service: Any, slow: Slow, runner: asyncio.Runner, make_counts: Any, as_request: Any
) -> None:
    first, bulk, interactive = (
        json.dumps(as_request(make_counts(size))).encode() for size in (1, 2, 5)
    )  # a batch each

    async def ask() -> list[str]:
        order: list[str] = []
        tasks = await start(service, slow, first)
        tasks += await start(service, slow, bulk, caller=Caller(is_bulk=True))
        tasks[-1].add_done_callback(lambda _: order.append("bulk"))
        tasks += await start(service, slow, interactive, caller=Caller(is_bulk=False))
        tasks[-1].add_done_callback(lambda _: order.append("interactive"))
        slow.permits.release(1000)
        await asyncio.wait(tasks)
        return order

    assert runner.run(ask()) == ["interactive", "bulk"]


def test_poison_fails_only_the_request_that_carries_it(
    bundle: Any, build_service: Any, runner: asyncio.Runner, make_counts: Any, as_request: Any
) -> None:
    real = CellPredictor(bundle, empty_cells="nan")

    class Poisoned:
        def predict(self, cells: SparseCells) -> Predictions:
            if (cells.values == 99).any():
                raise ZeroDivisionError("poison")
            return real.predict(cells)

    service = build_service(bundle, predictor=Poisoned())
    poison = as_request(make_counts(3, seed=9))
    poison["cells"][1]["v"][0] = 99.0
    bodies = [json.dumps(body).encode() for body in (as_request(make_counts(3)), poison, as_request(make_counts(4)))]

    async def ask() -> list[Any]:
        return await asyncio.gather(*(service.answer(EMBED, body) for body in bodies), return_exceptions=True)

    first, second, third = runner.run(ask())
    runner.run(service.close())
    assert isinstance(second, ZeroDivisionError)
    assert [len(json.loads(reply.content)["cells"]) for reply in (first, third)] == [3, 4]


def test_a_request_that_takes_longer_than_its_deadline_is_refused_before_it_is_computed(
    bundle: Any, slow: Slow, build_service: Any, runner: asyncio.Runner, make_counts: Any, as_request: Any
) -> None:
    service = build_service(bundle, predictor=slow, max_cells=100, max_nonzeros=4000, deadline_s=20.0)
    service._batcher.clock = iter_clock = _Clock()
    one, many = (json.dumps(as_request(make_counts(size))).encode() for size in (1, 90))

    async def ask() -> None:
        tasks = await start(service, slow, one)
        await asyncio.to_thread(slow.entered.acquire)
        iter_clock.now += 2.0  # the cell took so long
        slow.permits.release(1000)
        await asyncio.gather(*tasks)
        with pytest.raises(RequestError, match=r"would take about .* at most \d+ such cells") as refused:
            await service.answer(EMBED, many)
        assert refused.value.code == "deadline_exceeded"

    runner.run(ask())
    runner.run(service.close())
    assert slow.sizes == [1]


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now
