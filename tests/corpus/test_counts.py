from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from cytoray.corpus.checking.counts import recover_counts

SEEDS = st.integers(0, 2**32)


def draw_counts(seed: int, *, largest: int = 3000, smallest: int = 1, num_cells: int = 8) -> np.ndarray:
    """Cells of 150 genes as in UMI data: many zeros and ones, few large; ``smallest`` is present in each."""
    rng = np.random.default_rng(seed)
    counts = np.minimum(np.floor(rng.pareto(0.9, (num_cells, 150)) * smallest + smallest), largest)
    counts[rng.random(counts.shape) < 0.5] = 0
    counts[:, 0] = smallest
    counts[:, 1] = smallest + 1
    return counts


def recover(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    recovered, mask = recover_counts(sparse.csr_matrix(values.astype(np.float32)))
    return recovered.toarray(), mask


def normalise(counts: np.ndarray, *, target: float) -> np.ndarray:
    """What scanpy's normalize_total and log1p make of counts, in float32."""
    scale = (target / counts.sum(axis=1, keepdims=True)).astype(np.float32)
    return np.log1p(counts.astype(np.float32) * scale)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, target=st.sampled_from([1e3, 1e4, 12_345.6, 1e5, 1e6]))
def test_log_normalised_counts_come_back_exactly(seed: int, target: float):
    counts = draw_counts(seed)
    recovered, mask = recover(normalise(counts, target=target))
    assert mask.all()
    assert np.array_equal(recovered, counts)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, scale=st.floats(0.05, 20))
def test_any_scale_will_do(seed: int, scale: float):
    counts = draw_counts(seed)
    recovered, mask = recover(np.log1p((counts * scale).astype(np.float32)))
    assert mask.all()
    assert np.array_equal(recovered, counts)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_values_rounded_to_three_decimals_come_back_exactly(seed: int):
    counts = draw_counts(seed, largest=60)
    recovered, mask = recover(np.round(normalise(counts, target=1e4), 3))
    assert mask.all()
    assert np.array_equal(recovered, counts)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, largest=st.integers(100, 100_000), decimals=st.sampled_from([3, 4, 5]))
def test_counts_that_come_back_are_never_wrong_by_one(seed: int, largest: int, decimals: int):
    """Coarse rounding leaves several integers open for a large count: such a cell must stay as it is."""
    counts = draw_counts(seed, largest=largest)
    values = np.round(normalise(counts, target=1e4), decimals)
    recovered, mask = recover(values)
    assert np.array_equal(recovered[mask], counts[mask])
    assert np.array_equal(recovered[~mask], values[~mask].astype(np.float32))


def test_a_count_lost_to_rounding_is_not_guessed():
    counts = np.array([[1.0, 2, 3, 2500], [1, 2, 3, 25]])
    recovered, mask = recover(np.round(np.log1p(counts * 4), 3))
    assert mask.tolist() == [False, True]
    assert recovered[1].tolist() == [1, 2, 3, 25]


@pytest.mark.parametrize("smallest", [2, 3, 4, 5])
def test_cells_without_a_count_of_one(smallest: int):
    counts = draw_counts(smallest, smallest=smallest)
    recovered, mask = recover(normalise(counts, target=1e4))
    assert mask.all()
    assert np.array_equal(recovered, counts)


def test_a_cell_whose_counts_share_a_factor_comes_back_divided_by_it():
    """Nothing in the values tells 2, 4, 6 from 1, 2, 3; the smaller ones are as good."""
    recovered, mask = recover(np.log1p(np.array([[2.0, 4, 6, 10]]) * 0.7))
    assert mask.all()
    assert math.gcd(*recovered[0].astype(int)) == 1
    assert recovered.tolist() == [[1, 2, 3, 5]]


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS)
def test_values_that_are_no_scaled_counts_stay_as_they_are(seed: int):
    rng = np.random.default_rng(seed)
    normalised = normalise(draw_counts(seed), target=1e4)
    centred = normalised - normalised.mean(axis=0)
    scaled_genes = normalised * rng.uniform(0.5, 2, 150)
    by_gene = np.log1p(np.expm1(normalised) * rng.uniform(0.5, 2, 150))
    smooth = rng.gamma(2, 1, (8, 150))
    for values in (centred, scaled_genes, by_gene, smooth):
        recovered, mask = recover(values)
        assert not mask.any()
        assert np.array_equal(recovered, values.astype(np.float32))


def test_one_bad_cell_does_not_spoil_its_neighbours():
    counts = draw_counts(1)
    values = normalise(counts, target=1e4)
    values[3] = np.random.default_rng(0).gamma(2, 1, 150)
    values[5, 7] = np.nan
    values[6, 9] = -1
    recovered, mask = recover(values)
    assert np.flatnonzero(~mask).tolist() == [3, 5, 6]
    assert np.array_equal(recovered[mask], counts[mask])
    assert np.array_equal(recovered[~mask], values[~mask].astype(np.float32), equal_nan=True)


def test_a_cell_without_any_value_counts_as_recovered():
    recovered, mask = recover(np.zeros((2, 4)))
    assert mask.tolist() == [True, True]
    assert not recovered.any()
