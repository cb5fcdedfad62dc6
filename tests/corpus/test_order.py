from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest

from cytoray.corpus.streaming.order import ReadingOrder
from cytoray.tokens.keys import Purpose, combine, uniform

SIZES = {
    "small": [70, 41, 0, 59],
    "one cell": [1],
    "several windows": [5000] * 9 + [0, 3],
    "row groups": [2048] * 30 + [17],
}


def make_order(sizes, *, cells_per_step: int = 64, seed: int = 3) -> ReadingOrder:
    return ReadingOrder(np.array(sizes, np.int64), seed, cells_per_step)


def flat(order: ReadingOrder, start: int, stop: int, **share: int) -> list[tuple[int, int, int]]:
    cells = order.cells(start, stop, **share)
    return list(
        zip(cells.epochs.ravel().tolist(), cells.units.ravel().tolist(), cells.places.ravel().tolist(), strict=True)
    )


@pytest.mark.parametrize("cells_per_step", [1, 10, 64, 170, 400])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_every_cell_comes_once_an_epoch_and_epochs_follow_without_a_gap(sizes, cells_per_step: int):
    order = make_order(sizes, cells_per_step=cells_per_step)
    num_steps = -(-3 * order.num_cells // cells_per_step)
    everything = sorted((unit, place) for unit, size in enumerate(sizes) for place in range(size))
    cells = flat(order, 0, num_steps)
    for epoch in range(3):
        part = cells[epoch * order.num_cells : (epoch + 1) * order.num_cells]
        assert {one[0] for one in part} == {epoch}
        assert sorted(one[1:] for one in part) == everything


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_the_order_is_the_documented_one(sizes):
    order = make_order(sizes, cells_per_step=10)
    total = order.num_cells
    cells = [(unit, place) for _, unit, place in flat(order, 0, total // 10)]
    units = np.argsort(combine(3, int(Purpose.ORDER), 0, np.arange(len(sizes)))).tolist()
    lined_up = [
        (unit, place)
        for unit in units
        for place in np.argsort(combine(3, int(Purpose.ORDER), 0, unit + 1, np.arange(sizes[unit]))).tolist()
    ]
    for begin in range(0, total, order.window_cells):
        window = lined_up[begin : begin + order.window_cells]
        lanes = {
            unit: [cell for cell in window if cell[0] == unit] for unit in dict.fromkeys(unit for unit, _ in window)
        }
        shifts = {unit: float(uniform(combine(3, int(Purpose.ORDER), 0, begin, unit))) for unit in lanes}
        turns = {
            cell: (number + shifts[unit]) / len(lane)
            for unit, lane in lanes.items()
            for number, cell in enumerate(lane)
        }
        window.sort(key=turns.__getitem__)
        ranks = {unit: rank for rank, unit in enumerate(lanes)}
        for start in range(0, len(window) // 10 * 10, 10):
            expected = sorted(window[start : start + 10], key=lambda cell: ranks[cell[0]])
            assert cells[begin + start : begin + start + 10] == expected
    assert len(cells) == total // 10 * 10


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_the_shares_of_the_ranks_make_up_the_step_for_any_number_of_ranks(sizes):
    order = make_order(sizes)
    steps_an_epoch = order.num_cells // 64
    for step in {0, 17, steps_an_epoch, steps_an_epoch + 1, 5 * steps_an_epoch + 3}:  # the third straddles two epochs
        whole = flat(order, step, step + 1)
        for world_size in (2, 3, 8, 64, 100):
            shares = [flat(order, step, step + 1, rank=rank, world_size=world_size) for rank in range(world_size)]
            assert [cell for share in shares for cell in share] == whole
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_an_order_goes_on_at_any_step_as_if_it_had_never_stopped():
    sizes = SIZES["several windows"]
    unbroken = flat(make_order(sizes), 0, 1500)
    for start in (0, 1, 255, 256, 703, 704, 1499):
        there = pickle.loads(pickle.dumps(make_order(sizes)))  # noqa: S301 - our own
        assert flat(there, start, 1500) == unbroken[64 * start :]
        assert flat(there, start, start + 1) == unbroken[64 * start : 64 * (start + 1)]


def test_orders_differ_between_epochs_and_seeds_and_are_repeated_by_the_same_seed():
    order, num_steps = make_order(SIZES["small"], cells_per_step=10), 17
    epochs = [[cell[1:] for cell in flat(order, 17 * e, 17 * (e + 1))] for e in range(3)]
    other = [cell[1:] for cell in flat(make_order(SIZES["small"], cells_per_step=10, seed=4), 0, num_steps)]
    again = [cell[1:] for cell in flat(make_order(SIZES["small"], cells_per_step=10), 0, num_steps)]
    assert len({tuple(cells) for cells in (*epochs, other)}) == 4
    assert again == epochs[0]
    # Units that come together change from epoch to epoch, and cells change their company within a unit.
    large = make_order([2048] * 40)
    first, second = ({unit for _, unit, _ in flat(large, 1280 * e, 1280 * e + 1)} for e in range(2))
    assert first != second


def test_every_step_draws_from_all_units_of_its_window_in_proportion():
    order = make_order([2048] * 40 + [512] * 40, cells_per_step=64)
    for step in range(0, 1536, 37):  # whole windows of the first epoch
        counts = Counter(unit for _, unit, _ in flat(order, step, step + 1))
        window = Counter(unit for _, unit, _ in flat(order, step - step % 256, step - step % 256 + 256))
        for unit, size in window.items():
            assert abs(counts[unit] - size * 64 / sum(window.values())) <= 2


def test_a_rank_reads_few_units():
    order = make_order([2048] * 64)
    for world_size, most in ((1, 9), (2, 6), (8, 3)):
        for rank in range(world_size):
            units = order.cells(0, 256, rank=rank, world_size=world_size).units
            assert len(np.unique(units)) <= most


@pytest.mark.parametrize(("start", "stop"), [(0, 2000), (3, 1400), (700, 701), (5, 5)])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_runs_cover_all_steps_and_are_about_one_window_each(sizes, start: int, stop: int):
    order = make_order(sizes)
    runs = list(order.runs(start, stop))
    assert [step for first, last in runs for step in range(first, last)] == list(range(start, stop))
    assert all((last - first) * 64 <= 2 * order.window_cells for first, last in runs)
    short = [run for run in runs[1:-1] if (run[1] - run[0]) * 64 * 2 <= order.window_cells]
    assert not short


def test_an_epoch_over_33_million_cells_is_planned():
    order = make_order([2048] * (33_000_000 // 2048))
    assert len(list(order.runs(0, order.num_cells // 64))) == 1008
    last = flat(order, order.num_cells // 64 - 1, order.num_cells // 64)
    assert len(last) == 64
