"""Self-attention: every token attends to the known tokens of its cell, an unknown token also to itself.

No L x L mask is needed: cells are computed one by one, or packed kernels separate them, and the score of an
unknown token with itself uses an extra key (see ``_with_extra_row``).
"""

# B cells, T tokens = all known ones, then all unknown ones; Q queries; L known and G unknown tokens of a cell,
# D width, H heads, d = D / H head width

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cytoray.model.layout import Layout, Segments

if TYPE_CHECKING:
    from cytoray.model.config import AttentionBackend

# Fused GPU kernels need head widths in multiples of 8; those of the CPU do not.
_HEAD_MULTIPLE = 8
# Below this many tokens per cell on average, padding costs a CPU less than one call per cell.
_SHORT = 96


class SelfAttention(nn.Module):
    """Multi-head attention with scGPT's released parameter layout (``Wqkv`` rows are [q; k; v], then ``out_proj``).

    With ``unknown_out_proj=False`` unknown tokens skip the output projection, as the released weights were trained.
    """

    def __init__(
        self,
        width: int,
        *,
        num_heads: int,
        unknown_out_proj: bool = True,
        dropout: float = 0.0,
        backend: AttentionBackend = "auto",
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.unknown_out_proj = unknown_out_proj
        self.dropout = dropout
        self.backend: AttentionBackend = backend
        self.Wqkv = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, hidden_TD: Tensor, *, layout: Layout, cls_only: bool = False) -> Tensor:
        """Return the attention output (Q, D) for all T tokens, or with ``cls_only`` for ``layout.cls_rows``."""
        width = hidden_TD.shape[1]
        if cls_only:
            asking_QD = hidden_TD.index_select(0, layout.cls_rows)
            q_QD = F.linear(asking_QD, self.Wqkv.weight[:width], self.Wqkv.bias[:width])
            k_TD, v_TD = F.linear(hidden_TD, self.Wqkv.weight[width:], self.Wqkv.bias[width:]).split(width, dim=1)
        else:
            q_QD, k_TD, v_TD = self.Wqkv(hidden_TD).split(width, dim=1)
        heads = [rows.unflatten(1, (self.num_heads, -1)) for rows in (q_QD, k_TD, v_TD)]
        asking = layout.cls_known if cls_only else layout.known
        dropout = self.dropout if self.training else 0.0
        mixed_QD = attend(*heads, asking=asking, layout=layout, backend=self.backend, dropout=dropout).flatten(1)
        if self.unknown_out_proj or layout.unknown is None:
            projected: Tensor = self.out_proj(mixed_QD)
            return projected
        known_QD, unknown_UD = mixed_QD.split([asking.total, layout.unknown.total])
        return torch.cat([self.out_proj(known_QD), unknown_UD])

    def weights(self, hidden_LD: Tensor) -> Tensor:
        """Return the attention weights (H, L, L) of one cell of known tokens: row = query, column = key."""
        q_LHd, k_LHd, _ = self.Wqkv(hidden_LD).unflatten(1, (3, self.num_heads, -1)).unbind(1)
        scores_HLL = torch.einsum("qhd,khd->hqk", q_LHd, k_LHd) * q_LHd.shape[-1] ** -0.5
        weights_HLL: Tensor = scores_HLL.softmax(dim=-1)
        return weights_HLL


def choose_backend(
    layout: Layout, *, like: Tensor, backend: AttentionBackend, dropout: float = 0.0
) -> AttentionBackend:
    """Choose the kernel of ``auto`` for queries ``like`` these.

    On a GPU packed flash attention, which needs half precision and has no dropout, else padded; on a CPU cell by
    cell, or padded if cells are short.
    """
    if backend != "auto":
        return backend
    if like.device.type == "cuda":
        return "varlen" if like.dtype in (torch.bfloat16, torch.float16) and not dropout else "sdpa"
    return "cell" if layout.known.total > _SHORT * len(layout.known.lengths) else "sdpa"


def attend(
    q_QHd: Tensor,
    k_THd: Tensor,
    v_THd: Tensor,
    *,
    asking: Segments,
    layout: Layout,
    backend: AttentionBackend = "auto",
    dropout: float = 0.0,
) -> Tensor:
    """Compute attention (Q, H, d) for the queries: ``asking`` known ones, cell by cell, then all unknown tokens."""
    chosen = choose_backend(layout, like=q_QHd, backend=backend, dropout=dropout)
    if chosen == "flex":
        from cytoray.model.flex_attention import attend_flex

        return attend_flex(q_QHd, k_THd, v_THd, asking=asking, layout=layout)
    sizes = [layout.known.total] + ([] if layout.unknown is None else [layout.unknown.total])
    q_parts = q_QHd.split([asking.total, *sizes[1:]])
    k_parts, v_parts = k_THd.split(sizes), v_THd.split(sizes)
    compute, scale = _KERNELS[chosen], q_QHd.shape[-1] ** -0.5
    outputs = [compute(q_parts[0], k_parts[0], v_parts[0], _Call(asking, layout.known, scale, dropout))]
    if layout.unknown is not None and layout.unknown.total:
        own_UH1 = (q_parts[1] * k_parts[1]).sum(-1, keepdim=True).to(q_QHd.dtype)  # autocast sums in fp32
        spare = 0 if q_QHd.device.type == "cpu" else -(q_QHd.shape[-1] + 1) % _HEAD_MULTIPLE
        query = F.pad(torch.cat([q_parts[1], own_UH1], dim=-1), (0, spare))
        keys, values = (_with_extra_row(part[0], layout.known, spare=spare) for part in (k_parts, v_parts))
        attended = compute(query, keys, values, _Call(layout.unknown, layout.known_and_self, scale, dropout))
        outputs.append(_put_self_back(attended, v_parts[1]))
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


