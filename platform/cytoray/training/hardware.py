"""Describe the hardware and software of a run: one entry per worker, package versions, peak rates of known GPUs."""

from __future__ import annotations

import os
import resource
import socket
from importlib import metadata

import torch

from cytoray import __version__, provenance

PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense bf16


def package_versions() -> dict[str, str]:
    """Return the versions of packages that may affect results."""
    return {"cytoray": __version__, **{name: metadata.version(name) for name in ("torch", "ray", "deepspeed")}}


def describe_worker(device: torch.device | str) -> dict[str, str]:
    """Describe host, processor and GPU (if any) of this process."""
    device = torch.device(device)
    about = {
        "host": socket.gethostname(),
        "processor": provenance.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
    }
    if device.type == "cuda":
        about["gpu"] = torch.cuda.get_device_name(device)
    return about


def peak_flops(device: torch.device | str) -> float | None:
    """Peak dense bf16 operations per second of a device; None if unknown."""
    device = torch.device(device)
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device).upper()
    return next((peak for kind, peak in PEAK_FLOPS.items() if kind in name), None)


def memory_bytes(device: torch.device | str) -> int:
    """Peak memory of this process: on its GPU, or resident."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
