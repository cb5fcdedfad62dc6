from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_tokens import open_bins
from scipy import stats

from cytoray.tokens import binning
from cytoray.tokens.keys import combine
from cytoray.tokens.packed import pack
from cytoray.tokens.tokenizer import CellTokenizer, TokenizerConfig

NUMBERS = Path(__file__).parents[2].parent / "shared" / "reference" / "scgpt_numbers"


def ranges(row: np.ndarray, n_bins: int = 51) -> tuple[np.ndarray, np.ndarray]:
    """``below`` and ``upto`` of each value as the kernels find them: from a histogram if the row is of integers."""
    work, quantiles = binning.make_workspace(len(row) + 1), np.linspace(0, 1, n_bins - 1)
    if row.dtype == np.float32:
        binning.spread_expression(row, quantiles, work)
    else:
        narrow, large = np.minimum(row, 255).astype(np.uint8), row[row >= 255].astype(np.uint32)
        binning.spread_counts(narrow, large, quantiles, work)
    spreads = work.spreads[: len(row)].astype(np.int64)
    return (spreads & 0xFFFF) - (spreads >> 16), spreads & 0xFFFF


def bin_row(row: np.ndarray, uniforms: np.ndarray | float, n_bins: int = 51) -> np.ndarray:
    """Bins for given uniform numbers, as the published definition has them."""
    below, upto = ranges(row.astype(np.float32), n_bins)
    return np.ceil(uniforms * (below - upto) + upto).astype(int)


def draw_row(seed: int, kind: str, size: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = {
        "counts": lambda: rng.geometric(0.5, size),
        "wide counts": lambda: rng.negative_binomial(1, 0.002, size) + 1,
        "boundaries": lambda: rng.choice([1, 2, 253, 254, 255, 256, 65_535, 65_536], size),
        "huge counts": lambda: rng.choice([1, 254, 255, 2**24, 2**24 + 1, 2**32 - 2, 2**32 - 1], size),
        "floats": lambda: (rng.gamma(1, 1, size) + 1e-3).astype(np.float32),
        "rounded": lambda: (np.round(rng.gamma(1, 1, size), 1) + 0.1).astype(np.float32),
        "log-normalised": lambda: np.log1p(rng.geometric(0.5, size) * 1e4 / 3217).astype(np.float32),
        "equal": lambda: np.full(size, 2.5, np.float32),
        "tiny and huge": lambda: (10.0 ** rng.integers(-30, 30, size)).astype(np.float32),
    }
    return values[kind]()


SIZES = st.one_of(st.integers(1, 60), st.integers(1, 40).map(lambda times: 49 * times + 1), st.integers(60, 2500))
KINDS = [
    "counts", "wide counts", "boundaries", "huge counts", "floats", "rounded", "log-normalised", "equal",
    "tiny and huge",
]  # fmt: skip
N_BINS = st.sampled_from([51, 51, 51, 51, 2, 3, 5, 11, 50, 101, 1001])


@settings(max_examples=400, deadline=None)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(KINDS), size=SIZES, n_bins=N_BINS)
def test_open_bins_are_exactly_those_of_numpys_quantiles(seed: int, kind: str, size: int, n_bins: int):
    row = draw_row(seed, kind, size)
    expected_below, expected_upto = open_bins(row, n_bins)
    below, upto = ranges(row, n_bins)
    np.testing.assert_array_equal(upto, expected_upto)
    np.testing.assert_array_equal(below, expected_below)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(["counts", "wide counts", "boundaries"]), size=SIZES)
def test_counts_have_the_same_bins_as_numbers_of_any_kind_and_scale(seed: int, kind: str, size: int):
    row = draw_row(seed, kind, size)
    np.testing.assert_array_equal(ranges(row), ranges(row.astype(np.float32)))
    np.testing.assert_array_equal(ranges(row)[1], ranges(np.log1p(row).astype(np.float32))[1])


