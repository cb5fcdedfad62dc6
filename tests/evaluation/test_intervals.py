from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from cytoray.evaluation.intervals import Interval, bootstrap_interval, compare, draw_rows, verdict_of


def test_draws_hold_whole_units():
    units = np.array(["a", "b", "b", "c", "c", "c"])
    for rows in draw_rows(units, num_draws=50, seed=0):
        drawn = {unit: np.count_nonzero(units[rows] == unit) for unit in "abc"}
        assert drawn["b"] % 2 == 0
        assert drawn["c"] % 3 == 0
        assert drawn["a"] + drawn["b"] // 2 + drawn["c"] // 3 == 3


def test_the_interval_of_a_mean_is_that_of_scipy():
    values = np.random.default_rng(1).normal(3, 2, 200)
    ours = bootstrap_interval(lambda rows: values[rows].mean(), draw_rows(range(200), num_draws=4000, seed=0))
    theirs = stats.bootstrap((values,), np.mean, confidence_level=0.9, method="percentile", n_resamples=4000, rng=0)
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.03)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.03)


@pytest.mark.parametrize(("shift", "verdict"), [(0.5, "win"), (0.0, "tie"), (-0.5, "loss")])
def test_pairing_finds_a_difference_far_smaller_than_the_spread(shift, verdict):
    rng = np.random.default_rng(0)
    base = rng.normal(0, 10, 300)
    ours = base + shift + rng.normal(0, 0.5, 300)
    draws = draw_rows(range(300), num_draws=500, seed=0)
    every = np.arange(300)
    if verdict == "tie":
        ours = base + rng.permutation(np.tile([0.5, -0.5], 150))
    found = compare(lambda rows: ours[rows].mean(), lambda rows: base[rows].mean(), draws, all_rows=every)
    assert found.verdict == verdict
    assert found.interval.low <= found.difference <= found.interval.high


def test_draws_without_a_value_are_left_out():
    draws = [np.array([0]), np.array([1]), np.array([2])]
    found = bootstrap_interval(lambda rows: np.nan if rows[0] == 1 else float(rows[0]), draws)
    assert 0 <= found.low <= found.high <= 2


def test_an_interval_that_touches_zero_is_a_tie():
    assert verdict_of(Interval(0.0, 1.0)) == "tie"
