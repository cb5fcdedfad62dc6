from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cytoray.tokens.collator import GenerativeMinibatch, Minibatch, collate, collate_generative
from cytoray.tokens.tokenizer import CellTokenizer, TokenizedCells, TokenizerConfig

RATIOS = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.floats(0, 1))


@pytest.fixture(scope="session")
def tokenise(panel, random_cells):
    tokenizer = CellTokenizer(panel, TokenizerConfig(max_length=121))
    return lambda seed: tokenizer(random_cells(seed), epoch=0)


def split(tokens: TokenizedCells, ratio: float, *, epoch: int = 0, seed: int = 0) -> GenerativeMinibatch:
    return collate_generative(tokens, unknown_ratio=ratio, epoch=epoch, seed=seed, pad_id=400, pad_value=-2.0)


def cell(ids: torch.Tensor, values: torch.Tensor, padding: torch.Tensor, row: int) -> dict[int, float]:
    real = ~padding[row]
    return dict(zip(ids[row][real].tolist(), values[row][real].tolist(), strict=True))


def known_genes(batch: GenerativeMinibatch, row: int) -> dict[int, float]:
    return cell(batch.known.gene_ids, batch.known.values, batch.known.padding_mask, row)


def unknown_genes(batch: GenerativeMinibatch, row: int) -> dict[int, float]:
    return cell(batch.unknown_gene_ids, batch.unknown_targets, batch.unknown_padding_mask, row)


def check_padding(ids: torch.Tensor, values: torch.Tensor, padding: torch.Tensor) -> None:
    assert (ids.dtype, values.dtype, padding.dtype) == (torch.int64, torch.float32, torch.bool)
    assert torch.equal(padding, ids == 400)
    assert torch.all(values[padding] == -2.0)
    assert torch.all(padding.long().diff(dim=1) >= 0)  # pads come last


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_collate_pads_each_cell_to_the_longest(tokenise, seed: int):
    tokens = tokenise(seed)
    batch = collate(tokens, pad_id=400, pad_value=-2.0)
    assert batch.gene_ids.shape == (12, tokens.lengths.max())
    check_padding(batch.gene_ids, batch.values, batch.padding_mask)
    for row in range(12):
        start, length = tokens.indptr[row], tokens.lengths[row]
        assert batch.gene_ids[row, :length].tolist() == tokens.gene_ids[start : start + length].tolist()
        assert batch.values[row, :length].tolist() == tokens.values[start : start + length].tolist()
        assert int((~batch.padding_mask[row]).sum()) == length
    assert batch.cell_ids.tolist() == tokens.cell_ids.tolist()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), ratio=RATIOS)
def test_split_gives_int_n_p_unknown_genes_and_keeps_cls_known(tokenise, panel, seed: int, ratio: float):
    tokens = tokenise(seed)
    batch = split(tokens, ratio)
    whole = collate(tokens, pad_id=400, pad_value=-2.0)
    check_padding(batch.known.gene_ids, batch.known.values, batch.known.padding_mask)
    check_padding(batch.unknown_gene_ids, batch.unknown_targets, batch.unknown_padding_mask)
    assert torch.all(batch.known.gene_ids[:, 0] == panel.cls_id)
    longest = whole.gene_ids.shape[1]
    assert batch.unknown_gene_ids.shape[1] == int((longest - 1) * ratio)  # G and P of the published collator
    assert batch.known.gene_ids.shape[1] == longest - int((longest - 1) * ratio)
    for row in range(12):
        known, unknown = known_genes(batch, row), unknown_genes(batch, row)
        assert len(unknown) == int((tokens.lengths[row] - 1) * ratio)
        assert not known.keys() & unknown.keys()
        assert known | unknown == cell(whole.gene_ids, whole.values, whole.padding_mask, row)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), ratio=RATIOS)
def test_split_of_a_cell_does_not_depend_on_its_neighbours(tokenise, seed: int, ratio: float):
    tokens = tokenise(seed)
    together = split(tokens, ratio)
    rows = np.random.default_rng(seed).permutation(12)[:4]
    apart = split(tokens.take(rows), ratio)
    for place, row in enumerate(rows):
        assert known_genes(apart, place) == known_genes(together, row)
        assert unknown_genes(apart, place) == unknown_genes(together, row)


def test_epoch_and_seed_change_the_split_and_nothing_else_does(tokenise):
    tokens = tokenise(1)
    draws = [split(tokens, 0.5, epoch=epoch, seed=seed) for epoch, seed in ((0, 0), (0, 0), (1, 0), (0, 1))]
    for row in np.flatnonzero(tokens.lengths > 20):
        first, again, epoch, seed = (unknown_genes(draw, row).keys() for draw in draws)
        assert first == again
        assert first != epoch
        assert first != seed


def test_every_gene_is_unknown_equally_often(tokenise, panel):
    tokens = tokenise(2).take(np.array([int(np.argmax(tokenise(2).lengths))]))
    genes = sorted(set(tokens.gene_ids.tolist()) - {panel.cls_id})
    counts = dict.fromkeys(genes, 0)
    for epoch in range(800):
        for gene in unknown_genes(split(tokens, 0.25, epoch=epoch), 0):
            counts[gene] += 1
    share = np.array(list(counts.values())) / 800
    assert np.all(abs(share - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 800))


def test_a_minibatch_moves_between_devices(tokenise):
    batch = split(tokenise(3), 0.5).to("meta")
    assert isinstance(batch.known, Minibatch)
    tensors = (batch.known.gene_ids, batch.known.values, batch.known.padding_mask)
    unknown = (batch.unknown_gene_ids, batch.unknown_targets, batch.unknown_padding_mask)
    assert {tensor.device.type for tensor in (*tensors, *unknown)} == {"meta"}


def test_no_cells_give_an_empty_minibatch(tokenise):
    empty = tokenise(4).take(np.empty(0, np.int64))
    assert collate(empty, pad_id=400, pad_value=-2.0).gene_ids.shape == (0, 0)
    assert split(empty, 0.5).unknown_gene_ids.shape == (0, 0)