@pytest.mark.parametrize("kind", [np.int64, np.float32])
@pytest.mark.parametrize("base", [1, 1000, 10**5])
@pytest.mark.parametrize("num_edges", [50, 11, 4, 100])
def test_bins_are_exact_where_numpys_float_positions_miss_integers(base: int, kind: type, num_edges: int):
    # For these sizes (n - 1) * k / (E - 1) is an integer that float64 misses for some k. Runs of equal values begin and
    # end there; whether the edge counts as equal depends on how the interpolation rounds, so on the base.
    quantiles, step = np.linspace(0, 1, num_edges), num_edges - 1
    missed = [
        n for n in range(step + 1, 60 * step, step) if np.any((n - 1) * quantiles != np.arange(num_edges) * (n // step))
    ]
    assert len(missed) > 5 or num_edges == 4
    for size in missed:
        row = (base + np.arange(size) // (2 * (size - 1) // step)).astype(kind)
        for values in (row, row[::-1].max() + base - row[::-1]):  # runs that begin, and runs that end, at such places
            np.testing.assert_array_equal(ranges(values, num_edges + 1), open_bins(values, num_edges + 1))


@pytest.mark.parametrize("row", [[3.0], [2.0, 2.0, 2.0], [2.5, 2.5]])
def test_one_gene_or_equal_values_spread_evenly_over_all_bins(build_cells, panel, row: list[float]):
    cells = build_cells([row] * 20_000)
    bins = CellTokenizer(panel, TokenizerConfig()).bin_cells(cells, epoch=0)
    observed = np.bincount(bins, minlength=51)[1:]
    assert stats.chisquare(observed).pvalue > 1e-3


def test_ties_spread_evenly_over_the_bins_open_to_them(build_cells, panel):
    row = np.random.default_rng(0).geometric(0.5, 300)
    below, upto = open_bins(row, 51)
    bins = CellTokenizer(panel, TokenizerConfig()).bin_cells(build_cells([row] * 3000), epoch=0).reshape(3000, 300)
    assert upto[row == 1][0] - below[row == 1][0] > 15
    for value in np.unique(row):
        first, last = below[row == value][0] + 1, upto[row == value][0]
        observed = np.bincount(bins[:, row == value].ravel(), minlength=51)
        assert observed.sum() == observed[min(first, last) : last + 1].sum()
        assert last <= first or stats.chisquare(observed[first : last + 1]).pvalue > 1e-4


def test_result_follows_the_order_of_the_entries():
    row = np.random.default_rng(1).gamma(1, 1, 300).astype(np.float32)
    order = np.random.default_rng(2).permutation(300)
    np.testing.assert_array_equal(bin_row(row[order], 0.0), bin_row(row, 0.0)[order])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), n_bins=st.sampled_from([51, 7, 30_000]))
def test_bins_of_many_cells_match_a_vectorised_reference(random_cells, panel, seed: int, n_bins: int):
    from reference_binning import bin_values

    cells = random_cells(seed)
    rows = np.repeat(np.arange(cells.num_cells), cells.num_genes_per_cell)
    words = combine(5, 3, cells.cell_ids[rows], cells.gene_ids)
    expected = bin_values(cells, (words % np.uint64(2**24)) / 2.0**24, n_bins=n_bins)
    tokenizer = CellTokenizer(panel, TokenizerConfig(n_bins=n_bins, seed=5))
    for packed in (pack(cells), pack(cells, counts=False)):
        np.testing.assert_array_equal(tokenizer.bin_cells(packed, epoch=3), expected)


def reference(name: str) -> dict[str, np.ndarray]:
    if not (NUMBERS / name).exists():
        pytest.skip(f"{NUMBERS / name} is absent: bins are not compared with numbers from the original program")
    with np.load(NUMBERS / name) as numbers:
        return {key: numbers[key] for key in numbers.files}


@pytest.mark.parametrize("n_bins", [51, 5])
def test_original_program_gives_the_same_bins_without_ties(n_bins: int):
    numbers = reference("ref_tokenize.npz")
    expressed = numbers["in_cont"] > 0
    bins = bin_row(numbers["in_cont"][expressed], 0.5, n_bins)
    np.testing.assert_array_equal(bins, numbers[f"bin{n_bins}_cont"][expressed])


def test_original_program_spreads_ties_over_the_same_ranges():
    numbers = reference("ref_tokenize.npz")
    expressed = numbers["in_count"] > 0
    row = numbers["in_count"][expressed]
    np.testing.assert_array_equal(bin_row(row, 1 - 1e-9), numbers["count_tie_min"][expressed])
    np.testing.assert_array_equal(bin_row(row, 0.0), numbers["count_tie_max"][expressed])
    mean = np.mean([bin_row(row, u) for u in (np.arange(2000) + 0.5) / 2000], axis=0)
    np.testing.assert_allclose(mean, numbers["count_tie_mean"][expressed], atol=1.2)  # theirs: 400 draws


def test_original_collator_gives_the_same_bins():
    numbers = reference("ref_tokenize.npz")
    for row in range(3):
        values = numbers[f"coll_in_expr{row}"][1:]  # after <cls>
        known = dict(zip(numbers["coll_out_gene"][row].tolist(), numbers["coll_out_expr"][row].tolist(), strict=True))
        ours = dict(zip(numbers[f"coll_in_genes{row}"][1:].tolist(), bin_row(values, 0.5).tolist(), strict=True))
        sampled = ours.keys() & known.keys()
        assert len(sampled) >= 30
        assert {gene: ours[gene] for gene in sampled} == {gene: known[gene] for gene in sampled}


def _original_rows(values: np.ndarray, indptr: np.ndarray, n_bins: int) -> np.ndarray:
    """The original's binning written out: NumPy's quantiles, digitised from both sides, one draw a value."""
    bins = []
    for start, stop in itertools.pairwise(indptr):
        row = values[start:stop].astype(np.float64)
        edges = np.quantile(row, np.linspace(0, 1, n_bins - 1)) if len(row) else np.empty(0)
        upto, below = np.digitize(row, edges), np.digitize(row, edges, right=True)
        bins.append(np.ceil(np.random.rand(len(row)) * (below - upto) + upto))  # noqa: NPY002
    return np.concatenate(bins).astype(np.int64)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(1, 9), max_size=30), min_size=1, max_size=6), st.integers(2, 60))
def test_rows_are_binned_by_the_global_generator_as_the_original_does(rows: list[list[int]], n_bins: int) -> None:
    values = np.concatenate([np.empty(0), *rows]).astype(np.float32)
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    np.random.seed(7)  # noqa: NPY002
    want = _original_rows(values, indptr, n_bins)
    np.random.seed(7)  # noqa: NPY002
    assert binning.bin_rows(values, indptr, n_bins=n_bins).tolist() == want.tolist()


def test_draws_may_be_given() -> None:
    values, indptr = np.ones(4, np.float32), np.array([0, 4])
    draws = np.array([0.0, 0.25, 0.5, 0.999])
    assert binning.bin_rows(values, indptr, draws=draws).tolist() == [50, 38, 25, 1]
