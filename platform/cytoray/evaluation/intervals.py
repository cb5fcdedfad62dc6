"""Bootstrap intervals over the unit that must generalise, and the verdict on a paired difference: win, tie or loss.

drawn = draw_rows(units, num_draws=1000, seed=0)
compare(lambda rows: macro_f1(truth[rows], ours[rows]), lambda rows: macro_f1(truth[rows], theirs[rows]), drawn)
"""

# C cells, D draws, U units

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
Statistic = Callable[[Int64], float]  # of the cells at these rows; a row may be there several times
Verdict = Literal["win", "tie", "loss"]
LEVEL = 0.90


@dataclass(frozen=True)
class Interval:
    """Limits of a percentile bootstrap interval."""

    low: float
    high: float
    level: float = LEVEL

    def as_list(self) -> list[float]:
        """Return [low, high], as reports have it."""
        return [self.low, self.high]


@dataclass(frozen=True)
class Comparison:
    """The difference of two answers on the same cells (first minus second), its paired interval, and the verdict."""

    difference: float
    interval: Interval
    verdict: Verdict


def draw_rows(units: Sequence[object] | npt.NDArray[np.generic], *, num_draws: int = 1000, seed: int) -> list[Int64]:
    """Draw units with replacement, ``num_draws`` times, and return the rows of each draw's units.

    ``units``: the unit of each of C cells, such as its donor; its own row number if cells are the units.
    """
    names, unit_of = np.unique(np.asarray(units), return_inverse=True)
    order = np.argsort(unit_of, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(unit_of, minlength=len(names)))])
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(num_draws):
        chosen = rng.integers(0, len(names), len(names))
        lengths = starts[chosen + 1] - starts[chosen]
        ends = np.cumsum(lengths)
        places = np.arange(ends[-1]) + np.repeat(starts[chosen] - (ends - lengths), lengths)
        draws.append(order[places])
    return draws


def bootstrap_interval(statistic: Statistic, draws: Sequence[Int64], *, level: float = LEVEL) -> Interval:
    """Return the percentile interval of a statistic over the draws; draws on which it is not finite are left out."""
    return _interval(np.array([statistic(rows) for rows in draws], np.float64), level)


def compare(
    first: Statistic, second: Statistic, draws: Sequence[Int64], *, all_rows: Int64, level: float = LEVEL
) -> Comparison:
    """Compare two answers on ``all_rows`` by the paired bootstrap; higher is better.

    "win" if the whole interval of the difference lies above 0, "loss" if it lies below, otherwise "tie".
    """
    differences = np.array([first(rows) - second(rows) for rows in draws], np.float64)
    interval = _interval(differences, level)
    return Comparison(float(first(all_rows) - second(all_rows)), interval, verdict_of(interval))


def verdict_of(interval: Interval) -> Verdict:
    """Return the verdict that the interval of a difference gives."""
    if interval.low > 0:
        return "win"
    return "loss" if interval.high < 0 else "tie"


def _interval(values: Float64, level: float) -> Interval:
    values = values[np.isfinite(values)]
    assert len(values), "the statistic is finite on no draw"
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level)
