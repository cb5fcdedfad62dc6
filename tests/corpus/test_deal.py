from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from cytoray.corpus import deal
from cytoray.corpus.deal import DealtSteps, iterate_steps, steps_dataset
from cytoray.corpus.stream import StepBatch, StreamOptions, open_stream
from cytoray.errors import CorpusError
from cytoray.tokens.tokenizer import TokenizedCells, TokenizerConfig


def make_batch(step: int, num_genes: int = 1000) -> StepBatch:
    genes = np.arange(num_genes, dtype=np.int32)
    tokens = TokenizedCells(genes, genes.astype(np.float32), np.array([0, num_genes]), np.array([step], np.uint64))
    return StepBatch(step, 0, tokens, np.empty(0, np.int32))


class Rows:
    """Stands in for Ray Data's iterator; counts what was taken from it, and may end in an error."""

    def __init__(self, num_rows: int, *, error: Exception | None = None) -> None:
        self.num_rows, self.error, self.taken = num_rows, error, 0

    def iter_rows(self):
        for step in range(self.num_rows):
            self.taken += 1
            yield make_batch(step).to_row()
        if self.error is not None:
            raise self.error


@pytest.mark.timeout(10)
def test_an_error_arrives_after_the_minibatches_before_it():
    steps = iterate_steps(Rows(3, error=CorpusError("shard 7 is gone.", remedy="Restore it.")))
    assert [next(steps).step for _ in range(3)] == [0, 1, 2]
    with pytest.raises(CorpusError, match="shard 7 is gone"):
        next(steps)
    with pytest.raises(CorpusError, match="at once"):
        next(iterate_steps(Rows(0, error=CorpusError("at once"))))


@pytest.mark.timeout(10)
def test_the_end_of_the_steps_is_the_end():
    assert [batch.step for batch in iterate_steps(Rows(40))] == list(range(40))
    assert list(iterate_steps(Rows(0))) == []


@pytest.mark.timeout(20)
def test_no_more_is_read_ahead_than_there_is_room_for(monkeypatch):
    num_bytes = sum(len(part) for part in make_batch(0).to_row().values() if isinstance(part, bytes))
    monkeypatch.setattr(deal, "READ_AHEAD_BYTES", 4 * num_bytes)
    rows = Rows(100)
    steps = iterate_steps(rows)
    wait_until(lambda: rows.taken >= 4)  # before the first one is asked for
    for step in range(20):
        assert next(steps).step == step
        assert rows.taken <= step + 1 + 4 + 2  # in the queue, and one at each of its ends
    steps.close()
    wait_until(lambda: not any(thread.name == "read-ahead" for thread in threading.enumerate()))
    assert rows.taken < 30


def wait_until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


@pytest.mark.ray
def test_two_ranks_receive_their_minibatches_through_ray_data_in_order(ray_cluster, corpus):
    options = StreamOptions(TokenizerConfig(), seed=1, cells_per_step=20, label_key="kind")
    stream = open_stream(corpus.store, "cells", options)
    start, stop = 3, 40  # three tasks, the last one short; several epochs
    iterators = DealtSteps(stream).configure({"train": steps_dataset(start, stop)}, 2)
    received: dict[int, list[StepBatch]] = {}

    def receive(rank: int) -> None:
        received[rank] = list(iterate_steps(iterators[rank]["train"]))

    ranks = [threading.Thread(target=receive, args=(rank,)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=60)
    for rank in range(2):
        assert [batch.step for batch in received[rank]] == list(range(start, stop))
        for batch in received[rank]:
            expected, seen = stream.read_step(batch.step, rank=rank, world_size=2).to_row(), batch.to_row()
            assert seen == expected
