#!/usr/bin/env python3
"""Let the work of a Ray pod end well before the pod does: `leave-cluster --grace-s 100`, as its preStop hook.

Kubernetes runs it when a pod is to end: a spot node is reclaimed, a node is drained, a group is scaled down.
Drivers of jobs in this pod (on the head) get SIGTERM: training finishes its step, commits a checkpoint and exits with
code 75, so that KubeRay's next attempt continues there. On a worker, Ray hears that the node will be preempted:
training commits a checkpoint within seconds and continues from it elsewhere, Serve starts replicas elsewhere, and Ray
places nothing here any more. The hook returns when all of that is over, or after --grace-s seconds.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
LOOK_S = 0.5
# Workers of Ray Train hear of it within 5 s (training/loop.py) and commit within a minute, see collective_timeout_s.
CHECKPOINT_S = 60.0


@dataclass(frozen=True)
class Process:
    """A process of this pod and the words of its command."""

    pid: int
    words: tuple[str, ...]

    def flag(self, name: str) -> str:
        """Return the value of ``--name=value`` among the words, or an empty text."""
        return next((word.partition("=")[2] for word in self.words if word.startswith(f"--{name}=")), "")


def list_processes() -> Iterator[Process]:
    """Yield the processes of this pod that can be read; zombies have no words and are left out."""
    for folder in PROC.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended, or belongs to somebody else
            continue
        if words[0]:
            yield Process(int(folder.name), tuple(words))


def find_drivers() -> list[Process]:
    """Return the drivers of jobs: ``python -m jobs.NAME``, not the shell that Ray starts them with."""
    return [
        process
        for process in list_processes()
        if "python" in Path(process.words[0]).name
        and any(before == "-m" and word.startswith("jobs.") for before, word in itertools.pairwise(process.words))
    ]


def find_raylets() -> list[Process]:
    """Return the Ray nodes of this pod: one, except in tests."""
    return [process for process in list_processes() if Path(process.words[0]).name == "raylet"]


def stop_drivers(drivers: list[Process], *, until: float) -> bool:
    """Send SIGTERM to drivers and wait until they have ended or ``until`` (time.monotonic()); True if all have."""
    for process in drivers:
        print(f"leave-cluster: SIGTERM to {' '.join(process.words)[:200]} (process {process.pid})", flush=True)
        os.kill(process.pid, signal.SIGTERM)
    while left := {process.pid for process in find_drivers()} & {process.pid for process in drivers}:
        if time.monotonic() >= until:
            print(f"leave-cluster: {len(left)} still running", flush=True)
            return False
        time.sleep(LOOK_S)
    return True


def announce(raylet: Process, *, grace_s: float) -> None:
    """Report to Ray that the node of ``raylet`` is about to be preempted, as its own autoscaler does."""
    import ray
    from ray.core.generated import autoscaler_pb2

    client = ray._raylet.GcsClient(address=raylet.flag("gcs-address"))
    accepted, reason = client.drain_node(
        raylet.flag("node_id"),
        autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
        "the pod is being deleted",
        int((time.time() + grace_s) * 1000),
    )
    print(f"leave-cluster: Ray {'places nothing here any more' if accepted else f'refused: {reason}'}", flush=True)


def wait_for_end(raylet: Process, *, until: float) -> None:
    """Wait until the raylet has ended, which it does as soon as nothing runs on it, or ``until``."""
    while time.monotonic() < until and raylet.pid in {process.pid for process in find_raylets()}:
        time.sleep(LOOK_S)


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grace-s", type=float, required=True, help="Seconds until the pod is killed, less a few")
    grace_s = parser.parse_args().grace_s
    until = time.monotonic() + grace_s
    if drivers := find_drivers():
        stop_drivers(drivers, until=until)
        return
    for raylet in find_raylets():
        if "--head" not in raylet.words:
            announce(raylet, grace_s=grace_s)
            wait_for_end(raylet, until=min(until, time.monotonic() + CHECKPOINT_S))


if __name__ == "__main__":
    main()
