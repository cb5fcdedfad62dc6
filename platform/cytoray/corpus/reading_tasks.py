"""The tasks that read a rank's minibatches, and the pause of the executor that runs them.

Every process of a pipeline imports this module: ``ray.train`` and the readers would take each of them half a second.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import pyarrow as pa
import ray
from ray.data._internal.execution.execution_callback import ExecutionCallback

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

    from cytoray.corpus.stream import CorpusStream

PAUSE_S = 0.1  # less than what a worker has read ahead lasts


class Unhurried(ExecutionCallback):
    """A callback that makes Ray Data 2.60 pause while its output waits to be read.

    Its loop waits for output of a task; once there is some and no room for it, the loop spins, on half a core or more
    per rank, until training ends.
    """

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        """Pause if no consumer is waiting."""
        if not executor._consumer_idling():
            time.sleep(PAUSE_S)


@functools.lru_cache(maxsize=2)
def _get_stream(reference: ray.ObjectRef[CorpusStream]) -> CorpusStream:
    """Return the stream, unpickled once per worker: a large corpus's manifest takes longer than reading a window."""
    return cast("CorpusStream", ray.get(reference))


def warm_up(stream: list[ray.ObjectRef[CorpusStream]]) -> None:
    """Prepare a worker process for reading: its imports and the stream."""
    _get_stream(stream[0])


def read_run(runs: pa.Table, *, stream: ray.ObjectRef[CorpusStream], rank: int, world_size: int) -> Iterator[pa.Table]:
    """Read runs of steps for one rank, a block at a time."""
    here = _get_stream(stream)
    for run in runs.to_pylist():
        for chunk in here.read_chunks(range(run["start"], run["stop"]), rank=rank, world_size=world_size):
            yield chunk.to_table()
