"""The attention rule as a FlexAttention block mask: blocks of other cells, and of unknown keys, are never computed."""

# T tokens = all known ones, then all unknown ones; Q queries, H heads, d head width

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from cytoray.model.layout import Layout, Segments

# Sizes are rounded up to blocks, so that a compiled kernel sees few different shapes.
_BLOCK = 128
_NO_CELL = -1


def attend_flex(q_QHd: Tensor, k_THd: Tensor, v_THd: Tensor, *, asking: Segments, layout: Layout) -> Tensor:
    """Attention (Q, H, d) of all packed cells at once; compiled on CUDA. On a CPU it is slow and has no backward."""
    num_queries = q_QHd.shape[0]
    mask = _block_mask(layout, everything=asking is layout.known)
    query, keys, values = (_blocks(rows) for rows in (q_QHd, k_THd, v_THd))
    attended = _kernel(q_QHd.device.type)(query, keys, values, block_mask=mask)
    attended_HQd: Tensor = attended[0, :, :num_queries]
    return attended_HQd.transpose(0, 1)


def _blocks(rows_THd: Tensor) -> Tensor:
    """(1, H, whole blocks, d)."""
    spare = -rows_THd.shape[0] % _BLOCK
    return torch.nn.functional.pad(rows_THd, (0, 0, 0, 0, 0, spare)).transpose(0, 1).unsqueeze(0)


@functools.cache
def _kernel(device: str) -> Callable[..., Any]:
    kernel: Callable[..., Any] = flex_attention
    return torch.compile(kernel, dynamic=False) if device == "cuda" else kernel


# All layers and both passes use one layout.
@functools.lru_cache(maxsize=4)
def _block_mask(layout: Layout, *, everything: bool) -> BlockMask:
    """Return the blocks of queries and keys to compute; padding to whole blocks counts as a separate cell."""
    device = layout.known.device
    cells = layout.known.cells if layout.unknown is None else torch.cat([layout.known.cells, layout.unknown.cells])
    rows = torch.arange(len(cells), device=device) if everything else layout.cls_rows
    num_keys, num_queries = len(cells), len(rows)
    cells = torch.nn.functional.pad(cells, (0, -num_keys % _BLOCK), value=_NO_CELL)
    # A padded query has a row of its own beyond all tokens, so that it has a key: a softmax over none is NaN.
    spare = torch.full((-num_queries % _BLOCK,), len(cells) - 1, device=device)
    rows = torch.cat([rows, spare])
    known = torch.arange(len(cells), device=device) < layout.known.total

    def allowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Return whether a query may attend to a key."""
        row = rows[query]
        return (cells[row] == cells[key]) & (known[key] | (row == key))

    return create_block_mask(allowed, None, None, len(rows), len(cells), device=device)
