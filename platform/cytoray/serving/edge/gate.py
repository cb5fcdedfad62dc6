"""The gate of a process that receives requests: closed, it refuses new ones while those in flight are answered."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Gate:
    """The number of requests in flight, and whether new ones are refused."""

    is_closed: bool = False
    in_flight: int = 0
    is_guarded: bool = False  # whether an edge asks it


#: The gate of this process: the process that stops the service closes it from outside.
GATE = Gate()


def close_gate(_actor: object = None) -> int | None:
    """Refuse new requests in this process; returns the number in flight, or None if no edge guards it.

    Ray calls this in the process of an actor.
    """
    GATE.is_closed = True
    return GATE.in_flight if GATE.is_guarded else None
