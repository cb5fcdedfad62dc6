from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from reference_tokens import draw
from scipy import stats

from cytoray.tokens.cells import SparseCells
from cytoray.tokens.keys import content_keys
from cytoray.tokens.packed import pack
from cytoray.tokens.tokenizer import CellTokenizer, TokenizedCells, TokenizerConfig

SEEDS = st.integers(0, 2**32)
EPOCHS = st.one_of(st.none(), st.integers(0, 5))


def as_dicts(tokens: TokenizedCells) -> list[dict[int, float]]:
    """Each cell as gene id -> value."""
    rows = zip(tokens.indptr[:-1], tokens.indptr[1:], strict=True)
    return [dict(zip(tokens.gene_ids[a:b].tolist(), tokens.values[a:b].tolist(), strict=True)) for a, b in rows]


@pytest.fixture(scope="session")
def tokenizer(panel) -> CellTokenizer:
    return CellTokenizer(panel, TokenizerConfig(max_length=101, cls_value=-7.0))


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, epoch=EPOCHS)
def test_each_cell_gets_cls_then_its_genes_with_legal_bins(tokenizer, panel, random_cells, seed: int, epoch):
    cells = random_cells(seed)
    tokens = tokenizer(cells, epoch=epoch)
    starts = tokens.indptr[:-1]
    assert np.all(tokens.gene_ids[starts] == panel.cls_id)
    assert np.all(tokens.values[starts] == -7.0)
    assert tokens.lengths.tolist() == np.minimum(cells.num_genes_per_cell + 1, 101).tolist()
    assert tokens.cell_ids is cells.cell_ids
    for row, cell in enumerate(as_dicts(tokens)):
        genes = cells.gene_ids[cells.indptr[row] : cells.indptr[row + 1]].tolist()
        assert len(cell) == tokens.lengths[row]  # no gene twice
        assert cell.keys() <= {*genes, panel.cls_id}
        assert all(1 <= value <= 50 for gene, value in cell.items() if gene != panel.cls_id)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, epoch=EPOCHS)
def test_tokens_of_a_cell_depend_neither_on_neighbours_nor_on_order(tokenizer, random_cells, seed: int, epoch):
    cells = random_cells(seed)
    together = as_dicts(tokenizer(cells, epoch=epoch))
    rows = np.random.default_rng(seed).permutation(12)[:7]
    assert as_dicts(tokenizer(cells.take(rows), epoch=epoch)) == [together[row] for row in rows]
    assert as_dicts(tokenizer(cells.take(rows[:1]), epoch=epoch)) == [together[rows[0]]]


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, epoch=EPOCHS)
def test_tokens_do_not_depend_on_the_order_of_genes_in_the_source(tokenizer, panel, seed: int, epoch):
    rng = np.random.default_rng(seed)
    dense = rng.poisson(rng.uniform(0.05, 2, 400), (6, 400))
    order = rng.permutation(400)
    names = np.array([f"GENE{number}" for number in range(400)])

    def tokens(counts: np.ndarray, genes: np.ndarray) -> list[dict[int, float]]:
        rows, columns = np.nonzero(counts)
        indptr = np.searchsorted(rows, np.arange(7))
        cells = panel.map_genes(genes.tolist()).apply(counts[rows, columns], columns, indptr, np.arange(6).astype("u8"))
        return as_dicts(tokenizer(cells, epoch=epoch))

    assert tokens(dense, names) == tokens(dense[:, order], names[order])


def test_ties_and_samples_are_drawn_anew_in_every_epoch_but_not_at_inference(tokenizer, random_cells):
    cells = random_cells(3)
    draws = [as_dicts(tokenizer(cells, epoch=epoch)) for epoch in (0, 1, None, 0, None)]
    assert draws[0] == draws[3]
    assert draws[2] == draws[4]
    assert all(draws[0][row] != draws[1][row] for row in range(cells.num_cells))
    samples = [[set(cell) for cell in draw] for draw in draws[:2]]
    long = np.flatnonzero(cells.num_genes_per_cell > 110)
    assert len(long) > 3
    assert all(samples[0][row] != samples[1][row] for row in long)


