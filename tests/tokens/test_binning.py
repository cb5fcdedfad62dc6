from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cytoray.tokens.binning import bin_values

NUMBERS = Path(__file__).parents[2].parent / "shared" / "reference" / "scgpt_numbers"


def bin_row(row: np.ndarray, uniforms: np.ndarray, n_bins: int) -> np.ndarray:
    """The published definition, one cell at a time: edges from np.quantile, ties spread by a uniform number."""
    edges = np.quantile(row, np.linspace(0, 1, n_bins - 1))
    upto, below = np.digitize(row, edges), np.digitize(row, edges, right=True)
    return np.ceil(uniforms * (below - upto) + upto).astype(int)


def draw_row(seed: int, kind: str, size: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = {
        "counts": lambda: rng.geometric(0.5, size),
        "wide counts": lambda: rng.negative_binomial(1, 0.002, size) + 1,
        "floats": lambda: rng.gamma(1, 1, size) + 1e-3,
        "rounded": lambda: np.round(rng.gamma(1, 1, size), 1) + 0.1,
        "log-normalised": lambda: np.log1p(rng.geometric(0.5, size) * 1e4 / 3217),
        "equal": lambda: np.full(size, 2.5),
        "tiny and huge": lambda: 10.0 ** rng.integers(-30, 30, size),
    }
    return values[kind]().astype(np.float32)


SIZES = st.one_of(st.integers(0, 60), st.integers(1, 40).map(lambda times: 49 * times + 1), st.integers(60, 2500))
KINDS = ["counts", "wide counts", "floats", "rounded", "log-normalised", "equal", "tiny and huge"]
ROWS = st.lists(st.builds(draw_row, st.integers(0, 2**32), st.sampled_from(KINDS), SIZES), max_size=6)


@settings(max_examples=150, deadline=None)
@given(rows=ROWS, n_bins=st.sampled_from([51, 51, 51, 5, 2, 3, 101]), seed=st.integers(0, 2**32))
def test_bins_are_bit_exact_with_numpy_quantiles_row_by_row(build_cells, rows, n_bins: int, seed: int):
    cells = build_cells(rows)
    uniforms = np.random.default_rng(seed).random(len(cells.values))
    expected = [
        bin_row(row, uniforms[start : start + len(row)], n_bins)
        for row, start in zip(rows, cells.indptr, strict=False)
        if len(row)
    ]
    bins = bin_values(cells, uniforms, n_bins=n_bins)
    assert bins.dtype == np.int16
    np.testing.assert_array_equal(bins, np.concatenate([np.empty(0), *expected]))
    assert np.all((bins >= 1) & (bins <= n_bins - 1))


@pytest.mark.parametrize("base", [1, 1000, 10**5])
def test_bins_are_exact_where_numpys_float_positions_fall_short_of_integers(build_cells, base: int):
    # For these sizes (n - 1) * k / 49 is an integer that float64 misses for some k. Runs of equal values begin there,
    # over two edges; whether the first one counts as smaller depends on how the interpolation rounds, so on the base.
    sizes = [n for n in range(50, 3000, 49) if np.any(((n - 1) * np.linspace(0, 1, 50)) % 1 > 0.5)]
    assert len(sizes) > 20
    rows = [(base + np.arange(n) // (2 * (n - 1) // 49)).astype(np.float32) for n in sizes]
    cells = build_cells(rows)
    uniforms = np.full(len(cells.values), 0.999)
    expected = np.concatenate([bin_row(row, np.full(len(row), 0.999), 51) for row in rows])
    np.testing.assert_array_equal(bin_values(cells, uniforms), expected)


@pytest.mark.parametrize("row", [[3.0], [2.0, 2.0, 2.0]])
def test_one_gene_or_equal_values_spread_evenly_over_all_bins(build_cells, row: list[float]):
    cells = build_cells([row] * 20_000)
    bins = bin_values(cells, np.random.default_rng(0).random(len(cells.values)))
    observed = np.bincount(bins, minlength=51)[1:]
    assert stats.chisquare(observed).pvalue > 1e-3


def test_result_follows_the_order_of_the_entries(build_cells):
    row = np.random.default_rng(1).gamma(1, 1, 300).astype(np.float32)
    order = np.random.default_rng(2).permutation(300)
    uniforms = np.zeros(300)
    assert np.array_equal(
        bin_values(build_cells([row[order]]), uniforms), bin_values(build_cells([row]), uniforms)[order]
    )


def reference(name: str) -> dict[str, np.ndarray]:
    if not (NUMBERS / name).exists():
        pytest.skip(f"{NUMBERS / name} is absent: bins are not compared with numbers from the original program")
    with np.load(NUMBERS / name) as numbers:
        return {key: numbers[key] for key in numbers.files}


@pytest.mark.parametrize("n_bins", [51, 5])
def test_original_program_gives_the_same_bins_without_ties(build_cells, n_bins: int):
    numbers = reference("ref_tokenize.npz")
    expressed = numbers["in_cont"] > 0
    cells = build_cells([numbers["in_cont"][expressed]])
    bins = bin_values(cells, np.full(len(cells.values), 0.5), n_bins=n_bins)
    np.testing.assert_array_equal(bins, numbers[f"bin{n_bins}_cont"][expressed])


def test_original_program_spreads_ties_over_the_same_ranges(build_cells):
    numbers = reference("ref_tokenize.npz")
    expressed = numbers["in_count"] > 0
    cells = build_cells([numbers["in_count"][expressed]])
    size = len(cells.values)
    np.testing.assert_array_equal(bin_values(cells, np.full(size, 1 - 1e-9)), numbers["count_tie_min"][expressed])
    np.testing.assert_array_equal(bin_values(cells, np.zeros(size)), numbers["count_tie_max"][expressed])
    mean = np.mean([bin_values(cells, np.full(size, u)) for u in (np.arange(2000) + 0.5) / 2000], axis=0)
    np.testing.assert_allclose(mean, numbers["count_tie_mean"][expressed], atol=1.2)  # theirs: 400 draws


def test_original_collator_gives_the_same_bins(build_cells):
    numbers = reference("ref_tokenize.npz")
    for row in range(3):
        values = numbers[f"coll_in_expr{row}"][1:]  # after <cls>
        known = dict(zip(numbers["coll_out_gene"][row].tolist(), numbers["coll_out_expr"][row].tolist(), strict=True))
        bins = bin_values(build_cells([values]), np.full(len(values), 0.5))
        ours = dict(zip(numbers[f"coll_in_genes{row}"][1:].tolist(), bins.tolist(), strict=True))
        sampled = ours.keys() & known.keys()
        assert len(sampled) >= 30
        assert {gene: ours[gene] for gene in sampled} == {gene: known[gene] for gene in sampled}
