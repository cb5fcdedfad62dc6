from __future__ import annotations

import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest

from cytoray.corpus import deal
from cytoray.corpus.deal import DealtSteps, iterate_steps, steps_dataset
from cytoray.corpus.stream import CorpusStream, open_stream
from cytoray.corpus.streaming.batches import StepBatch
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.errors import CorpusError
from cytoray.tokens.tokenizer import TokenizerConfig


def open_cells(written, **options) -> CorpusStream:
    return open_stream(written.store, "cells", StreamOptions(TokenizerConfig(), seed=1, cells_per_step=20, **options))


class Blocks:
    """Stands in for Ray Data's iterator: one step a block; counts what was taken from it, and may end in an error."""

    def __init__(self, stream: CorpusStream, num_steps: int, *, error: Exception | None = None) -> None:
        self.stream, self.num_steps, self.error, self.taken = stream, num_steps, error, 0

    def iter_batches(self, **_: object):
        for step in range(self.num_steps):
            self.taken += 1
            yield next(self.stream.read_chunks(range(step, step + 1))).to_table()
        if self.error is not None:
            raise self.error


@pytest.mark.timeout(120)
def test_an_error_arrives_after_the_minibatches_before_it(corpus):
    stream = open_cells(corpus)
    steps = iterate_steps(Blocks(stream, 3, error=CorpusError("shard 7 is gone.", remedy="Restore it.")))
    assert [next(steps).step for _ in range(3)] == [0, 1, 2]
    with pytest.raises(CorpusError, match="shard 7 is gone"):
        next(steps)
    with pytest.raises(CorpusError, match="at once"):
        next(iterate_steps(Blocks(stream, 0, error=CorpusError("at once"))))


@pytest.mark.timeout(120)
def test_the_end_of_the_steps_is_the_end(corpus):
    assert [batch.step for batch in iterate_steps(Blocks(open_cells(corpus), 40))] == list(range(40))
    assert list(iterate_steps(Blocks(open_cells(corpus), 0))) == []


@pytest.mark.timeout(120)
def test_no_more_is_read_ahead_than_there_is_room_for(corpus, monkeypatch):
    stream = open_cells(corpus)
    num_bytes = next(stream.read_chunks(range(1))).num_bytes
    monkeypatch.setattr(deal, "READ_AHEAD_BYTES", 4 * num_bytes)
    blocks = Blocks(stream, 100)
    steps = iterate_steps(blocks)
    wait_until(lambda: blocks.taken >= 4)  # before the first one is asked for
    for step in range(20):
        assert next(steps).step == step
        assert blocks.taken <= step + 1 + 4 + 2  # in the queue, and one at each of its ends
    steps.close()
    wait_until(lambda: not any(thread.name == "read-ahead" for thread in threading.enumerate()))
    assert blocks.taken < 30


def wait_until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def receive(iterators, num_ranks: int) -> dict[int, list[StepBatch]]:
    received: dict[int, list[StepBatch]] = {}

    def take(rank: int) -> None:
        received[rank] = list(iterate_steps(iterators[rank]["train"]))

    ranks = [threading.Thread(target=take, args=(rank,)) for rank in range(num_ranks)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=60)
    return received


@pytest.mark.ray
def test_two_ranks_receive_their_minibatches_through_ray_data_in_order(ray_cluster, corpus, monkeypatch):
    monkeypatch.setattr("cytoray.corpus.streaming.order.WINDOW_CELLS", 200)  # several tasks
    monkeypatch.setattr("cytoray.corpus.streaming.order.WINDOW_STEPS", 1)
    stream = open_cells(corpus, label_key="kind", style="generative", ratios=(0.25, 0.75))
    start, stop = 3, 60  # several epochs
    dataset = steps_dataset(stream, start, stop)
    assert dataset.count() >= 3
    received = receive(DealtSteps(stream).configure({"train": dataset}, 2), 2)
    for rank in range(2):
        expected = list(stream.read_steps(start, stop, rank=rank, world_size=2))
        assert [batch.step for batch in received[rank]] == list(range(start, stop))
        for batch, other in zip(received[rank], expected, strict=True):
            for name, array in vars(other).items():
                if isinstance(array, np.ndarray):
                    assert np.array_equal(getattr(batch, name), array), name


@pytest.mark.ray
def test_steps_that_are_all_done_are_no_steps(ray_cluster, corpus):
    stream = open_cells(corpus)
    assert receive(DealtSteps(stream).configure({"train": steps_dataset(stream, 7, 7)}, 1), 1) == {0: []}


def test_a_worker_that_reads_imports_no_more_than_it_needs():
    unwanted = {"ray.train", "torch", "numba", "cytoray.corpus.stream"}
    code = f"import sys, cytoray.corpus.reading_tasks; print(*sorted({unwanted} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


NUM_STEPS = 40_000  # more than the pipeline's queues have room for, so that tasks have made blocks which nobody takes


@pytest.mark.slow
@pytest.mark.ray
def test_a_pipeline_rests_while_what_it_made_waits_to_be_read(ray_cluster, corpus, monkeypatch):
    monkeypatch.setattr(deal, "READ_AHEAD_BYTES", 1)
    stream = open_cells(corpus)
    (iterators,) = DealtSteps(stream).configure({"train": steps_dataset(stream, 0, NUM_STEPS)}, 1)
    steps = iterate_steps(iterators["train"])
    next(steps)
    (executor,) = coordinators()
    time.sleep(6)  # until nothing more has room
    share = cpu_share(executor, 4)
    assert sum(1 for _ in steps) == NUM_STEPS - 1  # to the end: a pipeline cut short still asks Ray when it shuts down
    assert share < 0.3  # a whole core where it does not rest


def coordinators() -> set[psutil.Process]:
    """Ray Data's executors of this session's cluster."""
    below = psutil.Process().children(recursive=True)
    return {process for process in below if "SplitCoord" in process.name()}


def cpu_share(process: psutil.Process, seconds: float) -> float:
    """Of one core, within the coming seconds."""
    process.cpu_percent()
    time.sleep(seconds)
    return process.cpu_percent() / 100
