"""The mask-free attention equals attention under the dense mask it stands for, gradients included, by every kernel."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import Tensor

from cytoray.model.attention import SelfAttention, attend, choose_backend
from cytoray.model.layout import Layout

CPU = torch.device("cpu")
KNOWN, UNKNOWN = (7, 4, 4, 1), (5, 1, 1, 0)  # tokens of each cell
GRADIENT_KERNELS = ["cell", "sdpa"]  # FlexAttention has no backward on a CPU, varlen needs a GPU


@pytest.fixture(params=["cell", "sdpa", "flex"])
def kernel(request: pytest.FixtureRequest) -> Any:
    return request.param


def _layout(known: tuple[int, ...] = KNOWN, unknown: tuple[int, ...] | None = UNKNOWN) -> Layout:
    return Layout.of(known, unknown, device=CPU)


def _visible(known: tuple[int, ...], unknown: tuple[int, ...]) -> Tensor:
    """The rule itself, (T, T): a query sees the known keys of its cell, and an unknown query sees itself."""
    cell = torch.tensor(
        [i for i, n in enumerate(known) for _ in range(n)] + [i for i, n in enumerate(unknown) for _ in range(n)]
    )
    is_known = torch.arange(len(cell)) < sum(known)
    return ((cell[:, None] == cell) & is_known) | torch.eye(len(cell), dtype=torch.bool)


def _dense(q: Tensor, k: Tensor, v: Tensor, *, visible: Tensor) -> Tensor:
    """Masked attention written out; (T, H, d)."""
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~visible, float("-inf")).softmax(-1), v)


def _inputs(*, head_width: int = 8, total: int = sum(KNOWN) + sum(UNKNOWN)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    shape = (total, 2, head_width)
    return [(2 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_() for _ in range(3)]


def _attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout, **options: Any) -> Tensor:
    return attend(q, k, v, asking=layout.known, layout=layout, **options)


@pytest.mark.parametrize("head_width", [4, 7, 8])
@pytest.mark.parametrize("backend", GRADIENT_KERNELS)
def test_outputs_and_gradients_equal_dense_masked_attention(backend: str, head_width: int) -> None:
    q, k, v = _inputs(head_width=head_width)
    want = _dense(q, k, v, visible=_visible(KNOWN, UNKNOWN))
    got = _attend(q, k, v, _layout(), backend=backend)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(want)
    for gradient, wanted in zip(
        torch.autograd.grad((got * weights).sum(), [q, k, v]),
        torch.autograd.grad((want * weights).sum(), [q, k, v]),
        strict=True,
    ):
        torch.testing.assert_close(gradient, wanted, rtol=1e-11, atol=1e-11)


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(
    cells=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 5)), min_size=1, max_size=5),
    backend=st.sampled_from(GRADIENT_KERNELS),
)
def test_any_mixture_of_cells_is_kept_apart(cells: list[tuple[int, int]], backend: Any) -> None:
    known, unknown = (tuple(sizes) for sizes in zip(*cells, strict=True))
    q, k, v = (tensor.detach() for tensor in _inputs(head_width=4, total=sum(known) + sum(unknown)))
    want = _dense(q, k, v, visible=_visible(known, unknown))
    torch.testing.assert_close(_attend(q, k, v, _layout(known, unknown), backend=backend), want, rtol=1e-12, atol=1e-12)


def test_single_precision_is_as_accurate_as_the_dense_mask(kernel: Any) -> None:
    q, k, v = (tensor.detach() for tensor in _inputs(head_width=16))
    truth = _dense(q, k, v, visible=_visible(KNOWN, UNKNOWN))
    got = _attend(q.float(), k.float(), v.float(), _layout(), backend=kernel)
    torch.testing.assert_close(got.double(), truth, rtol=0, atol=3e-6)


@pytest.mark.parametrize("backend", GRADIENT_KERNELS)
def test_gradients_pass_gradcheck(backend: Any) -> None:
    layout = _layout((3, 2), (2, 1))
    inputs = _inputs(head_width=3, total=8)
    torch.autograd.gradcheck(lambda q, k, v: _attend(q, k, v, layout, backend=backend), inputs)


def test_the_last_layer_may_be_asked_for_cls_and_unknown_tokens_alone(kernel: Any) -> None:
    torch.manual_seed(0)
    attention = SelfAttention(12, num_heads=3, backend=kernel)
    hidden = torch.randn(sum(KNOWN) + sum(UNKNOWN), 12)
    layout = _layout()
    with torch.no_grad():
        everything = attention(hidden, layout=layout)
        asked = attention(hidden, layout=layout, cls_only=True)
    rows = [0, 7, 11, 15, *range(sum(KNOWN), sum(KNOWN) + sum(UNKNOWN))]
    assert layout.cls_rows.tolist() == rows
    torch.testing.assert_close(asked, everything[rows], rtol=1e-5, atol=1e-6)


def _mixed(attention: SelfAttention, hidden: Tensor, *, visible: Tensor) -> Tensor:
    """What stands before the output projection, from the layer's own weights and the dense mask."""
    q, k, v = (part.unflatten(-1, (attention.num_heads, -1)) for part in attention.Wqkv(hidden).chunk(3, dim=-1))
    return _dense(q, k, v, visible=visible).flatten(1)


