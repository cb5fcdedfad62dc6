"""The operations a model needs, by formula, are those that torch's own counter sees it execute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from cytoray.model.flops import embedding_flops, generative_flops
from cytoray.model.transformer import ScGPT
from cytoray.tokens.collator import PackedGenerativeMinibatch, PackedMinibatch

KNOWN, UNKNOWN = (30, 20, 20, 7), (10, 20, 20, 0)


def _attention(query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _count(action: Callable[[], object]) -> int:
    known = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=known) as counter:
        action()
    return int(counter.get_total_flops())


def _packed(lengths: tuple[int, ...]) -> PackedMinibatch:
    total = sum(lengths)
    ids = np.arange(len(lengths), dtype=np.uint64)
    return PackedMinibatch(torch.arange(total) % 60, torch.ones(total), lengths, ids)


@pytest.mark.parametrize("cell_embedding", ["cls", "mean"])
def test_embedding_executes_what_it_needs(build_model: Callable[..., ScGPT], cell_embedding: str) -> None:
    model = build_model(cell_embedding=cell_embedding, attention_backend="cell")
    executed = _count(lambda: model.embed(_packed(KNOWN)))
    assert executed == embedding_flops(model.config, KNOWN).total


@pytest.mark.parametrize("unknown_out_proj", [True, False])
def test_generative_forward_executes_what_it_needs(build_model: Callable[..., ScGPT], unknown_out_proj: bool) -> None:
    model = build_model(attention_backend="cell", unknown_out_proj=unknown_out_proj)
    total = sum(UNKNOWN)
    batch = PackedGenerativeMinibatch(_packed(KNOWN), torch.arange(total) % 60, torch.ones(total), UNKNOWN)
    executed = _count(lambda: model.forward_generative(batch))
    needed = generative_flops(model.config, KNOWN, UNKNOWN)
    # One extra coordinate a head carries each unknown token's score with itself.
    head_width = model.config.width // model.config.num_heads
    scores = [u * (k + 1) for k, u in zip(KNOWN, UNKNOWN, strict=True)]
    extra = 4 * model.config.num_heads * model.config.num_layers * sum(scores)
    assert executed == needed.total + extra
    assert extra < needed.attention / head_width


def test_padding_is_what_the_packed_form_saves(build_model: Callable[..., ScGPT]) -> None:
    model = build_model(attention_backend="sdpa")
    assert _count(lambda: model.embed(_packed(KNOWN))) > embedding_flops(model.config, KNOWN).total
