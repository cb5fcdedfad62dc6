"""The model that a run starts from: its weights go to all workers through Ray's object store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray
import torch
from torch import Tensor


@dataclass(frozen=True)
class InitialModel:
    """Weights by name, with the URI and the digest of the model that they are from."""

    uri: str
    digest: str
    weights: dict[str, Tensor]

    def share(self) -> SharedWeights:
        """Put the weights into the object store, once for all workers and restarts."""
        return SharedWeights(self.uri, ray.put({name: tensor.numpy() for name, tensor in self.weights.items()}))


@dataclass(frozen=True)
class SharedWeights:
    """Weights in Ray's object store."""

    uri: str
    reference: Any

    def load(self) -> dict[str, Tensor]:
        """Fetch the weights by name; every rank loads all of them, and its engine then keeps its share."""
        arrays = ray.get(self.reference)
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
