"""Compute the blocks of a network by Ray's tasks, one per block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import ray

if TYPE_CHECKING:
    from cytoray.tasks.networks.evidence import Block
    from cytoray.tasks.networks.inference import Work

MAX_RETRIES = 3  # of a task whose worker dies


def start_blocks(work: Work, numbers: Sequence[int]) -> Callable[[int], Block]:
    """Start a task for each block, and return a function that waits for the result of one of them."""
    task = ray.remote(num_cpus=1, max_retries=MAX_RETRIES)(_compute)
    shared = ray.put(work)
    waiting = {number: task.remote(shared, number) for number in numbers}

    def result(number: int) -> Block:
        """Wait for a block."""
        found: Block = ray.get(waiting.pop(number)) if number in waiting else work.compute(number)
        return found

    return result


def _compute(work: Work, number: int) -> Block:
    return work.compute(number)
