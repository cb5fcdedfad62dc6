from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cytoray.tokens.collator import GenerativeMinibatch, Minibatch, collate, widen
from cytoray.tokens.tokenizer import CellTokenizer, TokenizerConfig


@pytest.fixture(scope="session")
def tokenise(panel, random_cells):
    tokenizer = CellTokenizer(panel, TokenizerConfig(max_length=121))
    return lambda seed: tokenizer(random_cells(seed), epoch=0)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_collate_pads_each_cell_to_the_longest(tokenise, seed: int):
    tokens = tokenise(seed)
    batch = collate(tokens, pad_id=400, pad_value=-2.0)
    assert batch.gene_ids.shape == (12, tokens.lengths.max())
    assert (batch.gene_ids.dtype, batch.values.dtype) == (torch.int64, torch.float32)
    assert batch.padding_mask.dtype == torch.bool
    assert torch.all(batch.values[batch.padding_mask] == -2.0)
    for row in range(12):
        start, length = tokens.indptr[row], tokens.lengths[row]
        assert batch.gene_ids[row, :length].tolist() == tokens.gene_ids[start : start + length].tolist()
        assert batch.values[row, :length].tolist() == tokens.values[start : start + length].tolist()
        assert batch.padding_mask[row].tolist() == [False] * length + [True] * int(tokens.lengths.max() - length)
    assert batch.cell_ids.tolist() == tokens.cell_ids.tolist()


@pytest.mark.parametrize("ids", ["uint16", "int32", "int64"])
@pytest.mark.parametrize("values", ["int8", "int16", "float32"])
def test_narrow_tokens_widen_to_what_the_model_takes(ids: str, values: str):
    gene_ids = np.array([[60_695, 7, 60_694], [60_695, 60_694, 60_694]], ids)
    bins = np.array([[-2, 50, -2], [-2, -2, -2]], values)
    batch = widen(gene_ids, bins, pad_id=60_694, cell_ids=np.array([4, 5], np.uint64))
    assert batch.gene_ids.tolist() == gene_ids.tolist()
    assert batch.values.tolist() == bins.tolist()
    assert batch.padding_mask.tolist() == [[False, False, True], [False, True, True]]
    assert (batch.gene_ids.dtype, batch.values.dtype) == (torch.int64, torch.float32)
    assert batch.cell_ids.tolist() == [4, 5]


def test_a_minibatch_moves_between_devices(tokenise):
    known = collate(tokenise(3), pad_id=400, pad_value=-2.0)
    batch = GenerativeMinibatch(known, known.gene_ids, known.values, known.padding_mask).to("meta")
    assert isinstance(batch.known, Minibatch)
    tensors = (batch.known.gene_ids, batch.known.values, batch.known.padding_mask)
    unknown = (batch.unknown_gene_ids, batch.unknown_targets, batch.unknown_padding_mask)
    assert {tensor.device.type for tensor in (*tensors, *unknown)} == {"meta"}


def test_no_cells_give_an_empty_minibatch(tokenise):
    empty = tokenise(4).take(np.empty(0, np.int64))
    assert collate(empty, pad_id=400, pad_value=-2.0).gene_ids.shape == (0, 0)
