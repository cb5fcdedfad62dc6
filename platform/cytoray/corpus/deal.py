"""Deliver a stream's steps to the ranks of a training run through Ray Data, in order and without a race."""

from __future__ import annotations

import functools
import queue
from collections.abc import Iterator
from concurrent.futures import wait
from typing import TYPE_CHECKING, Any

import ray.data
from ray.train import DataConfig

from cytoray.corpus.reading_tasks import Unhurried, read_run, warm_up
from cytoray.corpus.streaming.background import Room, start_daemon
from cytoray.corpus.streaming.batches import StepBatch, StepChunk

if TYPE_CHECKING:
    from cytoray.corpus.stream import CorpusStream

TASK_CPUS = 0.25  # what a read task reserves beside training workers
TASKS_AT_A_TIME = 2  # of one rank: each makes far more than a rank takes, and what is ready waits in the object store
READ_AHEAD_BYTES = 64 * 2**20  # held in the object store, which ranks share
LEAVING_S = 5.0  # for the block that is under way


def steps_dataset(stream: CorpusStream, start: int, stop: int) -> ray.data.Dataset:
    """Return the steps ``start`` to ``stop`` as a Ray dataset: one row, and later one read task, per run of windows."""
    runs = [{"start": first, "stop": last} for first, last in stream.order.runs(start, stop)]
    runs = runs or [{"start": stop, "stop": stop}]  # a dataset needs a block
    return ray.data.from_items(runs, override_num_blocks=len(runs))


class DealtSteps(DataConfig):
    """A pipeline per rank: splitting one among ranks would hand out its blocks first come, first served."""

    def __init__(self, stream: CorpusStream, *, task_cpus: float = TASK_CPUS, num_tasks: int = TASKS_AT_A_TIME) -> None:
        """``num_tasks`` tasks of a rank work at a time, each reserving ``task_cpus``."""
        super().__init__(datasets_to_split="all")
        self._stream, self._task_cpus, self._num_tasks = stream, task_cpus, num_tasks

    def configure(
        self, datasets: dict[str, ray.data.Dataset], world_size: int, *args: Any, **kwargs: Any
    ) -> list[dict[str, ray.data.DataIterator]]:
        """Build one pipeline per rank: windows -> that rank's minibatches, in order."""
        stream = ray.put(self._stream)
        for _ in range(world_size):  # the imports of a worker that reads, while the executor's process starts
            ray.remote(warm_up).options(num_cpus=self._task_cpus).remote([stream])
        return [
            {name: self._rank_iterator(dataset, stream, rank, world_size) for name, dataset in datasets.items()}
            for rank in range(world_size)
        ]

    def _rank_iterator(
        self, dataset: ray.data.Dataset, stream: ray.ObjectRef[CorpusStream], rank: int, world_size: int
    ) -> ray.data.DataIterator:
        dataset = dataset.copy(dataset)
        dataset.context.execution_options = ray.data.ExecutionOptions(preserve_order=True)
        # A block is one row of any size: with a target that every row exceeds, Ray neither joins nor cuts them.
        dataset.context.target_max_block_size = 1
        dataset.context.custom_execution_callback_classes = [Unhurried]
        read = functools.partial(read_run, stream=stream, rank=rank, world_size=world_size)
        dealt = dataset.map_batches(
            read,
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            num_cpus=self._task_cpus,
            compute=ray.data.TaskPoolStrategy(size=self._num_tasks),
        )
        # "Splitting" in one moves Ray Data's executor to an actor; in the worker its thread would slow every step.
        return dealt.streaming_split(1, equal=False)[0]


def iterate_steps(iterator: ray.data.DataIterator) -> Iterator[StepBatch]:
    """Yield the minibatches of a rank's iterator, read ahead from now on into at most ``READ_AHEAD_BYTES`` of memory.

    Reading ahead hides the store, and lets a short pipeline end early.
    """
    return _ReadAhead(iterator).batches()


class _ReadAhead:
    """Blocks fetched in the background, as many as there is room for; their arrays stay in Ray's object store."""

    def __init__(self, iterator: ray.data.DataIterator) -> None:
        self._ahead: queue.SimpleQueue[StepChunk | None] = queue.SimpleQueue()
        self._room = Room(1)  # for the first block, whose size determines how many there is room for
        self._reading = start_daemon(functools.partial(self._read, iterator), name="read-ahead")

    def _read(self, iterator: ray.data.DataIterator) -> None:
        """Read until the end, an error, or the consumer stops."""
        first = True
        try:
            for table in iterator.iter_batches(batch_size=None, batch_format="pyarrow"):  # type: ignore[arg-type]
                for chunk in StepChunk.from_table(table):
                    if first:
                        self._room.free(max(1, READ_AHEAD_BYTES // max(1, chunk.num_bytes)))
                        first = False
                    if not self._room.take():
                        return
                    self._ahead.put(chunk)
        finally:
            self._ahead.put(None)

    def batches(self) -> Iterator[StepBatch]:
        """Yield what was read, in order; then raise the error that ended reading, if any."""
        try:
            while (chunk := self._ahead.get()) is not None:
                yield from chunk.batches()
                self._room.free()
            self._reading.result()
        finally:
            self._room.close()
            # A thread that asks Ray for a block after ``ray.shutdown`` ends the process.
            wait([self._reading], timeout=LEAVING_S)
