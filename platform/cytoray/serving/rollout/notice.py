"""Have all followers of a model in this process look at its alias at once, as MLflow's webhook asks."""

from __future__ import annotations

from typing import Protocol
from weakref import WeakSet


class Listener(Protocol):
    """A follower of an alias."""

    uri: str

    def poke(self) -> None:
        """Look at once."""


#: The followers of this process: another replica, to which MLflow's message came, pokes them from outside.
LISTENERS: WeakSet[Listener] = WeakSet()


def poke_followers(name: str) -> int:
    """Poke the followers of the registered model ``name``; returns their number."""
    found = [listener for listener in list(LISTENERS) if listener.uri.startswith(f"models:/{name}@")]
    for listener in found:
        listener.poke()
    return len(found)