class _Call(NamedTuple):
    """Arguments of a kernel other than queries, keys and values."""

    asking: Segments
    keys: Segments
    scale: float
    dropout: float


def _with_extra_row(rows_KHd: Tensor, known: Segments, *, spare: int) -> Tensor:
    """Rows of each cell, 1 + ``spare`` zero columns wider, and after them one row that is 1 in the first of these.

    As keys and as values: a query that brings its own score as the coordinate d then finds, in the coordinate d of
    what it attended to, the weight of its own value. This is exact and differentiable, and nothing attends to an
    unknown token.
    """
    num_rows, num_heads, width = rows_KHd.shape
    target = rows_KHd.new_zeros(num_rows + len(known.lengths), num_heads, width + 1 + spare)
    numbers = torch.arange(len(known.lengths), device=rows_KHd.device)
    target[known.starts + known.counts + numbers, :, width] = 1.0
    places = torch.arange(num_rows, device=rows_KHd.device) + known.cells
    return target.index_copy(0, places, F.pad(rows_KHd, (0, 1 + spare)))


def _put_self_back(attended_UHe: Tensor, v_UHd: Tensor) -> Tensor:
    """Add a token's own value, whose weight is in the first extra column."""
    width = v_UHd.shape[-1]
    return torch.addcmul(attended_UHe[..., :width], attended_UHe[..., width : width + 1], v_UHd)


def _by_cell(q_QHd: Tensor, k_KHd: Tensor, v_KHd: Tensor, call: _Call) -> Tensor:
    """Call fused attention, without a mask, for each run of neighbouring cells of equal lengths."""
    runs = _common_runs(call.asking, call.keys)
    q_parts = q_QHd.split([count * num_q for count, num_q, _ in runs])
    k_parts = k_KHd.split([count * num_k for count, _, num_k in runs])
    v_parts = v_KHd.split([count * num_k for count, _, num_k in runs])
    outputs = []
    for (count, num_q, num_k), q, k, v in zip(runs, q_parts, k_parts, v_parts, strict=True):
        sized = ((q, num_q), (k, num_k), (v, num_k))
        query, keys, values = (rows.unflatten(0, (count, length)).transpose(1, 2) for rows, length in sized)
        attended = F.scaled_dot_product_attention(query, keys, values, dropout_p=call.dropout, scale=call.scale)
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


def _padded(q_QHd: Tensor, k_KHd: Tensor, v_KHd: Tensor, call: _Call) -> Tensor:
    """Compute fused attention over padded cells, with padding masked as keys."""
    sized = ((call.asking, q_QHd), (call.keys, k_KHd), (call.keys, v_KHd))
    query, keys, values = (segments.pad(rows).transpose(1, 2) for segments, rows in sized)
    mask = None if call.keys.are_equal else call.keys.real[:, None, None, :]
    attended = F.scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, dropout_p=call.dropout, scale=call.scale
    )
    return call.asking.unpad(attended.transpose(1, 2))


def _varlen(q_QHd: Tensor, k_KHd: Tensor, v_KHd: Tensor, call: _Call) -> Tensor:
    """Compute torch's variable-length flash attention: CUDA, half precision, no dropout."""
    from torch.nn.attention.varlen import varlen_attn

    assert not call.dropout, "varlen attention has no dropout"
    attended = varlen_attn(
        q_QHd,
        k_KHd,
        v_KHd,
        call.asking.offsets,
        call.keys.offsets,
        call.asking.longest,
        call.keys.longest,
        scale=call.scale,
    )
    assert isinstance(attended, Tensor)
    return attended


_KERNELS = {"cell": _by_cell, "sdpa": _padded, "varlen": _varlen}


def _common_runs(asking: Segments, keys: Segments) -> list[tuple[int, int, int]]:
    """Yield (cells, queries, keys) of each run of neighbouring cells with equal numbers of both."""
    runs: list[tuple[int, int, int]] = []
    for sizes in zip(asking.lengths, keys.lengths, strict=True):
        count = runs.pop()[0] if runs and runs[-1][1:] == sizes else 0
        runs.append((count + 1, *sizes))
    return runs
