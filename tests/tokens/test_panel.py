"""Panels of genes: zeros or not, sampling and masking by cell and gene, never by company."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytoray.tokens.panel import mask_tokens, tokenise_panel
from cytoray.tokens.tokenizer import TokenizedCells, TokenizerConfig

CLS = 99


def _panel(num_cells: int = 6, num_genes: int = 20) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 4, (num_cells, num_genes)).astype(np.float32)
    return values, rng.permutation(90)[:num_genes].astype(np.int32), np.arange(num_cells, dtype=np.uint64) + 7


def _tokens(*, rows: slice | np.ndarray = slice(None), max_length: int = 1200, **options: object) -> TokenizedCells:
    values, genes, ids = _panel()
    config = TokenizerConfig(max_length=max_length, cls_value=0.0)
    return tokenise_panel(values[rows], genes, ids[rows], config=config, cls_id=CLS, **options)


@pytest.mark.parametrize("zeros", [True, False])
def test_every_gene_of_the_panel_or_those_expressed(zeros: bool) -> None:
    values, genes, _ = _panel()
    tokens = _tokens(include_zeros=zeros)
    for row in range(len(values)):
        kept = np.ones(len(genes), bool) if zeros else values[row] > 0
        cell = tokens.take(np.array([row]))
        assert cell.gene_ids.tolist() == [CLS, *genes[kept]]
        assert cell.values.tolist() == [0.0, *values[row][kept]]


def test_long_cells_are_sampled_by_cell_and_epoch() -> None:
    values, genes, _ = _panel()
    tokens = _tokens(max_length=9)
    assert tokens.lengths.tolist() == [9] * 6
    where = {int(gene): column for column, gene in enumerate(genes)}
    for row in range(6):
        cell = tokens.take(np.array([row]))
        assert len(set(cell.gene_ids.tolist())) == 9
        assert cell.values[1:].tolist() == [values[row, where[int(gene)]] for gene in cell.gene_ids[1:]]
    alone = _tokens(max_length=9, rows=np.array([4]))
    assert alone.gene_ids.tolist() == tokens.take(np.array([4])).gene_ids.tolist()
    assert _tokens(max_length=9, epoch=1).gene_ids.tolist() != tokens.gene_ids.tolist()


@settings(deadline=None, max_examples=50)
@given(ratio=st.floats(0, 1), mask_cls=st.booleans(), epoch=st.integers(0, 5))
def test_exactly_the_share_is_masked_and_nothing_else_changes(ratio: float, mask_cls: bool, epoch: int) -> None:
    tokens = _tokens(include_zeros=False)
    config = TokenizerConfig()
    masked = mask_tokens(tokens, ratio, config=config, epoch=epoch, mask_cls=mask_cls)
    hidden = masked == config.mask_value
    assert np.array_equal(masked[~hidden], tokens.values[~hidden])
    for start, stop in itertools.pairwise(tokens.indptr):
        counted = stop - start - (0 if mask_cls else 1)
        assert hidden[start:stop].sum() == int(counted * ratio)
        assert mask_cls or not hidden[start]


def test_a_cells_mask_does_not_depend_on_its_neighbours() -> None:
    tokens, config = _tokens(), TokenizerConfig()
    together = mask_tokens(tokens, 0.4, config=config)
    one = tokens.take(np.array([3]))
    start, stop = tokens.indptr[3], tokens.indptr[4]
    assert np.array_equal(mask_tokens(one, 0.4, config=config), together[start:stop])
    assert not np.array_equal(mask_tokens(tokens, 0.4, config=config, epoch=1), together)
