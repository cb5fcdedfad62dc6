"""Memory for minibatches, and readers that are abandoned: neither waits for a lock when the collector runs."""

from __future__ import annotations

import gc
import subprocess
import sys

import numpy as np

from cytoray.corpus.streaming.background import Room
from cytoray.corpus.streaming.blocks import ALIGNMENT, empty_arrays

WANTED = [(1000, np.dtype(np.uint16)), (333, np.dtype(np.int8)), (0, np.dtype(np.int8)), (7, np.dtype(np.float32))]


def test_arrays_are_of_the_wanted_lengths_and_types_and_do_not_overlap():
    arrays = empty_arrays(WANTED)
    assert [(len(array), array.dtype) for array in arrays] == WANTED
    for number, array in enumerate(arrays):
        array[:] = number + 1
    assert [set(array.tolist()) for array in arrays] == [{1}, {2}, set(), {4}]
    assert all(array.flags.aligned and array.flags.writeable for array in arrays)
    assert all(array.__array_interface__["data"][0] % ALIGNMENT == 0 for array in arrays)


def test_memory_stays_while_any_view_of_any_array_is_held():
    first = empty_arrays(WANTED)
    kept = first[1].reshape(3, 111)[1:, ::2]  # a view of a view
    kept[:] = 9
    del first
    gc.collect()
    for _ in range(20):
        empty_arrays(WANTED)[1][:] = 5
    assert (kept == 9).all()


COLLECT_ANYWHERE = """
import gc, sys
from cytoray.corpus import stream as module
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.tokens.tokenizer import TokenizerConfig

class Cycle:
    def __init__(self, *held):
        self.held, self.me = held, self  # only the cyclic collector frees it, on whatever thread it runs

module.CHUNK_CELLS = 8  # memory of its own for each step
stream = module.open_stream(sys.argv[1], "cells", StreamOptions(TokenizerConfig(), seed=1, cells_per_step=8))
gc.freeze()  # so that collecting takes no time
for threads in (0, 2):
    for allocations in range(2, 300):
        gc.collect()
        gc.disable()
        batches = stream.read_steps(0, 60, threads=threads)  # abandoned after its first batch
        Cycle(next(batches), batches)
        del batches  # to be found when so many more objects were made, wherever that is
        gc.set_threshold(gc.get_count()[0] + allocations)
        gc.enable()
        stream.read_step(allocations, rank=0, world_size=1)
print("read")
"""


def test_a_reader_does_not_deadlock_wherever_the_collector_runs(corpus):
    done = subprocess.run(
        [sys.executable, "-c", COLLECT_ANYWHERE, corpus.store], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.stdout == "read\n", done.stderr


def test_a_room_can_be_closed_by_a_finalizer_that_runs_within_take():
    room = Room(2)

    class Consumer:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            room.close()

    assert room.take()
    Consumer()
    gc.collect()
    assert not room.take()
    assert not room.take()  # and is not waited for
