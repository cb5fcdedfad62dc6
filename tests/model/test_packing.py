"""Packed and padded minibatches are the same computation, gradients included, and cells of a pack never meet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cytoray.model.layout import Segments
from cytoray.model.transformer import ScGPT
from cytoray.tokens.collator import GenerativeMinibatch, Minibatch

BuildModel = Callable[..., ScGPT]
BACKENDS = ["cell", "sdpa"]
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"num_labels": 3},
    "batches": {
        "token_norm": "domain",
        "num_batch_labels": 2,
        "decoders_see_batch": True,
        "batch_discriminator": True,
        "zero_probability": True,
    },
    "pooled": {"cell_embedding": "weighted", "token_norm": "batch"},
    "queries": {"cell_conditioned_decoder": "concat query"},
}


@settings(deadline=None, max_examples=60)
@given(lengths=st.lists(st.integers(1, 7), min_size=1, max_size=6), data=st.randoms())
def test_padding_rows_and_back_is_the_identity(lengths: list[int], data: Any) -> None:
    segments = Segments(tuple(lengths), torch.device("cpu"))
    rows = torch.arange(float(sum(lengths) * 2)).view(-1, 2)
    padded = segments.pad(rows)
    assert padded.shape == (len(lengths), max(lengths), 2)
    assert torch.equal(segments.unpad(padded), rows)
    for cell, (start, length) in enumerate(zip(segments.starts.tolist(), lengths, strict=True)):
        assert torch.equal(padded[cell, :length], rows[start : start + length])
        assert not padded[cell, length:].any()
    assert segments.real.sum(dim=1).tolist() == lengths


def _labelled(batch: Minibatch) -> Minibatch:
    return replace(batch, batch_labels=torch.tensor([0, 1, 0]))


def _gradients(model: ScGPT, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_one_pass_is_the_same_packed_and_padded(
    build_model: BuildModel, make_batch: Callable[..., Minibatch], variant: str, backend: str
) -> None:
    model = build_model(dtype=torch.float64, attention_backend=backend, **VARIANTS[variant])
    batch = _labelled(make_batch([9, 3, 5], width=12))
    real = ~batch.padding_mask
    padded, packed = model(batch), model(batch.packed())
    _close(padded.cells_BD, packed.cells_BD)
    _close(padded.expression.value[real], packed.expression.value)
    assert not padded.expression.value[~real].any()
    _close(padded.cell_conditioned.value[real], packed.cell_conditioned.value)
    first = _gradients(model, padded.expression.value.square().sum() + padded.cell_conditioned.value.square().sum())
    second = _gradients(model, packed.expression.value.square().sum() + packed.cell_conditioned.value.square().sum())
    assert first.keys() == second.keys()
    for name, gradient in first.items():
        _close(gradient, second[name])


@pytest.mark.parametrize("backend", BACKENDS)
def test_both_passes_are_the_same_packed_and_padded(
    build_model: BuildModel, make_generative: Callable[..., GenerativeMinibatch], backend: str
) -> None:
    model = build_model(dtype=torch.float64, attention_backend=backend, unknown_out_proj=False)
    batch = make_generative([8, 3, 5], [6, 2, 0])
    real = ~batch.unknown_padding_mask

    def run(cells: Any) -> tuple[torch.Tensor, torch.Tensor]:
        first = model.forward_generative(cells)
        second = model.forward_generative(cells, cell_embedding_BD=first.cells_BD.detach())
        return torch.stack([first.expression, first.cell_conditioned, second.expression]), first.cells_BD

    (padded, cells), (packed, packed_cells) = run(batch), run(batch.packed())
    _close(cells, packed_cells)
    _close(padded[:, real], packed)
    first, second = _gradients(model, padded.square().sum()), _gradients(model, packed.square().sum())
    for name, gradient in first.items():
        _close(gradient, second[name])


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_nothing_leaks_from_one_cell_of_a_pack_to_another(
    build_model: BuildModel, make_generative: Callable[..., GenerativeMinibatch], backend: str
) -> None:
    """Bit for bit: the first cell's genes, values and unknown genes change, and nothing of the others does."""
    model, batch = build_model(attention_backend=backend), make_generative([5, 4, 4], [4, 3, 3]).packed()
    before = model.forward_generative(batch)
    genes, values, unknown = batch.known.gene_ids.clone(), batch.known.values.clone(), batch.unknown_gene_ids.clone()
    genes[1:6], values[1:6], unknown[:4] = genes[1:6].roll(1), values[1:6] + 7, (unknown[:4] + 11) % 60
    known = replace(batch.known, gene_ids=genes, values=values)
    after = model.forward_generative(replace(batch, known=known, unknown_gene_ids=unknown))
    assert not torch.equal(after.cells_BD[0], before.cells_BD[0])
    assert torch.equal(after.cells_BD[1:], before.cells_BD[1:])
    for old, new in ((before.expression, after.expression), (before.cell_conditioned, after.cell_conditioned)):
        assert torch.equal(new[4:], old[4:])
        assert not torch.equal(new[:4], old[:4])


def _close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
