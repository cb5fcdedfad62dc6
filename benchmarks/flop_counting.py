"""Torch's own FLOP counter, taught the one kernel of a CPU's attention that it does not know."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

_CPU_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def executed_flops(action: Callable[[], object]) -> int:
    """Operations of all matrix products that ``action`` executes, forward and backward."""

    def attention(query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    def attention_backward(gradient: Any, query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
        # Backwards scores are computed again, and each of the two products has two gradients: 5 products for 2.
        return math.ceil(2.5 * sdpa_flop_count(query, key, value))

    known = {
        _CPU_FLASH: attention,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
    }
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        action()
    return int(counter.get_total_flops())
