"""At inference a gene's token depends on its cell's ranks alone: not on a seed, and hardly on the other genes."""

from __future__ import annotations

import numpy as np
import pytest

from cytoray.tokens.cells import SparseCells
from cytoray.tokens.inference import DRAWN, InferenceConfig
from cytoray.tokens.tokenizer import CellTokenizer, TokenizedCells, TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary

VOCABULARY = GeneVocabulary([f"GENE{number}" for number in range(400)])


def ask(
    cells: SparseCells, *, seed: int = 0, inference: InferenceConfig | None = None, length: int = 50
) -> TokenizedCells:
    config = TokenizerConfig(max_length=length, seed=seed)
    return CellTokenizer(VOCABULARY, config, inference or InferenceConfig())(cells)


@pytest.fixture
def cells(build_cells) -> SparseCells:
    """Counts with many ties, of cells longer than the context."""
    rows = np.random.default_rng(0).poisson(1.2, (20, 400))
    return build_cells([row[row > 0] for row in rows], gene_ids=[np.flatnonzero(row) for row in rows])


def changed(cells: SparseCells, gene: int) -> SparseCells:
    """The first cell without one of its genes."""
    kept = np.arange(cells.indptr[1]) != gene
    indptr = np.array([0, kept.sum()], np.int64)
    return SparseCells(
        cells.gene_ids[: cells.indptr[1]][kept], cells.values[: cells.indptr[1]][kept], indptr, cells.cell_ids[:1]
    )


def values(tokens: TokenizedCells) -> dict[int, float]:
    first = slice(0, tokens.indptr[1])
    return dict(zip(tokens.gene_ids[first].tolist(), tokens.values[first].tolist(), strict=True))


def test_all_genes_are_used_whatever_the_context_of_training(cells):
    assert ask(cells).lengths.tolist() == (cells.num_genes_per_cell + 1).tolist()
    assert ask(cells, inference=InferenceConfig(max_length=100)).lengths.max() == 100
    assert ask(cells, inference=DRAWN).lengths.max() == 50


def test_another_seed_changes_nothing(cells):
    first, second = (ask(cells, seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(first.gene_ids, second.gene_ids)
    np.testing.assert_array_equal(first.values, second.values)
    assert (ask(cells, seed=0, inference=DRAWN).values != ask(cells, seed=1, inference=DRAWN).values).any()


@pytest.mark.parametrize("max_length", [8192, 100])
def test_one_gene_less_hardly_changes_the_others(cells, max_length):
    inference = InferenceConfig(max_length=max_length)
    with_all, without = (values(ask(part, inference=inference)) for part in (cells, changed(cells, 100)))
    assert len(with_all.keys() ^ without.keys()) <= 8
    common = with_all.keys() & without.keys()
    assert np.mean([with_all[gene] != without[gene] for gene in common]) < 0.1
    drawn = [values(ask(part, inference=DRAWN)) for part in (cells, changed(cells, 100))]
    assert len(drawn[0].keys() ^ drawn[1].keys()) > 30  # what is avoided


def test_bins_are_spread_as_in_training(build_cells):
    bins = ask(build_cells([np.ones(400)])).values[1:]
    assert set(bins) <= set(range(1, 51))
    assert len(set(bins)) > 40  # all counts are 1, so all bins are open to each gene
    assert abs(bins.mean() - 25.5) < 4
