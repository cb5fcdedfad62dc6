"""A slot changes its version under requests: none fails, and each answer is that of the version it names."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from cytoray.errors import ServingError
from cytoray.model.predictor import CellPredictor
from cytoray.serving.batching.config import BatchingConfig
from cytoray.serving.config import Limits
from cytoray.serving.explorer.answering import one_version
from cytoray.serving.rollout.slot import ModelSlot
from cytoray.serving.service import CellService
from cytoray.tasks import find_endpoint
from cytoray.tasks.endpoint import ServedModel
from cytoray.tasks.messages import ModelInfo

EMBED = find_endpoint("embed")


@pytest.fixture
def build_version(build_bundle: Any) -> Any:
    """Build the service of a version; each has its own weights."""

    def build(number: int, *, predictor: Any = None) -> CellService:
        bundle = build_bundle()
        with torch.no_grad():
            for parameter in bundle.model.parameters():
                parameter.mul_(1 + 0.2 * number)
        info = ModelInfo(name="tiny", version=str(number), digest=f"{number:064x}")
        bundle = replace(bundle, digest=info.digest)
        predictor = predictor or CellPredictor(bundle, empty_cells="nan")
        return CellService(ServedModel(bundle, predictor, info), limits=Limits(), batching=BatchingConfig())

    return build


def test_swaps_under_requests_lose_none_and_each_answer_is_that_of_the_version_it_names(
    build_version: Any, runner: asyncio.Runner, make_counts: Any, as_cells: Any, as_request: Any
) -> None:
    counts = make_counts(3)
    body = json.dumps(as_request(counts)).encode()
    services = {str(number): build_version(number) for number in range(6)}
    offline = {
        name: CellPredictor(service.served.bundle).predict(as_cells(counts)).embeddings
        for name, service in services.items()
    }
    assert np.abs(offline["0"] - offline["5"]).max() > 0.01
    slot = ModelSlot(services["0"])
    seen: list[str] = []

    async def ask(stop: asyncio.Event) -> None:
        while not stop.is_set():
            answer = json.loads((await slot.answer(EMBED, body)).content)
            version = answer["model"]["version"]
            found = np.array([cell["embedding"] for cell in answer["cells"]])
            np.testing.assert_allclose(found, offline[version], atol=1e-5)
            seen.append(version)

    async def move() -> None:
        stop = asyncio.Event()
        clients = [asyncio.create_task(ask(stop)) for _ in range(4)]
        for number in range(1, 6):
            before = len(seen)
            while len(seen) < before + 8:
                await asyncio.sleep(0.001)
            await asyncio.to_thread(slot.swap, services[str(number)], keep_s=100.0)
        assert slot.take_loaded(services["4"].model, keep_s=100.0)
        before = len(seen)
        while len(seen) < before + 8:
            await asyncio.sleep(0.001)
        stop.set()
        await asyncio.gather(*clients)
        await slot.close()

    runner.run(move())
    assert set(seen) >= {"0", "1", "2", "3", "4"}
    assert seen[-1] == "4"
    assert slot.stats.snapshot()["answered"] == len(seen)


class Held:
    """A model whose answers in the batcher wait."""

    def __init__(self, bundle: Any) -> None:
        self.entered, self.release = threading.Event(), threading.Event()
        self._real = CellPredictor(bundle, empty_cells="nan")

    def predict(self, cells: Any) -> Any:
        if threading.current_thread().name.startswith("cytoray-batch"):
            self.entered.set()
            assert self.release.wait(20)
        return self._real.predict(cells)


def test_a_version_is_freed_when_its_last_request_is_answered(
    build_bundle: Any, build_version: Any, runner: asyncio.Runner, make_counts: Any, as_request: Any
) -> None:
    held = Held(build_bundle())
    body = json.dumps(as_request(make_counts(1))).encode()
    slot = ModelSlot(build_version(1, predictor=held))
    first = weakref.ref(slot.served)

    async def ask() -> None:
        request = asyncio.create_task(slot.answer(EMBED, body))
        await asyncio.to_thread(held.entered.wait, 20)
        slot.swap(build_version(2), keep_s=0.0)
        assert slot.model.version == "2"
        assert slot.previous is None
        assert first() is not None
        held.release.set()
        assert json.loads((await request).content)["model"]["version"] == "1"

    runner.run(ask())
    for thread in threading.enumerate():
        if thread.name == "cytoray-free":
            thread.join(20)
    gc.collect()
    assert first() is None
    assert slot.stats.snapshot()["answered"] == 1
    runner.run(slot.close())


def test_the_previous_version_is_kept_for_its_time_and_a_stopped_slot_does_not_swap(
    build_version: Any, runner: asyncio.Runner
) -> None:
    now = [0.0]
    one, two, three = (build_version(number) for number in (1, 2, 3))
    slot = ModelSlot(one, clock=lambda: now[0])
    with one_version(slot) as held:  # as for a file of the explorer
        slot.swap(two, keep_s=10.0)
        assert held.served.info == one.model
    assert slot.previous == one.model
    now[0] = 9.0
    slot.expire()
    assert slot.take_loaded(one.model, keep_s=10.0)
    assert (slot.model, slot.previous) == (one.model, two.model)
    now[0] = 20.0
    slot.expire()
    assert slot.previous is None
    assert not slot.take_loaded(two.model, keep_s=10.0)
    runner.run(slot.drain())
    with pytest.raises(ServingError, match="shutting down"):
        slot.swap(three, keep_s=0.0)
    runner.run(three.close())
    runner.run(slot.close())