def test_inference_goes_by_content_and_training_by_cell_id(tokenizer, random_cells):
    cells = random_cells(4)
    renamed = SparseCells(cells.gene_ids, cells.values, cells.indptr, cells.cell_ids + np.uint64(1))
    assert as_dicts(tokenizer(cells)) == as_dicts(tokenizer(renamed))
    assert as_dicts(tokenizer(cells, epoch=0)) != as_dicts(tokenizer(renamed, epoch=0))


def test_the_seed_changes_the_tokens(panel, random_cells):
    cells = random_cells(5)
    first, second = (as_dicts(CellTokenizer(panel, TokenizerConfig(seed=seed))(cells)) for seed in (0, 1))
    assert first != second


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, epoch=EPOCHS, counts=st.booleans())
def test_tokens_are_those_of_the_definition(tokenizer, random_cells, seed: int, epoch, counts: bool):
    cells = random_cells(seed)
    packed = pack(cells, counts=counts)
    for row, cell in enumerate(as_dicts(tokenizer(packed, epoch=epoch))):
        part = cells.take(np.array([row]))
        key = (0, int(content_keys(part)[0])) if epoch is None else (0, epoch, int(part.cell_ids[0]))
        drawn = draw(part.gene_ids, part.values, key, n_bins=51, max_genes=100)
        expected = {400 + 1: -7.0} | {int(part.gene_ids[place]): int(drawn.bins[place]) for place in drawn.kept}
        assert cell == expected
        assert list(cell) == list(expected)  # in order of the genes


def test_a_cell_is_tokenised_alike_beside_counts_and_beside_expression(tokenizer, random_cells, build_cells):
    counts = random_cells(11)
    mixed = SparseCells.concatenate([counts, build_cells([[0.5, 1.25, 2**30, 3.0]])])
    assert as_dicts(tokenizer(mixed))[:12] == as_dicts(tokenizer(counts))


def test_given_bins_take_the_place_of_binning(tokenizer, random_cells):
    cells = random_cells(7)
    stored = (cells.gene_ids % 50 + 1).astype(np.int16)
    for cell in as_dicts(tokenizer(cells, epoch=9, bins=stored)):
        assert all(value == gene % 50 + 1 for gene, value in cell.items() if value != -7.0)


def test_every_gene_is_sampled_equally_often(build_cells, tokenizer):
    cells = build_cells([np.ones(300)] * 2000)
    tokens = tokenizer(cells, epoch=0)
    counts = np.bincount(tokens.gene_ids, minlength=300)[:300]
    assert counts.sum() == 2000 * 100
    # Without replacement the counts vary less than a multinomial's, by the share left out.
    assert stats.chi2(299).sf(((counts - counts.mean()) ** 2 / counts.mean()).sum() / (1 - 100 / 300)) > 1e-3


def test_no_cells_and_empty_cells_are_fine(tokenizer, panel, build_cells):
    assert tokenizer(build_cells([])).num_cells == 0
    tokens = tokenizer(build_cells([[], [5.0], []]))
    assert tokens.lengths.tolist() == [1, 2, 1]
    assert tokens.gene_ids[[0, 1, 3]].tolist() == [panel.cls_id] * 3


def test_take_and_concatenate_move_whole_cells(tokenizer, random_cells):
    tokens = tokenizer(random_cells(8))
    cells = as_dicts(tokens)
    assert as_dicts(tokens.take(np.array([3, 0, 3]))) == [cells[3], cells[0], cells[3]]
    joined = TokenizedCells.concatenate([tokens.take(np.array([5])), tokens])
    assert as_dicts(joined) == [cells[5], *cells]
    assert TokenizedCells.concatenate([]).num_cells == 0


def test_defaults_are_the_released_models_and_typos_are_refused():
    assert TokenizerConfig().model_dump() == {
        "n_bins": 51, "max_length": 1200, "cls_value": -2.0, "pad_value": -2.0, "mask_value": -1.0, "seed": 0,
        "ties": "keyed",
    }  # fmt: skip
    for mistake in ({"n_bin": 51}, {"n_bins": 1}, {"max_length": 1}, {"seed": -1}):
        with pytest.raises(ValidationError):
            TokenizerConfig(**mistake)
