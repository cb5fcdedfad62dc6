"""Slices of flattened tensors: what one rank holds of the optimiser's state, written and read without any other rank.

A file of slices is safetensors; its metadata tells of each ``<kind>.<parameter>`` where the slice starts in the
flattened parameter, and the parameter's shape. Kinds are ``exp_avg``, ``exp_avg_sq`` and, with bf16, ``master``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from cytoray.errors import TrainingError

MASTER = "master"  # the kind of slices that are fp32 weights
MOMENTS = ("exp_avg", "exp_avg_sq")  # the kinds that are Adam's averages


@dataclass(frozen=True)
class Slice:
    """A stretch of a flattened tensor of ``shape``: ``values`` (1-D) are its elements from ``start`` on."""

    values: Tensor
    start: int
    shape: tuple[int, ...]

    @staticmethod
    def whole(tensor: Tensor) -> Slice:
        """All of a tensor."""
        return Slice(tensor.detach().flatten(), 0, tuple(tensor.shape))

    def share(self, rank: int, world_size: int) -> Slice:
        """The even share of one of ``world_size`` ranks that all hold this slice."""
        first, last = (self.values.numel() * place // world_size for place in (rank, rank + 1))
        return Slice(self.values[first:last], self.start + first, self.shape)

    def copy_into(self, other: Slice) -> int:
        """Write the elements that both have into the other's values; returns how many these are."""
        first = max(self.start, other.start)
        last = min(self.start + self.values.numel(), other.start + other.values.numel())
        if first >= last:
            return 0
        other.values[first - other.start : last - other.start].copy_(
            self.values[first - self.start : last - self.start]
        )
        return last - first


@dataclass(frozen=True)
class Snapshot:
    """Copies on the host of what one rank writes into a checkpoint; whole tensors are with rank 0 alone."""

    weights: dict[str, Tensor]  # and buffers, by name
    slices: dict[str, Slice]  # of the optimiser's state, by ``<kind>.<parameter>``
    averages: dict[str, Tensor] | None = None  # averaged weights, of a run that keeps them
    rank: int = 0
    world_size: int = 1
    zero_stage: int = 0

    @property
    def has_master(self) -> bool:
        """Whether the slices hold fp32 weights."""
        return any(name.startswith(f"{MASTER}.") for name in self.slices)


def encode_slices(slices: dict[str, Slice]) -> bytes:
    """Slices as the bytes of one safetensors file."""
    places = {name: json.dumps([piece.start, piece.shape]) for name, piece in slices.items()}
    return save_tensors({name: piece.values.contiguous() for name, piece in slices.items()}, metadata=places)


def decode_slices(data: bytes) -> dict[str, Slice]:
    """What ``encode_slices`` has encoded."""
    # The library reads metadata from files only; the header is JSON behind its length in eight bytes.
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    places = {name: json.loads(place) for name, place in header.get("__metadata__", {}).items()}
    return {name: Slice(values, places[name][0], tuple(places[name][1])) for name, values in load_tensors(data).items()}


def fill(targets: dict[str, Slice], parts: Iterable[dict[str, Slice]]) -> int:
    """Write what ``parts``, which do not overlap, have of the targets; returns how many parts had to be looked at.

    Later parts are not asked for once all targets are full. TrainingError if at the end one is not.
    """
    empty = {name: target.values.numel() for name, target in targets.items()}
    looked_at = 0
    for part in parts:
        looked_at += 1
        for name in targets.keys() & part.keys():
            if part[name].shape != targets[name].shape:
                raise TrainingError(
                    f"{name} has the shape {part[name].shape} in this checkpoint, not {targets[name].shape}.",
                    remedy="Use the model settings of the run that made it.",
                )
            empty[name] -= part[name].copy_into(targets[name])
        if not any(empty.values()):
            break
    missing = sorted(name for name, amount in empty.items() if amount)
    if missing:
        raise TrainingError(
            f"This checkpoint has no complete optimiser state of {len(missing)} tensors, such as {missing[0]}.",
            remedy="Use the model and precision settings of the run that made it.",
            missing=missing,
        )
    return looked_at


def assemble(parts: Iterable[dict[str, Slice]], *, kind: str = "") -> dict[str, Tensor]:
    """Whole tensors out of the slices of all parts, or of those of one kind; TrainingError if one is incomplete."""
    parts = [{name: piece for name, piece in part.items() if name.startswith(kind)} for part in parts]
    shapes = {name: piece.shape for part in parts for name, piece in part.items()}
    whole = {name: Slice(torch.zeros(math.prod(shape)), 0, shape) for name, shape in shapes.items()}
    fill(whole, parts)
    return {name: piece.values.reshape(piece.shape) for name, piece in whole.items()}
