"""Thinned cells are binomial samples by cell and key; queries are unbiased samples of a panel, zeros included."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats

from cytoray.tokens.cells import SparseCells
from cytoray.tokens.keys import combine
from cytoray.tokens.packed import pack, take, unpack
from cytoray.tokens.thinning import draw_queries, thin


def test_thinned_counts_are_binomial(build_cells: Callable[..., SparseCells]) -> None:
    num_cells, counts = 4_000, np.array([1, 3, 300, 70_000])
    cells = pack(build_cells([counts] * num_cells))
    keys = combine(7, np.arange(num_cells))
    thinned = unpack(thin(cells, keys=keys, shares=np.full(num_cells, 0.3)))
    table = np.zeros((num_cells, 4))
    table[np.repeat(np.arange(num_cells), thinned.num_genes_per_cell), thinned.gene_ids] = thinned.values
    for gene, count in enumerate(counts.tolist()):
        found = stats.kstest(table[:, gene], stats.binom(count, 0.3).cdf)
        exact = stats.binom(count, 0.3)
        assert abs(table[:, gene].mean() - exact.mean()) < 4 * exact.std() / np.sqrt(num_cells), found
        assert abs(table[:, gene].std() / exact.std() - 1) < 0.06
    assert abs(np.corrcoef(table[:, 1], table[:, 2])[0, 1]) < 0.06, "genes are drawn on their own"


def test_a_thinned_cell_depends_on_its_key_alone(random_cells: Callable[..., SparseCells]) -> None:
    cells = pack(random_cells(3))
    keys, shares = combine(1, cells.cell_ids), np.linspace(0.2, 0.8, cells.num_cells)
    together, order = unpack(thin(cells, keys=keys, shares=shares)), np.array([5, 2])
    alone = unpack(thin(take(cells, order), keys=keys[order], shares=shares[order]))
    expected = together.take(order)
    assert np.array_equal(alone.gene_ids, expected.gene_ids)
    assert np.array_equal(alone.values, expected.values)
    other = unpack(thin(cells, keys=combine(2, cells.cell_ids), shares=shares))
    assert not np.array_equal(other.indptr, together.indptr)
    everything = unpack(thin(cells, keys=keys, shares=np.ones(cells.num_cells)))
    assert np.array_equal(everything.values, unpack(cells).values)


def test_weighted_queries_estimate_sums_over_the_whole_panel(random_cells: Callable[..., SparseCells]) -> None:
    sparse, panel = random_cells(5, num_cells=1), np.arange(20, 380, dtype=np.int32)
    cells, whole = pack(sparse), np.zeros(400)
    whole[sparse.gene_ids] = np.log1p(1e4 * sparse.values / sparse.values.sum())
    num_draws, most = 3_000, 10
    repeated = take(cells, np.zeros(num_draws, int))
    drawn = draw_queries(repeated, panel, keys=combine(3, np.arange(num_draws)), most=most)
    assert set(drawn.lengths.tolist()) == {2 * most}
    assert all(len(set(row)) == 2 * most for row in drawn.gene_ids[:50].tolist()), "no gene twice"
    assert np.allclose(drawn.values, whole[drawn.gene_ids])
    assert ((drawn.values > 0).sum(axis=1) == most).all()
    assert np.allclose(drawn.weights.mean(axis=1), 1)
    for of_gene in (np.arange(400) * 1.0, whole):
        estimates = (drawn.weights * of_gene[drawn.gene_ids]).mean(axis=1)
        error = estimates.std() / np.sqrt(num_draws)
        assert abs(estimates.mean() - of_gene[panel].mean()) < 4 * error


def test_cells_with_few_genes_have_few_queries(build_cells: Callable[..., SparseCells]) -> None:
    cells = pack(build_cells([[1, 1], [2, 1, 1], []], gene_ids=[[3, 99], [1, 2, 3], []]))
    drawn = draw_queries(cells, np.arange(4, dtype=np.int32), keys=combine(0, np.arange(3)), most=8)
    assert drawn.lengths.tolist() == [2, 4, 0]  # one of the panel with one zero; three with the only zero; no gene
    assert drawn.gene_ids[1, :4].tolist() == [0, 1, 2, 3]
    assert np.allclose(drawn.weights[1, :4], 1)
