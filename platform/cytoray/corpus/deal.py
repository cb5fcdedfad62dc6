"""Deal a stream's steps to the ranks of a training run through Ray Data, in order and without a race."""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Iterator
from typing import Any

import ray.data
from ray.train import DataConfig

from cytoray.corpus.stream import CorpusStream, StepBatch

STEPS_PER_TASK = 16  # one Ray task; fewer and the task's start dominates, more and the first step waits
TASK_CPUS = 0.25
READ_AHEAD_BYTES = 256 * 2**20


def steps_dataset(start: int, stop: int) -> ray.data.Dataset:
    """The steps from ``start`` to ``stop`` as a Ray dataset of short runs of steps."""
    runs = [{"start": s, "stop": min(s + STEPS_PER_TASK, stop)} for s in range(start, stop, STEPS_PER_TASK)]
    return ray.data.from_items(runs, override_num_blocks=len(runs))


class DealtSteps(DataConfig):
    """Gives each rank a pipeline of its own: splitting one among ranks deals its blocks first come, first served."""

    def __init__(self, stream: CorpusStream) -> None:
        super().__init__(datasets_to_split="all")
        self._stream = stream

    def configure(
        self, datasets: dict[str, ray.data.Dataset], world_size: int, *args: Any, **kwargs: Any
    ) -> list[dict[str, ray.data.DataIterator]]:
        """One pipeline a rank: runs of steps -> that rank's minibatches, in order."""
        return [
            {name: self._rank_iterator(dataset, rank, world_size) for name, dataset in datasets.items()}
            for rank in range(world_size)
        ]

    def _rank_iterator(self, dataset: ray.data.Dataset, rank: int, world_size: int) -> ray.data.DataIterator:
        dataset = dataset.copy(dataset)
        options = self._resolve_execution_options("train")
        options.preserve_order = True
        dataset.context.execution_options = options
        read = functools.partial(_read_run, stream=self._stream, rank=rank, world_size=world_size)
        # "Splitting" in one moves Ray Data's executor to an actor; in the worker its thread would slow every step.
        return dataset.flat_map(read, num_cpus=TASK_CPUS).streaming_split(1, equal=False)[0]


def _read_run(run: dict[str, Any], *, stream: CorpusStream, rank: int, world_size: int) -> list[dict[str, Any]]:
    """Read one run of steps for one rank."""
    steps = range(int(run["start"]), int(run["stop"]))
    return [stream.read_step(step, rank=rank, world_size=world_size).to_row() for step in steps]


def iterate_steps(iterator: ray.data.DataIterator) -> Iterator[StepBatch]:
    """The minibatches of a rank's iterator, read ahead from now on into at most ``READ_AHEAD_BYTES`` of memory.

    Reading ahead hides the store, and lets a short pipeline end early: while it waits to be read, Ray Data's executor
    keeps turning (a quarter of a core).
    """
    reader = _ReadAhead(iterator)
    reader.start()
    return reader.batches()


class _ReadAhead(threading.Thread):
    """Reads minibatches in the background, as many as there is room for."""

    def __init__(self, iterator: ray.data.DataIterator) -> None:
        super().__init__(name="read-ahead", daemon=True)
        self._iterator = iterator
        self._ahead: queue.SimpleQueue[StepBatch | BaseException | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(1)  # for the first minibatch, whose size tells how many there is room for
        self._stopped = threading.Event()

    def run(self) -> None:
        """Read until the end, an error, or nobody wants more."""
        try:
            for position, row in enumerate(self._iterator.iter_rows()):
                if position == 0:
                    num_bytes = sum(len(value) for value in row.values() if isinstance(value, bytes))
                    self._room.release(max(1, READ_AHEAD_BYTES // max(1, num_bytes)))
                self._room.acquire()
                if self._stopped.is_set():
                    return
                self._ahead.put(StepBatch.from_row(row))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is raised where the minibatch is wanted
            self._ahead.put(error)
        else:
            self._ahead.put(None)

    def batches(self) -> Iterator[StepBatch]:
        """What was read, in order."""
        try:
            while (item := self._ahead.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
                self._room.release()
        finally:
            self._stopped.set()
            self._room.release()
