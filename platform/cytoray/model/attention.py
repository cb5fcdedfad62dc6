"""Self-attention: every token sees the known ones, an unknown token itself as well, without an L x L mask."""

# B cells, L known tokens, G unknown tokens, T = L + G tokens, D width, H heads, d = D / H head width

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Score of the extra key for known queries: its softmax weight is exactly 0, and fp16 can still represent it.
_NEVER = -10_000.0
# Fused GPU kernels want head widths in multiples of 8; on a CPU the zero columns cost about 2 % of attention.
_HEAD_MULTIPLE = 8


class SelfAttention(nn.Module):
    """Multi-head attention with scGPT's released parameter layout (``Wqkv`` rows are [q; k; v], then ``out_proj``).

    With ``unknown_out_proj=False`` unknown tokens skip the output projection, as the released weights were trained.
    """

    def __init__(self, width: int, *, num_heads: int, unknown_out_proj: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.unknown_out_proj = unknown_out_proj
        self.Wqkv = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, hidden_BTD: Tensor, *, known_BL: Tensor) -> Tensor:
        """Attend over ``hidden_BTD``, whose first L tokens are known; ``known_BL`` is False at padding."""
        num_cells, num_tokens, width = hidden_BTD.shape
        num_known = known_BL.shape[1]
        qkv = self.Wqkv(hidden_BTD).view(num_cells, num_tokens, 3, self.num_heads, -1)
        q_BHTd, k_BHTd, v_BHTd = qkv.permute(2, 0, 3, 1, 4)
        attend = attend_to_known if num_tokens == num_known else attend_to_known_and_self
        heads_BHTd = attend(q_BHTd, k_BHTd, v_BHTd, known_BL=known_BL)
        mixed_BTD = heads_BHTd.transpose(1, 2).reshape(num_cells, num_tokens, width)
        if self.unknown_out_proj or num_tokens == num_known:
            projected: Tensor = self.out_proj(mixed_BTD)
            return projected
        return torch.cat([self.out_proj(mixed_BTD[:, :num_known]), mixed_BTD[:, num_known:]], dim=1)


def attend_to_known(q_BHLd: Tensor, k_BHLd: Tensor, v_BHLd: Tensor, *, known_BL: Tensor) -> Tensor:
    """Plain attention over all keys that are not padding."""
    return F.scaled_dot_product_attention(q_BHLd, k_BHLd, v_BHLd, attn_mask=known_BL[:, None, None, :])


def attend_to_known_and_self(q_BHTd: Tensor, k_BHTd: Tensor, v_BHTd: Tensor, *, known_BL: Tensor) -> Tensor:
    """Each query attends to the known keys; a query after the first L attends to its own key as well.

    One extra key carries all the self terms. A query brings its own score q.k as an extra coordinate, the extra key
    is zero but for a 1 there, and so is the extra value: the attended value then holds, in that coordinate, the
    weight of the self term, which is put back as weight * v. This is exact and differentiable, costs L + 1 keys a
    query instead of T, and nothing attends to an unknown token, so unknown padding needs no mask.
    """
    num_known, head_width = known_BL.shape[1], q_BHTd.shape[-1]
    spare = -(head_width + 1) % _HEAD_MULTIPLE
    q_BHTd = q_BHTd * head_width**-0.5
    own_BHG = (q_BHTd[:, :, num_known:] * k_BHTd[:, :, num_known:]).sum(-1)
    own_BHT = F.pad(own_BHG, (num_known, 0), value=_NEVER)
    query = torch.cat([q_BHTd, F.pad(own_BHT.unsqueeze(-1), (0, spare))], dim=-1)
    attended = F.scaled_dot_product_attention(
        query,
        _with_extra_row(k_BHTd[:, :, :num_known], spare=spare),
        _with_extra_row(v_BHTd[:, :, :num_known], spare=spare),
        attn_mask=F.pad(known_BL, (0, 1), value=True)[:, None, None, :],
        scale=1.0,
    )
    known, unknown = attended[:, :, :num_known], attended[:, :, num_known:]
    own_weight_BHG1 = unknown[..., head_width : head_width + 1]
    return torch.cat(
        [known[..., :head_width], unknown[..., :head_width] + own_weight_BHG1 * v_BHTd[:, :, num_known:]], 2
    )


def _with_extra_row(keys_BHLd: Tensor, *, spare: int) -> Tensor:
    """Append 1 + ``spare`` zero columns and one row that is 1 in the first new column and 0 elsewhere."""
    *_, head_width = keys_BHLd.shape
    unit = keys_BHLd.new_zeros(head_width + 1 + spare)
    unit[head_width] = 1.0
    row = unit.expand(*keys_BHLd.shape[:2], 1, -1)
    return torch.cat([F.pad(keys_BHLd, (0, 1 + spare)), row], dim=2)
