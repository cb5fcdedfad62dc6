"""The process that runs Ray Data's executor for one rank, and the tasks that read for it.

Every process of a pipeline imports this module; ``ray.train`` and the readers would take each of them half a second.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import ray.data
from ray._raylet import RAY_NODE_ID_KEY  # type: ignore[attr-defined]
from ray.data._internal import stats
from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.iterator.stream_split_iterator import SplitCoordinator, StreamSplitDataIterator
from ray.data._internal.logical.interfaces import LogicalPlan
from ray.data._internal.logical.operators import StreamingSplit
from ray.exceptions import RayActorError

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

    from cytoray.corpus.stream import CorpusStream

PAUSE_S = 0.1  # less than what a worker has read ahead lasts
NUM_THREADS = 2  # of an executor's process: one waits for a block while another ends the pipeline
_COORDINATOR: Any = cast("Any", SplitCoordinator).__ray_metadata__.modified_class


class Unhurried(ExecutionCallback):
    """A callback that makes Ray Data 2.60 pause while its output waits to be read.

    Its loop waits for output of a task; once there is some and no room for it, the loop spins, on half a core or more
    per rank, until training ends.
    """

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        """Pause if no consumer is waiting."""
        if not executor._consumer_idling():
            time.sleep(PAUSE_S)


class _Postponed:
    """An actor of Ray Data that is created, and receives its calls, once ``open`` was called.

    Two actors collect statistics and divide the cluster among pipelines. Each is a process that imports Ray Data; a
    first block needs neither, and on few CPUs waits for both.
    """

    def __init__(self, create: Callable[[], Any]) -> None:
        self._create, self._calls, self._is_open = create, list[tuple[str, Any, Any]](), False

    def __call__(self) -> Any:
        """Return the actor, or this object in its place."""
        return self._create() if self._is_open else self

    def __getattr__(self, method: str) -> Any:
        """Return an actor method whose ``remote`` keeps the call and returns a reference to an empty answer."""
        if method.startswith("_"):
            raise AttributeError(method)
        return _PostponedMethod(self, method)

    def call(self, method: str, args: Any, options: Any) -> Any:
        """Make a call of the actor, now or later."""
        if self._is_open:
            return getattr(self._create(), method).remote(*args, **options)
        self._calls.append((method, args, options))
        return ray.put({})

    def open(self) -> None:
        """Make the calls that were kept, and from now on every call at once."""
        if not self._is_open:
            self._is_open = True
            for method, args, options in self._calls:
                getattr(self._create(), method).remote(*args, **options)
            self._calls.clear()


class _PostponedMethod:
    """A method of a postponed actor."""

    def __init__(self, actor: _Postponed, name: str) -> None:
        self._actor, self._name = actor, name

    def remote(self, *args: Any, **options: Any) -> Any:
        """Make the call, now or later."""
        return self._actor.call(self._name, args, options)


class StepCoordinator(_COORDINATOR):  # type: ignore[misc]
    """Ray Data's coordinator, which runs the executor, for one rank; it can be given another pipeline."""

    def __init__(self, dataset: ray.data.Dataset) -> None:
        self._postponed = [
            _postpone(stats, "get_or_create_stats_actor"),
            _postpone(default_autoscaling_coordinator, "get_or_create_autoscaling_coordinator"),
        ]
        self._num_replaced = 0
        super().__init__(dataset, 1, None)

    def replace(self, dataset: ray.data.Dataset) -> None:
        """End the pipeline and take this one; whoever still reads the old one gets an error."""
        self._num_replaced += 1
        self.shutdown_executor()
        epoch = vars(self)["_cur_epoch"]
        super().__init__(dataset, 1, None)
        self._cur_epoch = epoch + 1  # never that of an older pipeline: its reader would take blocks of this one

    def get(self, *args: Any) -> Any:
        """Return the next block, or None at the end."""
        num_replaced, is_first = self._num_replaced, not any(self._num_rows_dispatched.values())
        block = super().get(*args)
        if num_replaced != self._num_replaced:  # an executor that is shut down ends as if it had done its work
            raise RuntimeError("This pipeline was replaced by another one.")
        if not is_first or block is None:
            for actor in self._postponed:
                actor.open()
        return block


def _postpone(module: Any, name: str) -> _Postponed:
    """Put a postponed actor in the place of a module's function that creates it."""
    postponed = _Postponed(getattr(module, name))
    setattr(module, name, postponed)
    return postponed


def start_pipeline(dataset: ray.data.Dataset, coordinator: Any = None) -> tuple[Any, ray.data.DataIterator]:
    """Let a coordinator, the given one if it is alive, execute ``dataset``; return it, and the iterator of the blocks.

    It is a process of its own, because the executor's thread would slow every training step in the worker.
    """
    plan = LogicalPlan(StreamingSplit(1, False, None, input_dependencies=[dataset._logical_plan.dag]), dataset.context)
    split = ray.data.Dataset._from_parent(dataset, plan)
    split._set_uuid(dataset._uuid)
    if coordinator is None or not _is_replaced(coordinator, split):
        here = {RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
        coordinator = (
            ray.remote(num_cpus=0)(StepCoordinator)
            .options(max_concurrency=NUM_THREADS, label_selector=here)
            .remote(split)
        )
    return coordinator, StreamSplitDataIterator(coordinator, 0, 1)


def _is_replaced(coordinator: Any, dataset: ray.data.Dataset) -> bool:
    """Give a coordinator another pipeline; False if its process has ended."""
    try:
        ray.get(coordinator.replace.remote(dataset))
    except RayActorError:
        return False
    return True


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
