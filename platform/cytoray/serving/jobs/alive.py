"""Find out whether a process on this machine is still the one that was started."""

from __future__ import annotations

import os
import socket


def this_host() -> str:
    """Return the name of this machine, or of its container."""
    return socket.gethostname()


def describe_process(pid: int) -> str | None:
    """Return a text that is the same as long as this process runs: its id and start; None if it does not run."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else f"{pid}:{fields[19]}"


def is_alive(process: str) -> bool:
    """Return whether a process of this machine, as described by ``describe_process``, still runs."""
    return describe_process(int(process.partition(":")[0])) == process


def this_process() -> str:
    """Describe this process."""
    return describe_process(os.getpid()) or f"{os.getpid()}:"
