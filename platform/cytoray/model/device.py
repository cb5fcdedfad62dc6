"""Choose the device of a model, for the Python API, offline embedding and serving."""

from __future__ import annotations

import logging
import os

import torch

from cytoray.errors import ConfigError

logger = logging.getLogger(__name__)


def choose_device(name: str) -> torch.device:
    """Return the device ``name``: cpu, cuda, cuda:N, mps, or auto for a GPU if there is one and else the CPU.

    Raises ConfigError if this process has no such device.
    """
    usable = _usable()
    if name == "auto":
        return torch.device(usable[0])
    device = torch.device(name)
    if device.type not in usable:
        raise ConfigError(f"device: there is no {name} here.", remedy=f"Usable: auto, {', '.join(usable)}.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(f"device: there is no {name} here.", remedy=f"This process has {count} GPU(s), from cuda:0.")
    return device


def choose_reserved_device(num_gpus: float) -> torch.device:
    """Return the device of a Ray actor that reserved ``num_gpus``: a GPU if it reserved one, else the CPU.

    Ray shows an actor only the GPUs that it reserved. If PyTorch can use none of them, the CPU is used and a warning
    is logged.
    """
    if num_gpus == 0:
        return torch.device("cpu")
    device = choose_device("auto")
    if device.type == "cpu":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
        logger.warning(
            "%g GPU(s) are reserved (CUDA_VISIBLE_DEVICES: %s), but PyTorch finds none: computing on the CPU",
            num_gpus, visible,
        )  # fmt: skip
    return device


def _usable() -> list[str]:
    """Return the kinds of devices of this process, the fastest first."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [kind for kind, usable in there.items() if usable]
