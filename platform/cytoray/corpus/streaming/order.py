"""The reading order of a corpus: which cells make up step t, a pure function of (row groups, seed, step).

A unit is a row group of a shard. An epoch permutes the units, and the cells inside each. The positions 0 to N - 1 so
given are cut into windows of about 16,384 cells; inside a window its units ("lanes") are interleaved in proportion to
their cells, so that every step draws from all of them. The epochs follow one another without a gap: step t is the
positions [t * S, (t + 1) * S) of an endless stream. Inside a step cells stand lane by lane, and the ranks p to q of W
take the slice [p * S // W, q * S // W): the union over ranks is the same for every W, and few ranks read few lanes.

Nothing is stored, and only the step is needed to resume; the cost is one permutation of the units per epoch.
"""

# U units, T steps, S cells of a step, B cells of a share of a step, n cells of a window

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from cytoray.corpus.streaming.recent import Recent
from cytoray.corpus.streaming.windows import Lanes, lay_out
from cytoray.tokens.cells import Int64
from cytoray.tokens.keys import Purpose, combine, uniform

WINDOW_CELLS = 16_384  # 50 MB at 1,500 genes; every step draws from the eight or nine row groups of a window
RUN_WINDOWS = 2  # of a run: at its ends row groups are read that another run reads as well
WINDOW_STEPS = 64  # at least: a window's end costs some reading twice


@dataclass(frozen=True, eq=False)
class OrderedCells:
    """The share of some ranks in T steps, B cells each (all shapes (T, B))."""

    units: Int64
    places: Int64  # among the unit's cells of the epoch, 0 to its count
    epochs: Int64


@dataclass(frozen=True, eq=False)
class _Window:
    """Positions ``start`` to ``start + n`` of the endless stream: units and places in the order of reading."""

    units: Int64  # (n,)
    places: Int64  # (n,)


@dataclass(frozen=True, eq=False)
class ReadingOrder:
    """The order over units with ``counts`` (U,) cells per epoch."""

    counts: Int64
    seed: int
    cells_per_step: int
    _recent: Recent = field(default_factory=lambda: Recent(8), repr=False, init=False)  # windows and epochs

    def __post_init__(self) -> None:
        assert self.num_cells > 0, "an order needs a cell"
        assert self.cells_per_step > 0, "a step needs a cell"

    @functools.cached_property
    def num_cells(self) -> int:
        """Number of cells N per epoch."""
        return int(self.counts.sum())

    @property
    def window_cells(self) -> int:
        """Number of cells of a whole window: a whole number of steps."""
        return max(WINDOW_STEPS, -(-WINDOW_CELLS // self.cells_per_step)) * self.cells_per_step

    def cells(self, start: int, stop: int, *, rank: int = 0, world_size: int = 1, num_ranks: int = 1) -> OrderedCells:
        """Return the share of ``num_ranks`` ranks, from ``rank`` on, in the steps ``start`` to ``stop``."""
        assert 0 <= rank < rank + num_ranks <= world_size, "ranks are counted from 0"
        size, first, last = self.cells_per_step, start * self.cells_per_step, stop * self.cells_per_step
        mine = slice(rank * size // world_size, (rank + num_ranks) * size // world_size)
        units, places, epochs = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for epoch, begin, end in self._windows(first, last):
            window, base = self._window(epoch, begin, end), epoch * self.num_cells + begin
            part = slice(max(first - base, 0), min(last - base, end - begin))
            units.append(window.units[part])
            places.append(window.places[part])
            epochs.append(np.full(part.stop - part.start, epoch, np.int64))
        shares = (np.concatenate(parts).reshape(stop - start, size)[:, mine] for parts in (units, places, epochs))
        return OrderedCells(*shares)

    def runs(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Cut the steps ``start`` to ``stop`` at window borders into runs that read hardly anything twice.

        A run is as close to ``RUN_WINDOWS`` whole windows as possible; runs of a small corpus are small.
        """
        first = start
        for epoch, begin, _ in self._windows(start * self.cells_per_step, stop * self.cells_per_step):
            border = -(-(epoch * self.num_cells + begin) // self.cells_per_step)
            if (border - first) * self.cells_per_step > (RUN_WINDOWS - 0.5) * self.window_cells:
                yield first, min(border, stop)
                first = border
        if first < stop:
            yield first, stop

    def _windows(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """Yield the windows (epoch, begin, end; positions in the epoch) of the positions ``first`` to ``last``."""
        position = first
        while position < last:
            epoch, offset = divmod(position, self.num_cells)
            lead = min(-epoch * self.num_cells % self.cells_per_step, self.num_cells)  # to the next border of a step
            begin, end = 0, lead
            if offset >= lead:
                begin = offset - (offset - lead) % self.window_cells
                end = min(begin + self.window_cells, self.num_cells)
            yield epoch, begin, end
            position = epoch * self.num_cells + end

    def _window(self, epoch: int, begin: int, end: int) -> _Window:
        """A window's cells in the order of reading."""
        window: _Window = self._recent.get((epoch, begin, end), lambda: self._lay_out(epoch, begin, end))
        return window

    def _lay_out(self, epoch: int, begin: int, end: int) -> _Window:
        """Interleave the lanes of a window, then put each step's cells lane by lane."""
        order, ends = self._epoch(epoch)
        first, last = np.searchsorted(ends, begin, "right"), np.searchsorted(ends, end, "left")
        units, stops = order[first : last + 1], ends[first : last + 1]
        counts = self.counts[units]
        starts = stops - counts
        lanes = Lanes(
            keys=combine(self.seed, int(Purpose.ORDER), epoch, units + 1),
            counts=counts,
            low=np.maximum(begin - starts, 0),
            high=np.minimum(end - starts, counts),
            shifts=uniform(combine(self.seed, int(Purpose.ORDER), epoch, begin, units)),
        )
        lane_of, places = np.empty(end - begin, np.int64), np.empty(end - begin, np.int64)
        lay_out(lanes, epoch * self.num_cells + begin, self.cells_per_step, lane_of, places)
        return _Window(units[lane_of], places)

    def _epoch(self, epoch: int) -> tuple[Int64, Int64]:
        """Return the units of an epoch in order, and the position at which each ends; empty ones are left out."""
        units: tuple[Int64, Int64] = self._recent.get(epoch, lambda: self._permute(epoch))
        return units

    def _permute(self, epoch: int) -> tuple[Int64, Int64]:
        keys = combine(self.seed, int(Purpose.ORDER), epoch, np.arange(len(self.counts), dtype=np.uint64))
        order = np.argsort(keys, kind="stable")
        order = order[self.counts[order] > 0]
        return order, np.cumsum(self.counts[order])
