"""Read row groups and fill chunks ahead of whoever consumes them, on a few threads and into bounded memory.

Reading, inflating and the kernel release Python's lock, so threads do; processes would have to pickle every minibatch.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from cytoray.corpus.streaming.background import Room, start_daemon
from cytoray.corpus.streaming.batches import StepChunk
from cytoray.corpus.streaming.filling import ChunkFiller, LoadedUnit
from cytoray.corpus.streaming.order import OrderedCells
from cytoray.corpus.streaming.shares import Team
from cytoray.tokens.cells import Int64

FILLED_AHEAD = 2  # chunks of about 15 MB
READ_AHEAD = 2  # chunks whose row groups are read: half a window, so that the next is there when this one ends


@dataclass(frozen=True, eq=False)
class Job:
    """A chunk to be filled."""

    steps: Int64  # (T,)
    cells: OrderedCells  # of the whole team
    team: Team

    @property
    def units(self) -> list[int]:
        """The row groups it needs."""
        return [int(unit) for unit in np.unique(self.cells.units)]


Read = Callable[[int], LoadedUnit]


def fill_in_turn(filler: ChunkFiller, jobs: Iterator[Job], read: Read) -> Iterator[StepChunk]:
    """Fill each chunk when it is asked for, keeping the row groups of the last one."""
    held: dict[int, LoadedUnit] = {}
    for job in jobs:
        units = job.units
        held = {unit: held[unit] if unit in held else read(unit) for unit in units}
        yield filler.fill(job.steps, job.cells, held.__getitem__, team=job.team)


def fill_ahead(
    filler: ChunkFiller, jobs: Iterator[Job], read: Read, *, threads: int, num_readers: int
) -> Iterator[StepChunk]:
    """Fill on ``threads`` threads, reading on them too or on ``num_readers`` others; begins when first asked."""
    return _Ahead(filler, jobs, read, threads, num_readers).chunks()


class _Ahead:
    """Plans on a thread of its own, so that planning never keeps the consumer waiting; pools read and fill."""

    def __init__(self, filler: ChunkFiller, jobs: Iterator[Job], read: Read, threads: int, num_readers: int) -> None:
        self._filler, self._jobs, self._read = filler, jobs, read
        self._fillers = ThreadPoolExecutor(threads, "corpus-fill")
        # Among the fillers a read comes before the filling that waits for it, so the two never block one another.
        self._readers = ThreadPoolExecutor(num_readers, "corpus-read") if num_readers else self._fillers
        self._units: dict[int, Future[LoadedUnit]] = {}
        self._wanted: Counter[int] = Counter()  # by how many chunks under way each unit is still needed
        self._lock = threading.Lock()
        self._out: queue.SimpleQueue[Future[StepChunk] | None] = queue.SimpleQueue()
        self._room = Room(FILLED_AHEAD + threads)

    def chunks(self) -> Iterator[StepChunk]:
        """What was filled, in order; an error comes where its chunk would have."""
        planning = start_daemon(self._plan, name="corpus-plan")
        try:
            while (filling := self._out.get()) is not None:
                chunk = filling.result()
                self._room.free()
                yield chunk
            planning.result()
        finally:
            self._room.close()  # and nothing that takes a lock: this may run as a finalizer

    def _plan(self) -> None:
        """Plan until the end, an error, or nobody wants more."""
        planned: deque[Job] = deque()
        try:
            for job in self._jobs:
                self._begin_reading(job)
                planned.append(job)
                if len(planned) > READ_AHEAD and not self._begin_filling(planned.popleft()):
                    return
            while planned and self._begin_filling(planned.popleft()):
                pass
        finally:
            self._out.put(None)
            for pool in (self._readers, self._fillers):
                pool.shutdown(wait=False, cancel_futures=self._room.closed)

    def _begin_reading(self, job: Job) -> None:
        with self._lock:
            for unit in job.units:
                if unit not in self._units:
                    self._units[unit] = self._readers.submit(self._read, unit)
                self._wanted[unit] += 1

    def _begin_filling(self, job: Job) -> bool:
        """Hand a chunk on as soon as there is room; False when nobody wants it."""
        if not self._room.take():
            return False
        self._out.put(self._fillers.submit(self._fill, job))
        return True

    def _fill(self, job: Job) -> StepChunk:
        with self._lock:
            units = {unit: self._units[unit] for unit in job.units}
        chunk = self._filler.fill(job.steps, job.cells, lambda unit: units[unit].result(), team=job.team)
        with self._lock:
            for unit in units:
                self._wanted[unit] -= 1
                if not self._wanted[unit]:
                    del self._wanted[unit], self._units[unit]
        return chunk
