"""An exponential moving average (EMA) of the weights, kept on every rank and swapped in for validation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class WeightAverage:
    """The exponential average of a model's weights; integer tensors are copied.

    It needs whole weights on every rank, which ZeRO 3 does not keep. With bf16 it averages the rounded weights.
    """

    def __init__(self, model: nn.Module, *, decay: float, saved: dict[str, Tensor] | None = None) -> None:
        """Begin with the model's weights, or continue from ``saved`` averages."""
        self._model, self._decay = model, decay
        start = model.state_dict() if saved is None else saved
        device = next(model.parameters()).device
        self._average = {name: _wide(tensor.to(device)) for name, tensor in start.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights after an optimiser update to the average."""
        for name, tensor in self._model.state_dict().items():
            average = self._average[name]
            if average.is_floating_point():
                average.lerp_(tensor.float(), 1 - self._decay)
            else:
                average.copy_(tensor)

    def weights(self) -> dict[str, Tensor]:
        """Return the averages (fp32, not copies) by the names of the model's ``state_dict``."""
        return self._average

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Put the averages into the model for the duration of the block."""
        own = {name: tensor.clone() for name, tensor in self._model.state_dict().items()}
        self._model.load_state_dict(self._average)
        try:
            yield
        finally:
            self._model.load_state_dict(own)


def _wide(tensor: Tensor) -> Tensor:
    """Return a copy, in fp32 if it is floating-point."""
    return tensor.detach().to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)
