"""Measure steps: cells, tokens and operations per second, and the shares spent on waiting and on checkpoints."""

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
    """Times the steps of one rank's loop; every figure covers the time since the previous step."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._waited_s = self._stalled_s = self._validated_s = 0.0

    def take(self, batches: Iterator[Item]) -> Item | None:
        """Return the next minibatch, None after the last; the time counts as waiting for data."""
        started = time.perf_counter()
        batch = next(batches, None)
        self._waited_s += time.perf_counter() - started
        return batch

    @contextlib.contextmanager
    def stalled(self) -> Iterator[None]:
        """Count the time of the block as a stall by a checkpoint."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._stalled_s += time.perf_counter() - started

    @contextlib.contextmanager
    def validating(self) -> Iterator[None]:
        """Count the time of the block as validation, which is not part of the step."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._validated_s += time.perf_counter() - started

    def end_step(self, amounts: Amounts, device: torch.device | str) -> dict[str, float]:
        """Return the figures of the step that ends now; ``amounts`` are over all ranks."""
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
        if peak is not None:  # of the operations that the objective needs, without padding and masked scores
            figures["mfu"] = amounts.flops / seconds / (peak * dist.get_world_size())
        self._last, self._waited_s, self._stalled_s, self._validated_s = now, 0.0, 0.0, 0.0
        return figures
