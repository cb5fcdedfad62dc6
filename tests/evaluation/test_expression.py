"""The baselines of hidden genes' bins: small cells worked out by hand, and planted types that neighbours must find."""

import numpy as np
import pytest

from cytoray.errors import CorpusError
from cytoray.evaluation.expression import (
    BinnedCells,
    NeighbourOptions,
    choose_neighbours,
    gene_mean_bins,
    global_mean_bin,
    judge_baselines,
    neighbour_bins,
    score_bins,
)

FEW_COMPONENTS = NeighbourOptions(num_components=4, num_neighbours=(30, 60), shrinkages=(0.3, 3.0))
ONE_NEIGHBOUR = NeighbourOptions(num_components=2, num_neighbours=(1,), shrinkages=(1.0,))


def binned(*cells):
    """Cells given as {gene: bin}."""
    indptr = np.concatenate([[0], np.cumsum([len(cell) for cell in cells])]).astype(np.int64)
    genes = np.array([gene for cell in cells for gene in cell], np.int64)
    return BinnedCells(genes, np.array([cell[gene] for cell in cells for gene in cell], np.int16), indptr)


def planted(num_cells, *, seed, num_types=3, num_genes=120):
    """Cells of types that express genes and their bins as they do: known and hidden halves, means of hidden genes."""
    rng, types_rng = np.random.default_rng(seed), np.random.default_rng(99)
    means = types_rng.uniform(5, 45, (num_types, num_genes))
    chances = types_rng.choice([0.2, 0.9], (num_types, num_genes))
    types = rng.integers(0, num_types, num_cells)
    parts = {"all": [], "known": [], "hidden": []}
    expected = []
    for kind in types:
        genes = np.flatnonzero(rng.random(num_genes) < chances[kind])
        bins = np.clip(np.rint(means[kind, genes] + rng.normal(0, 2, len(genes))), 1, 50).astype(int)
        hidden = rng.random(len(genes)) < 0.5
        for name, kept in (("all", hidden | True), ("known", ~hidden), ("hidden", hidden)):
            parts[name].append(dict(zip(genes[kept].tolist(), bins[kept].tolist(), strict=True)))
        expected.append(means[kind, genes[hidden]])
    return {name: binned(*cells) for name, cells in parts.items()}, np.concatenate(expected)


def test_means_are_those_worked_out_by_hand():
    train = binned({0: 10, 1: 40}, {0: 20}, {2: 50})
    assert global_mean_bin(train) == 30
    means = gene_mean_bins(train, num_genes=4, pseudo_cells=2)
    np.testing.assert_allclose(means, [(10 + 20 + 2 * 30) / 4, (40 + 2 * 30) / 3, (50 + 2 * 30) / 3, 30])


def test_a_score_is_that_worked_out_by_hand():
    score = score_bins(np.array([10.0, 20.0]), np.array([12, 50]))
    assert score.mean_squared_error == (4 + 900) / 2
    assert score.mean_absolute_error == (2 + 30) / 2
    assert score.mean_relative_error == pytest.approx((2 / 12 + 30 / 50) / 2)
    assert score.num_genes == 2


def test_the_nearest_cell_tells_its_bin_shrunk_to_the_genes_mean():
    train = binned({0: 30, 1: 30, 4: 50}, {2: 30, 3: 30, 4: 10}, {2: 20, 3: 40, 4: 14})
    known, unknown = binned({0: 20, 1: 20}, {2: 50}), binned({4: 45, 7: 3}, {})
    # Gene 4 has (50 + 10 + 14 + 5 * global) / 8 in training, of which one neighbour with bin 50 is told.
    mean = (74 + 5 * global_mean_bin(train)) / 8
    guesses = neighbour_bins(train, known=known, unknown=unknown, options=ONE_NEIGHBOUR)
    np.testing.assert_allclose(guesses[0, 0], [(50 + mean) / 2, global_mean_bin(train)], rtol=1e-6)


def test_neighbours_find_planted_types_from_known_genes_alone():
    train, _ = planted(300, seed=1)
    test, expected = planted(80, seed=2)
    report = judge_baselines(train["all"], known=test["known"], unknown=test["hidden"], options=FEW_COMPONENTS)
    floor = np.mean((expected - test["hidden"].bins) ** 2)
    assert report.global_mean.mean_squared_error == pytest.approx(
        np.mean((global_mean_bin(train["all"]) - test["hidden"].bins) ** 2)
    )
    assert report.neighbours.mean_squared_error < 1.5 * floor
    assert report.gene_mean.mean_squared_error > 5 * floor
    assert report.gene_mean.mean_squared_error < report.global_mean.mean_squared_error
    assert report.best == report.neighbours
    assert report.neighbours.num_genes == len(test["hidden"].bins)


def test_what_is_hidden_does_not_help_to_find_neighbours():
    train, _ = planted(120, seed=1)
    test, _ = planted(30, seed=2)
    other = BinnedCells(test["hidden"].gene_ids, 51 - test["hidden"].bins, test["hidden"].indptr)
    options = NeighbourOptions(num_neighbours=(5,), shrinkages=(1.0,))
    guesses, again = (
        neighbour_bins(train["all"], known=test["known"], unknown=hidden, options=options)
        for hidden in (test["hidden"], other)
    )
    np.testing.assert_array_equal(guesses, again)


def test_where_nothing_is_to_be_learned_many_neighbours_and_much_shrinkage_are_chosen():
    rng = np.random.default_rng(0)
    noise = binned(*({gene: int(rng.integers(1, 51)) for gene in range(20)} for _ in range(200)))
    assert choose_neighbours(noise, NeighbourOptions(4, (1, 100), (0.1, 1.0))) == (100, 1.0)
    train, _ = planted(200, seed=1)
    assert choose_neighbours(train["all"], NeighbourOptions(4, (20, 150), (0.1, 30.0))) == (20, 0.1)


def test_chunks_of_test_cells_do_not_show(monkeypatch):
    train, _ = planted(100, seed=1)
    test, _ = planted(23, seed=2)
    whole = judge_baselines(train["all"], known=test["known"], unknown=test["hidden"])
    monkeypatch.setattr("cytoray.evaluation.expression._CHUNK_BYTES", 8 * 100 * 4)
    parts = judge_baselines(train["all"], known=test["known"], unknown=test["hidden"])
    assert parts.neighbours.mean_squared_error == pytest.approx(whole.neighbours.mean_squared_error, rel=1e-6)


def test_cells_with_nothing_known_and_a_single_training_cell_are_answered():
    report = judge_baselines(binned({0: 10, 1: 20}), known=binned({}, {5: 1}), unknown=binned({0: 10}, {9: 15}))
    assert np.isfinite(report.neighbours.mean_squared_error)
    assert report.global_mean.mean_squared_error == ((10 - 15) ** 2 + 0) / 2


@pytest.mark.parametrize(
    ("train", "unknown", "what"),
    [(binned(), binned({0: 1}), "training cell"), (binned({0: 1}), binned({}), "hidden gene")],
)
def test_nothing_to_fit_or_to_judge_is_told(train, unknown, what):
    with pytest.raises(CorpusError, match=what):
        judge_baselines(train, known=binned({}), unknown=unknown)
