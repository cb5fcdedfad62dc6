"""An exponential moving average (EMA) of the weights, gathered for validation and checkpoints."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cytoray.training.holdings import averaged_slices, named_parameters
from cytoray.training.slices import Slice


class WeightAverage:
    """The exponential average of an engine's fp32 weights; integer tensors are copied.

    With bf16 each rank averages the masters that it holds, since rounded weights hide changes below 0.4 %. ZeRO 3 is
    not supported.
    """

    def __init__(self, engine: Any, *, decay: float, saved: dict[str, Tensor] | None = None) -> None:
        """Begin with the engine's weights, or continue from ``saved`` averages."""
        self._engine, self._decay = engine, decay
        self._parts = {name: _wide(piece) for name, piece in averaged_slices(engine).items()}
        if saved is not None:
            for name, piece in self._parts.items():
                Slice.whole(saved[name]).copy_into(piece)
        is_shared_out = engine.bfloat16_enabled()
        self._shared_out = {name for name, _ in named_parameters(engine)} if is_shared_out else set()

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights after an optimiser update to the average."""
        for name, piece in averaged_slices(self._engine).items():
            average = self._parts[name].values
            if average.is_floating_point():
                average.lerp_(piece.values.float(), 1 - self._decay)
            else:
                average.copy_(piece.values)

    def weights(self) -> dict[str, Tensor]:
        """Return the averages (fp32, perhaps not copies) by the names of the model's ``state_dict``. Collective."""
        return {
            name: _gathered(piece) if name in self._shared_out else piece.values.reshape(piece.shape)
            for name, piece in self._parts.items()
        }

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Put the averages into the model for the duration of the block. Collective."""
        model = self._engine.module.model
        own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.weights())
        try:
            yield
        finally:
            model.load_state_dict(own)


def _wide(piece: Slice) -> Slice:
    """Return a copy, in fp32 if it is floating-point."""
    kind = torch.float32 if piece.values.is_floating_point() else piece.values.dtype
    return Slice(piece.values.detach().to(kind, copy=True), piece.start, piece.shape)


def _gathered(piece: Slice) -> Tensor:
    """Return the whole tensor of which each rank holds a slice."""
    whole = Slice(piece.values.new_zeros(math.prod(piece.shape)), 0, piece.shape)
    piece.copy_into(whole)
    dist.all_reduce(whole.values)
    return whole.values.reshape(whole.shape)
