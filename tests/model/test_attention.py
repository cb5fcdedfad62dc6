"""The mask-free attention equals attention under the dense mask it stands for, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cytoray.model.attention import SelfAttention, attend_to_known_and_self

LENGTHS = [7, 4, 1]  # known tokens of each cell, padded to 7


def _known() -> Tensor:
    return torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]


def _visible(known_BL: Tensor, *, num_unknown: int) -> Tensor:
    """The rule itself: a query sees every known key that is not padding, and an unknown query sees itself."""
    num_known = known_BL.shape[1]
    keys = F.pad(known_BL, (0, num_unknown), value=False)[:, None, :]
    itself = torch.eye(num_known + num_unknown, dtype=torch.bool)
    itself[:num_known, :num_known] = False
    return (keys | itself)[:, None]


def _dense(q: Tensor, k: Tensor, v: Tensor, *, visible: Tensor) -> Tensor:
    """Masked attention written out."""
    scores = (q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5
    return scores.masked_fill(~visible, float("-inf")).softmax(-1) @ v


def _inputs(*, num_unknown: int, head_width: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    shape = (len(LENGTHS), 2, max(LENGTHS) + num_unknown, head_width)
    return [(2 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("head_width", [4, 7, 8])
@pytest.mark.parametrize("num_unknown", [1, 5])
def test_outputs_and_gradients_equal_dense_masked_attention(num_unknown: int, head_width: int) -> None:
    q, k, v = _inputs(num_unknown=num_unknown, head_width=head_width)
    known_BL = _known()
    want = _dense(q, k, v, visible=_visible(known_BL, num_unknown=num_unknown))
    got = attend_to_known_and_self(q, k, v, known_BL=known_BL)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(want)
    for gradient, wanted in zip(
        torch.autograd.grad((got * weights).sum(), [q, k, v]),
        torch.autograd.grad((want * weights).sum(), [q, k, v]),
        strict=True,
    ):
        torch.testing.assert_close(gradient, wanted, rtol=1e-11, atol=1e-11)


def test_single_precision_is_as_accurate_as_the_dense_mask() -> None:
    q, k, v = (tensor.detach() for tensor in _inputs(num_unknown=5, head_width=16))
    visible = _visible(_known(), num_unknown=5)
    truth = _dense(q, k, v, visible=visible)
    got = attend_to_known_and_self(q.float(), k.float(), v.float(), known_BL=_known())
    torch.testing.assert_close(got.double(), truth, rtol=0, atol=3e-6)


def test_gradients_pass_gradcheck() -> None:
    inputs = _inputs(num_unknown=2, head_width=3)
    torch.autograd.gradcheck(lambda q, k, v: attend_to_known_and_self(q, k, v, known_BL=_known()), inputs)


def _attend(attention: SelfAttention, hidden: Tensor, *, visible: Tensor) -> Tensor:
    """What stands before the output projection, from the layer's own weights and the dense mask."""
    q, k, v = (
        part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for part in attention.Wqkv(hidden).chunk(3, dim=-1)
    )
    return _dense(q, k, v, visible=visible).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("unknown_out_proj", [True, False])
def test_layer_projects_known_always_and_unknown_where_asked(unknown_out_proj: bool) -> None:
    torch.manual_seed(0)
    attention = SelfAttention(12, num_heads=3, unknown_out_proj=unknown_out_proj).double()
    hidden = torch.randn(len(LENGTHS), 12, 12, dtype=torch.float64)
    mixed = _attend(attention, hidden, visible=_visible(_known(), num_unknown=5))
    want = attention.out_proj(mixed)
    if not unknown_out_proj:
        want = torch.cat([want[:, :7], mixed[:, 7:]], dim=1)
    torch.testing.assert_close(attention(hidden, known_BL=_known()), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("unknown_out_proj", [True, False])
def test_plain_attention_is_projected_whatever_the_option(unknown_out_proj: bool) -> None:
    torch.manual_seed(0)
    attention = SelfAttention(12, num_heads=3, unknown_out_proj=unknown_out_proj).double()
    hidden = torch.randn(len(LENGTHS), 7, 12, dtype=torch.float64)
    want = attention.out_proj(_attend(attention, hidden, visible=_known()[:, None, None, :]))
    torch.testing.assert_close(attention(hidden, known_BL=_known()), want, rtol=1e-12, atol=1e-12)
