"""The batcher alone, without HTTP and Ray, against other ways to form batches: ``python benchmarks/batcher.py``.

One-cell requests whose lengths are lognormal wait all at once, and every way gives the same model (a small layer of
attention over padded cells, one thread) its batches: a plain loop over all cells sorted by length, which knows them
all beforehand; batches of a fixed size in the order of arrival; and ``ray.serve.batch`` with a budget of tokens. Also
reported: the same for requests of 16 cells, the padding, the time to schedule a cell with 10,000 in the queue, and what
the batcher adds to a single cell at idle.
"""

# B cells of a batch, L tokens of the longest, D width

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import common
from cytoray.serving.batching.batcher import Batcher, Part
from cytoray.serving.batching.config import BatchingConfig
from cytoray.serving.batching.costs import Sample
from cytoray.serving.batching.queues import Ticket, Work
from cytoray.serving.batching.scheduler import Scheduler

Int64 = npt.NDArray[np.int64]
NUM_CELLS = 512 if common.QUICK else 2_048
NUM_SCHEDULED = 10_000
BUDGET = 16_384  # tokens of a batch, padding included, for all that have a budget
FIXED_SIZE = 32  # cells of a batch in the order of arrival
MEAN, SIGMA, LONGEST = 5.8, 0.7, 1_200  # of the lognormal lengths: 330 tokens in the middle
ROUNDS = 2 if common.QUICK else 5
CONFIG = BatchingConfig(max_batch_tokens=BUDGET, max_backlog_s=1e6, max_queued_tokens=2**40)


