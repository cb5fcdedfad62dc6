"""Kill the workers of Ray that read a stream: the minibatches arrive all the same, once each and in order."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil
import pytest

from cytoray.corpus.deal import DealtSteps, iterate_steps, steps_dataset
from cytoray.corpus.stream import open_stream
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.tokens.tokenizer import TokenizerConfig

pytestmark = [pytest.mark.faults, pytest.mark.ray]
NUM_STEPS = 3_000


def _reading_workers() -> list[psutil.Process]:
    """Ray's worker processes that are in a read task of this stream just now."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        if title.startswith("ray::") and "read_run" in title:
            found.append(process)
    return found


def test_a_killed_read_worker_costs_no_minibatch(ray_cluster, clean, outcome):
    store = str(Path(clean.uri).parent.parent)
    stream = open_stream(store, "cells", StreamOptions(TokenizerConfig(), seed=1, cells_per_step=64))
    expected = [batch.cell_ids.tobytes() for batch in stream.read_steps(0, NUM_STEPS)]
    dataset = {"train": steps_dataset(stream, 0, NUM_STEPS)}
    (iterators,) = DealtSteps(stream).configure(dataset, 1)
    received, killed = [], 0
    for batch in iterate_steps(iterators["train"]):
        received.append((batch.step, batch.cell_ids.tobytes()))
        if killed < 2:
            for worker in _reading_workers()[:1]:
                with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended since it was found
                    worker.kill()
                    killed += 1
    assert [step for step, _ in received] == list(range(NUM_STEPS))
    assert [cells for _, cells in received] == expected
    outcome("F1 kill -9 of a Ray worker that reads a stream", killed, "task tried again: same minibatches, once each")
