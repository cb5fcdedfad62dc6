"""What a step took: cells, tokens and operations a second, and the shares spent on waiting and on checkpoints."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TypeVar

import torch
import torch.distributed as dist

from cytoray.training.hardware import memory_bytes, peak_flops
from cytoray.training.objectives import Amounts

Item = TypeVar("Item")


class Meter:
    """Times the steps of one rank's loop; every figure is of the time since the step before."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._waited_s = self._stalled_s = self._validated_s = 0.0

    def take(self, batches: Iterator[Item]) -> Item | None:
        """The next minibatch, None after the last; what it takes counts as waiting for data."""
        started = time.perf_counter()
        batch = next(batches, None)
        self._waited_s += time.perf_counter() - started
        return batch

    @contextlib.contextmanager
    def stalled(self) -> Iterator[None]:
        """What the block takes counts as time that a checkpoint keeps the loop from training."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._stalled_s += time.perf_counter() - started

    @contextlib.contextmanager
    def validating(self) -> Iterator[None]:
        """What the block takes is told by itself and is no part of the step."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._validated_s += time.perf_counter() - started

    def end_step(self, amounts: Amounts, device: torch.device | str) -> dict[str, float]:
        """Figures of the step that ends now, given what it held over all ranks."""
        now = time.perf_counter()
        seconds = max(now - self._last - self._validated_s, 1e-9)
        figures = {
            "cells_per_s": amounts.cells / seconds,
            "tokens_per_s": amounts.tokens / seconds,
            "needed_flops_per_s": amounts.flops / seconds,
            "data_wait_share": self._waited_s / seconds,
            "checkpoint_stall_share": self._stalled_s / seconds,
            "step_s": seconds,
            "memory_bytes": float(memory_bytes(device)),
        }
        if self._validated_s:
            figures["validation_s"] = self._validated_s
        peak = peak_flops(device)
        if peak is not None:  # of what the objective needs: no padding, no masked scores
            figures["mfu"] = amounts.flops / seconds / (peak * dist.get_world_size())
        self._last, self._waited_s, self._stalled_s, self._validated_s = now, 0.0, 0.0, 0.0
        return figures
