"""Free memory of this machine or container and of a device, to refuse a version that does not fit beside another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cytoray.errors import ServingError

if TYPE_CHECKING:
    import torch

LOAD_FACTOR = 2.0  # times the size of its files that a bundle takes in main memory while it is read
MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def check_memory(num_bytes: int, *, margin_bytes: int, device: torch.device) -> None:
    """Raise ServingError unless a bundle of ``num_bytes`` fits into main memory, and into that of its device."""
    needed = int(LOAD_FACTOR * num_bytes) + margin_bytes
    free = free_bytes()
    if free is not None and free < needed:
        raise _too_little(needed, free, "the memory")
    if device.type == "cuda":
        import torch

        free_there, _ = torch.cuda.mem_get_info(device)
        if free_there < num_bytes + margin_bytes:
            raise _too_little(num_bytes + margin_bytes, free_there, f"the memory of {device}")


def free_bytes(*, meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int | None:
    """Return how much memory this process could still take, in bytes; None if the system does not say."""
    found = []
    try:
        lines = [line.split() for line in meminfo.read_text().splitlines()]
        found += [int(line[1]) * 1024 for line in lines if line[0] == "MemAvailable:"]
        limit = (cgroup / "memory.max").read_text().strip()
        if limit != "max":
            used = int((cgroup / "memory.current").read_text())
            found.append(max(0, int(limit) - used + _reclaimable(cgroup / "memory.stat")))
    except (OSError, ValueError, IndexError):  # not Linux, or no limit
        pass
    return min(found, default=None)


def _reclaimable(statistics: Path) -> int:
    """Return the bytes of cached files in a container, which it gives up first."""
    rows = dict(line.split() for line in statistics.read_text().splitlines())
    return int(rows.get("inactive_file", 0))


def _too_little(needed: int, free: int, what: str) -> ServingError:
    return ServingError(
        f"Loading the version beside the one that serves takes {needed / 2**20:,.0f} MiB, but {what} has "
        f"{free / 2**20:,.0f} MiB left.",
        remedy="Give the replica more memory, or restart the service to serve the version.",
        refused="memory",
        needed=needed,
        free=free,
    )
