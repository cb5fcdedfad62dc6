"""Have the next step read, agreed on by all ranks and prepared while the present one computes."""

from __future__ import annotations

import functools
import queue
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import wait
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

import torch.distributed as dist

from cytoray.corpus.streaming.background import start_daemon
from cytoray.corpus.streaming.batches import StepBatch
from cytoray.errors import CytorayError
from cytoray.training.objectives import Prepared
from cytoray.training.steps import StepPlan, StepRunner

LEAVING_S = 5.0  # for a thread that still reads or exchanges when the loop ends by an error
ENDED, FAILED = 0, -1  # a rank's number of micro-batches if it has no minibatch left, or could not read it


class Wishes(NamedTuple):
    """Actions at a step, done by all ranks if any of them wishes it."""

    stop: bool = False  # after the step
    look: bool = False  # for nodes that are about to be preempted
    log: bool = False  # the steps so far


@dataclass(frozen=True)
class ReadyStep:
    """A step that can be taken at once."""

    batch: StepBatch
    plan: StepPlan
    parts: list[Prepared]  # micro-batches, on the host

    @property
    def wishes(self) -> Wishes:
        """The wishes of all ranks."""
        return Wishes(*self.plan.signals)


class StepsAhead:
    """Iterator over a rank's steps; each must be asked for before it is taken, best while the step before computes.

    One thread reads, exchanges and prepares them, on a process group of its own, so its exchanges have the same order
    on all ranks and do not mix with those of the loop. All ranks must ask for the same steps. An error of one rank's
    data is raised on every rank at that step, rather than on the others by a collective that times out.
    """

    def __init__(self, batches: Iterator[StepBatch], runner: StepRunner, wishes: Callable[[], Wishes]) -> None:
        """``wishes`` is called by the thread, once per step."""
        self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()  # False ends the thread
        self._ready: queue.SimpleQueue[ReadyStep | None] = queue.SimpleQueue()
        self._working = start_daemon(functools.partial(self._work, batches, runner, wishes), name="steps-ahead")

    def ask(self) -> None:
        """Have the step after those asked for made ready."""
        self._asked.put(True)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ReadyStep:
        """The next step that was asked for; the end, or an error of any rank's data, comes on all ranks at once."""
        ready = self._ready.get()
        if ready is None:
            self._working.result()
            raise StopIteration
        return ready

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the thread."""
        self._asked.put(False)
        wait([self._working], timeout=LEAVING_S)

    def _work(self, batches: Iterator[StepBatch], runner: StepRunner, wishes: Callable[[], Wishes]) -> None:
        """Make steps ready until the end, an error, or the loop's end."""
        try:
            while self._asked.get():
                ready = _make_ready(batches, runner, wishes)
                if ready is None:
                    return
                self._ready.put(ready)
        finally:
            self._ready.put(None)
            if isinstance(batches, Generator):
                batches.close()  # in the thread that runs it


def _make_ready(batches: Iterator[StepBatch], runner: StepRunner, wishes: Callable[[], Wishes]) -> ReadyStep | None:
    """Read a minibatch, agree on its step and prepare it; None after the last. Collective."""
    batch, error = None, None
    mine, signals = runner.measure_nothing(ENDED), Wishes()
    try:
        batch = next(batches, None)
        if batch is not None:
            mine, signals = runner.measure(batch), wishes()
    except Exception as caught:  # noqa: BLE001 - whatever it is, all ranks raise it
        error, mine[0] = caught, FAILED
    rows = runner.exchange([*mine, *signals])
    statuses = rows[:, 0].tolist()
    if FAILED in statuses:
        found = _share_error(error, runner)
        raise error or found
    if ENDED in statuses:
        assert not any(statuses), f"some ranks have no data left and others do: {statuses}"
        return None
    assert batch is not None
    plan = runner.read_plan(rows)
    return ReadyStep(batch, plan, runner.prepare(batch, plan))


def _share_error(error: Exception | None, runner: StepRunner) -> Exception:
    """The first error that a rank has met: itself if it is a CytorayError, which pickles, else its text. Collective."""
    mine = None if error is None else f"rank {dist.get_rank()} cannot continue: {type(error).__name__}: {error}"
    errors: list[CytorayError | str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error if isinstance(error, CytorayError) else mine, group=runner.host_group)
    found = next(other for other in errors if other is not None)
    return found if isinstance(found, CytorayError) else RuntimeError(found)