@pytest.mark.parametrize("unknown_out_proj", [True, False])
@pytest.mark.parametrize("unknown", [UNKNOWN, None])
def test_layer_projects_known_always_and_unknown_where_asked(
    unknown: tuple[int, ...] | None, unknown_out_proj: bool
) -> None:
    torch.manual_seed(0)
    attention = SelfAttention(12, num_heads=3, unknown_out_proj=unknown_out_proj).double()
    hidden = torch.randn(sum(KNOWN) + sum(unknown or ()), 12, dtype=torch.float64)
    mixed = _mixed(attention, hidden, visible=_visible(KNOWN, unknown or ()))
    want = attention.out_proj(mixed)
    if not unknown_out_proj:
        want = torch.cat([want[: sum(KNOWN)], mixed[sum(KNOWN) :]])
    got = attention(hidden, layout=_layout(KNOWN, unknown))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_weights_are_those_that_attention_mixes_by() -> None:
    torch.manual_seed(0)
    attention = SelfAttention(12, num_heads=3).double()
    hidden = torch.randn(5, 12, dtype=torch.float64)
    values = attention.Wqkv(hidden)[:, 24:].unflatten(1, (3, 4))
    mixed = torch.einsum("hqk,khd->qhd", attention.weights(hidden), values).flatten(1)
    got = attention(hidden, layout=_layout((5,), None))
    torch.testing.assert_close(got, attention.out_proj(mixed), rtol=1e-12, atol=1e-12)


def test_attention_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    attention = SelfAttention(12, num_heads=3, dropout=0.5)
    hidden, layout = torch.randn(7, 12), _layout((7,), None)
    assert not torch.equal(attention(hidden, layout=layout), attention(hidden, layout=layout))
    attention.eval()
    assert torch.equal(attention(hidden, layout=layout), attention(hidden, layout=layout))


def test_auto_goes_cell_by_cell_where_cells_are_long() -> None:
    like = torch.empty(0)
    assert choose_backend(_layout((900, 800), None), like=like, backend="auto") == "cell"
    assert choose_backend(_layout((9, 80), None), like=like, backend="auto") == "sdpa"
    assert choose_backend(_layout((9, 80), None), like=like, backend="flex") == "flex"


def test_dropout_on_attention_is_never_given_to_a_kernel_without_it() -> None:
    layout, half = _layout((9, 80), None), SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16)
    assert choose_backend(layout, like=half, backend="auto") == "varlen"
    assert choose_backend(layout, like=half, backend="auto", dropout=0.1) == "sdpa"


@pytest.mark.parametrize("backend", GRADIENT_KERNELS)
def test_half_precision_under_autocast_agrees_to_its_rounding(backend: Any) -> None:
    torch.manual_seed(0)
    attention, layout = SelfAttention(16, num_heads=2, backend=backend), _layout()
    hidden = torch.randn(sum(KNOWN) + sum(UNKNOWN), 16)
    with torch.autocast("cpu", torch.bfloat16):
        half = attention(hidden, layout=layout)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), attention(hidden, layout=layout), rtol=0.05, atol=0.03)
