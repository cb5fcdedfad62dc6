"""The order of the cells of one window, compiled: in Python it would hold the GIL that the consumer waits for."""

# K lanes (units of a window), n cells of a window

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cytoray.tokens.cells import Int64, UInt64
from cytoray.tokens.coding import mix_into
from cytoray.tokens.compiling import compiled
from cytoray.tokens.keys import Float64


class Lanes(NamedTuple):
    """The units of a window, in the order of the epoch; of each the cells ``low`` to ``high`` of its own order."""

    keys: UInt64  # (K,) of which, with a place, the order inside a unit is made
    counts: Int64  # (K,) cells of the whole unit
    low: Int64  # (K,)
    high: Int64  # (K,)
    shifts: Float64  # (K,) in [0, 1): where between two turns a lane's own come


@compiled
def lay_out(lanes: Lanes, first: int, cells_per_step: int, lane_of: Int64, places: Int64) -> None:
    """Write the lane and the place of each cell of a window (both (n,)), the window's first being the ``first`` of all.

    Lanes take turns in proportion to their cells; inside a step cells then stand lane by lane, in the order of turns.
    """
    inside = np.empty(lane_of.size, np.int64)  # the lanes end to end, each in its own order
    turns = np.empty(lane_of.size, np.float64)
    borders = np.zeros(lanes.counts.size + 1, np.int64)
    for lane in range(lanes.counts.size):
        keys = np.empty(lanes.counts[lane], np.uint64)
        for place in range(keys.size):
            keys[place] = mix_into(lanes.keys[lane], np.uint64(place))
        size, at = lanes.high[lane] - lanes.low[lane], borders[lane]
        inside[at : at + size] = np.argsort(keys)[lanes.low[lane] : lanes.high[lane]]
        for number in range(size):
            turns[at + number] = (number + lanes.shifts[lane]) / size
        borders[lane + 1] = at + size
    order = np.argsort(turns, kind="mergesort")
    for place in range(order.size):
        lane_of[place] = np.searchsorted(borders, order[place], side="right") - 1
    start = 0
    while start < order.size:
        stop = min(order.size, start + cells_per_step - (first + start) % cells_per_step)
        by_lane = np.argsort(lane_of[start:stop], kind="mergesort")
        lane_of[start:stop] = lane_of[start:stop][by_lane]
        places[start:stop] = inside[order[start:stop][by_lane]]
        start = stop