class Model:
    """A small layer of attention that computes the rectangle of the longest cell of its batch."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self._project, self._widen, self._narrow = nn.Linear(32, 96), nn.Linear(32, 128), nn.Linear(128, 32)
        self._tokens = torch.randn(LONGEST, 32)
        self.rectangles = self.tokens = 0

    def __call__(self, lengths: Int64) -> npt.NDArray[np.float32]:
        """Return a vector per cell."""
        longest = int(lengths.max())
        self.rectangles += len(lengths) * longest
        self.tokens += int(lengths.sum())
        cells_BLD = self._tokens[:longest].expand(len(lengths), -1, -1)
        real_BL = torch.arange(longest)[None, :] < torch.from_numpy(lengths)[:, None]
        with torch.inference_mode():
            query, key, value = self._project(cells_BLD)[:, None].chunk(3, dim=-1)
            hidden = F.scaled_dot_product_attention(query, key, value, attn_mask=real_BL[:, None, None])[:, 0]
            found: npt.NDArray[np.float32] = self._narrow(F.relu(self._widen(hidden)))[:, 0].numpy()
        return found


def main() -> None:
    """Print the JSON lines."""
    torch.set_num_threads(1)
    lengths = np.random.default_rng(0).lognormal(MEAN, SIGMA, NUM_CELLS).clip(2, LONGEST).astype(np.int64)
    model = Model()
    model(lengths[:FIXED_SIZE])
    runner, batcher = asyncio.Runner(), _build_batcher(model)
    runner.run(_run_batcher(batcher, lengths, cells_per_request=16))  # a replica knows its model
    ways: dict[str, Callable[[], None]] = {
        "batcher": lambda: runner.run(_run_batcher(batcher, lengths, cells_per_request=1)),
        "batcher_16": lambda: runner.run(_run_batcher(batcher, lengths, cells_per_request=16)),
        "sorted": lambda: _run_sorted(model, lengths),
        "fifo": lambda: _run_fifo(model, lengths),
        "serve_batch": lambda: asyncio.run(_run_serve_batch(model, lengths)),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    padding: dict[str, float] = {}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            model.rectangles = model.tokens = 0
            rates[name].append(common.rate(NUM_CELLS, way))
            padding[name] = round(1 - model.tokens / model.rectangles, 3)
    runner.run(batcher.close())
    runner.close()
    median = {name: statistics.median(found) for name, found in rates.items()}
    settings = {
        "cells_per_s": {name: round(found, 1) for name, found in median.items()},
        "padding": padding,
        "cells": NUM_CELLS,
        "ratio_16_cells": round(median["batcher_16"] / median["sorted"], 3),
        "idle_overhead_ms": _idle_overhead_ms(model),
    }
    for name, other in (("batcher_sorted", "sorted"), ("batcher_fifo", "fifo"), ("batcher_serve_batch", "serve_batch")):
        common.report(name, value=median["batcher"], baseline=median[other], settings=settings)
    several = {f"{cells}_cells": _schedule_us(cells) for cells in (16, 1000)}
    common.report("batcher_scheduling", value=_schedule_us(1), settings=several)


def _build_batcher(model: Model) -> Batcher[Int64]:
    def run(kind: Hashable, parts: Sequence[Part[Int64]]) -> list[npt.NDArray[np.float32]]:
        given = [part.item if part.rows is None else part.item[part.rows] for part in parts]
        found = model(np.concatenate(given))
        return np.split(found, np.cumsum([len(cells) for cells in given])[:-1])

    return Batcher(run, config=CONFIG)


async def _run_batcher(batcher: Batcher[Int64], lengths: Int64, *, cells_per_request: int) -> None:
    """Send all requests at once."""
    requests = np.split(lengths, range(cells_per_request, len(lengths), cells_per_request))
    answers = await asyncio.gather(*(batcher.submit(Work(cells, "model", cells)) for cells in requests))
    assert sum(len(result) for done in answers for _, result in done.parts) == len(lengths)


def _run_sorted(model: Model, lengths: Int64) -> None:
    """Go through all cells by their length, in batches within the budget."""
    ordered, start = np.sort(lengths), 0
    for stop in range(1, len(ordered) + 1):
        if stop == len(ordered) or (stop + 1 - start) * ordered[stop] > BUDGET:
            model(ordered[start:stop])
            start = stop


def _run_fifo(model: Model, lengths: Int64) -> None:
    for start in range(0, len(lengths), FIXED_SIZE):
        model(lengths[start : start + FIXED_SIZE])


async def _run_serve_batch(model: Model, lengths: Int64) -> None:
    """Send all cells at once through the batching of Ray Serve, whose model runs in a thread."""
    from ray import serve
    from ray.serve.batching import _BatchQueue

    # It compares its settings with those of the replica, of which this process has none.
    _BatchQueue._warn_if_max_batch_size_exceeds_max_ongoing_requests = lambda self: None  # type: ignore[method-assign]

    @serve.batch(
        max_batch_size=BUDGET,
        batch_wait_timeout_s=0.01,
        batch_size_fn=lambda items: int(sum(items)),
    )
    async def answer(cells: list[int]) -> list[Any]:
        """Answer one batch."""
        return list(await asyncio.to_thread(model, np.array(cells, np.int64)))

    await asyncio.gather(*(answer(length) for length in lengths.tolist()))


def _schedule_us(cells_per_request: int) -> float:
    """Microseconds of CPU to queue a cell, choose its batch and take note of the result, with 10,000 in the queue."""
    lengths = np.random.default_rng(0).lognormal(MEAN, SIGMA, NUM_SCHEDULED).clip(2, LONGEST).astype(np.int64)
    works = [
        Work(None, "model", lengths[at : at + cells_per_request]) for at in range(0, len(lengths), cells_per_request)
    ]
    found = []
    for _ in range(ROUNDS):
        scheduler: Scheduler[None] = Scheduler(CONFIG)
        now, done = 0.0, 0
        for number in range(64):
            cells, length = 16 * (1 + number % 8), 100 * (1 + number % 7)
            sample = Sample(cells * length, cells * length**2, 1e-3 + 3e-6 * cells * length)
            scheduler.costs.learn("model", sample, bucket=number % 7, now=now)
        started = time.process_time()
        for work in works:
            ticket = Ticket(work, now=now)
            scheduler.admit(ticket, now)
            scheduler.add(ticket)
        while (batch := scheduler.next(now)) is not None:
            seconds = 1e-3 + 3e-6 * batch.tokens
            now += seconds
            scheduler.done(batch, seconds, now)
            done += batch.cells
            for take in batch.takes:
                scheduler.release(take.ticket)
        found.append(1e6 * (time.process_time() - started) / done)
        assert done == NUM_SCHEDULED
    return round(statistics.median(found), 2)


def _idle_overhead_ms(model: Model) -> dict[str, float]:
    """Milliseconds that the batcher adds to a single cell when nothing else is to be done."""
    cell = np.array([300], np.int64)
    direct = []
    for _ in range(100):
        started = time.perf_counter()
        model(cell)
        direct.append(time.perf_counter() - started)

    async def ask() -> list[float]:
        """Send one cell after another."""
        batcher: Batcher[Int64] = Batcher(lambda kind, parts: [model(part.item) for part in parts], config=CONFIG)
        seen = []
        for _ in range(300):
            started = time.perf_counter()
            await batcher.submit(Work(cell, "model", cell))
            seen.append(time.perf_counter() - started)
        await batcher.close()
        return seen

    added = 1e3 * (np.array(asyncio.run(ask())) - statistics.median(direct))
    return {"p50": round(float(np.median(added)), 3), "p99": round(float(np.quantile(added, 0.99)), 3)}


if __name__ == "__main__":
    main()
