"""Deal a stream's steps to the ranks of a training run through Ray Data, in order and without a race."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import ray.data
from ray.train import DataConfig

from cytoray.corpus.stream import CorpusStream, StepBatch

STEPS_PER_TASK = 16  # one Ray task; fewer and the task's start dominates, more and the first step waits
TASK_CPUS = 0.25


def steps_dataset(start: int, stop: int) -> ray.data.Dataset:
    """The steps from ``start`` to ``stop`` as a Ray dataset of short runs of steps."""
    runs = [{"start": s, "stop": min(s + STEPS_PER_TASK, stop)} for s in range(start, stop, STEPS_PER_TASK)]
    return ray.data.from_items(runs, override_num_blocks=len(runs))


class DealtSteps(DataConfig):
    """Gives each rank its own deterministic iterator (``streaming_split`` deals blocks first come, first served)."""

    def __init__(self, stream: CorpusStream) -> None:
        super().__init__(datasets_to_split="all")
        self._stream = stream

    def configure(
        self, datasets: dict[str, ray.data.Dataset], world_size: int, *args: Any, **kwargs: Any
    ) -> list[dict[str, ray.data.DataIterator]]:
        """One pipeline a rank: runs of steps -> that rank's minibatches, in order."""
        return [
            {name: self._rank_dataset(dataset, rank, world_size).iterator() for name, dataset in datasets.items()}
            for rank in range(world_size)
        ]

    def _rank_dataset(self, dataset: ray.data.Dataset, rank: int, world_size: int) -> ray.data.Dataset:
        dataset = dataset.copy(dataset)
        options = self._resolve_execution_options("train")
        options.preserve_order = True
        dataset.context.execution_options = options
        read = functools.partial(_read_run, stream=self._stream, rank=rank, world_size=world_size)
        return dataset.flat_map(read, num_cpus=TASK_CPUS)


def _read_run(run: dict[str, Any], *, stream: CorpusStream, rank: int, world_size: int) -> list[dict[str, Any]]:
    """Read one run of steps for one rank."""
    steps = range(int(run["start"]), int(run["stop"]))
    return [stream.read_step(step, rank=rank, world_size=world_size).to_row() for step in steps]


def iterate_steps(iterator: ray.data.DataIterator) -> Iterator[StepBatch]:
    """The minibatches of a rank's iterator."""
    for row in iterator.iter_rows():
        yield StepBatch.from_row(row)
