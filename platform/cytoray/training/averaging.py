"""A running average of the weights (EMA): steadier than the last ones, kept on every rank, swapped in to be judged."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class WeightAverage:
    """The exponential average of a model's weights; buffers and whatever is not a number in floating point are copied.

    It needs whole weights on every rank, which ZeRO 3 does not leave there.
    """

    def __init__(self, model: nn.Module, *, decay: float, saved: dict[str, Tensor] | None = None) -> None:
        """Begin with the model's weights, or go on with ``saved`` ones."""
        self._model, self._decay = model, decay
        start = model.state_dict() if saved is None else saved
        device = next(model.parameters()).device
        self._average = {name: _wide(tensor.to(device)) for name, tensor in start.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights of a step."""
        for name, tensor in self._model.state_dict().items():
            average = self._average[name]
            if average.is_floating_point():
                average.lerp_(tensor.float(), 1 - self._decay)
            else:
                average.copy_(tensor)

    def weights(self) -> dict[str, Tensor]:
        """Averages by the names of the model's ``state_dict``, fp32; not copies."""
        return self._average

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Let the model have the averages inside the block."""
        own = {name: tensor.clone() for name, tensor in self._model.state_dict().items()}
        self._model.load_state_dict(self._average)
        try:
            yield
        finally:
            self._model.load_state_dict(own)


def _wide(tensor: Tensor) -> Tensor:
    """A copy, fp32 where it is a floating-point number."""
    return tensor.detach().to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)
