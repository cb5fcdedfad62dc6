"""On what a run trains: one line a worker, versions of what computes, and the peak of known GPUs."""

from __future__ import annotations

import os
import platform
import resource
import socket
from importlib import metadata
from pathlib import Path

import torch

from cytoray import __version__

PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense bf16


def package_versions() -> dict[str, str]:
    """Versions on which numbers may depend."""
    return {"cytoray": __version__, **{name: metadata.version(name) for name in ("torch", "ray", "deepspeed")}}


def describe_worker(device: torch.device | str) -> dict[str, str]:
    """Host, processor and, where there is one, GPU of this process."""
    device = torch.device(device)
    about = {
        "host": socket.gethostname(),
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
    }
    if device.type == "cuda":
        about["gpu"] = torch.cuda.get_device_name(device)
    return about


def peak_flops(device: torch.device | str) -> float | None:
    """Operations a second of a device's dense bf16 products; None where that is not known."""
    device = torch.device(device)
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device).upper()
    return next((peak for kind, peak in PEAK_FLOPS.items() if kind in name), None)


def memory_bytes(device: torch.device | str) -> int:
    """The most memory this process has had: of its GPU, or resident."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _processor() -> str:
    """The processor's name, as the kernel tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
