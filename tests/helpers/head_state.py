"""What a cluster remembers: ``python head_state.py make|read ADDRESS``.

``make`` starts a detached actor on a node with CPUs, a counter that has counted to three. ``read`` prints the process
id and the count of that actor, or ``gone``.
"""

from __future__ import annotations

import sys

import ray
from ray.exceptions import RayActorError


@ray.remote(num_cpus=1, name="counter", lifetime="detached", max_restarts=0)
class Counter:
    """A process that knows how often it was called."""

    def __init__(self) -> None:
        self.count = 0

    def add(self) -> int:
        """Count one more."""
        self.count += 1
        return self.count

    def read(self) -> tuple[int, int]:
        """The process id, and the count."""
        import os

        return os.getpid(), self.count


def main(verb: str, address: str) -> None:
    """Connect, make or read, and print one line."""
    ray.init(address=address, namespace="heads", log_to_driver=False, logging_level="ERROR")
    if verb == "make":
        counter = Counter.remote()
        ray.get([counter.add.remote() for _ in range(3)])
    try:
        print("FOUND", *ray.get(ray.get_actor("counter").read.remote()))
    except (ValueError, RayActorError):
        print("FOUND gone")


if __name__ == "__main__":
    main(*sys.argv[1:])
