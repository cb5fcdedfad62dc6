"""Perturbed cells: what the flags change, which genes are predicted, and zeros by chance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from cytoray.model.perturbation import predict_perturbed
from cytoray.model.transformer import ScGPT
from cytoray.tokens.collator import Minibatch

MODEL = {"num_perturbation_flags": 3, "expression_decoder": "affine", "generative": False}


@pytest.fixture
def cells() -> Minibatch:
    torch.manual_seed(1)
    genes = torch.arange(12).expand(3, 12).contiguous()
    values = torch.rand(3, 12) + 0.5
    values[:, 4] = 0
    values[0, 7] = 0
    flags = torch.zeros(3, 12, dtype=torch.int64)
    flags[:, 2] = 1
    nothing = torch.zeros(3, 12, dtype=torch.bool)
    return Minibatch(genes, values, nothing, np.arange(3, dtype=np.uint64), perturbations=flags)


@torch.no_grad()
def test_flags_move_the_prediction(build_model: Callable[..., ScGPT], cells: Minibatch) -> None:
    model = build_model(**MODEL)
    perturbed = predict_perturbed(model, cells)
    assert perturbed.shape == (3, 12)
    assert not torch.allclose(
        perturbed, predict_perturbed(model, replace(cells, perturbations=cells.perturbations * 0))
    )


@torch.no_grad()
def test_genes_zero_in_all_cells_may_be_left_out(build_model: Callable[..., ScGPT], cells: Minibatch) -> None:
    model = build_model(**MODEL)
    got = predict_perturbed(model, cells, panel="expressed")
    assert not got[:, 4].any()
    kept = [column for column in range(12) if column != 4]
    part = replace(
        cells,
        gene_ids=cells.gene_ids[:, kept],
        values=cells.values[:, kept],
        padding_mask=cells.padding_mask[:, kept],
        perturbations=cells.perturbations[:, kept],
    )
    torch.testing.assert_close(got[:, kept], model(part).expression.value)


@torch.no_grad()
def test_adaptive_offset_is_a_multiple_of_the_mean_value(build_model: Callable[..., ScGPT], cells: Minibatch) -> None:
    model = build_model(**MODEL, adaptive_bias=True)
    plain = build_model(**MODEL)
    plain.load_state_dict(model.state_dict())
    hidden = model.encode(cells)
    offset = model.decoder.bias_decoder(hidden).value
    mean = cells.values.sum(1, keepdim=True) / (cells.values != 0).sum(1, keepdim=True)
    want = predict_perturbed(plain, cells) - offset + offset * mean
    torch.testing.assert_close(predict_perturbed(model, cells), want)


@torch.no_grad()
def test_zeros_are_drawn_only_where_asked(build_model: Callable[..., ScGPT], cells: Minibatch) -> None:
    model = build_model(**MODEL, zero_probability=True)
    assert torch.equal(predict_perturbed(model, cells), predict_perturbed(model, cells))
    drawn = predict_perturbed(model, cells, generator=torch.Generator().manual_seed(0))
    value = predict_perturbed(model, cells)
    assert ((drawn == 0) | (drawn == value)).all()
    assert (drawn == 0).any()
