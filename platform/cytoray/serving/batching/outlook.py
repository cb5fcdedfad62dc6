"""Expect the work of requests that are still being read, so that most of those that are refused are not read at all."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

KEPT = 0.98  # weight of the mean length that was known before a request


@dataclass(frozen=True, eq=False)
class Outlook:
    """The expected work of a request that is not read yet; ``tokens`` and ``squares`` are 0 if its cells are not."""

    kind: Hashable
    key: str = ""
    bulk: bool = False
    deadline: float = float("inf")
    tokens: int = 0
    squares: int = 0


class Lengths:
    """The mean length of the cells of recent requests, by the kind of their work."""

    def __init__(self) -> None:
        self._means: dict[Hashable, tuple[float, float]] = {}

    def learn(self, kind: Hashable, *, cells: int, tokens: int, squares: int) -> None:
        """Learn from a request that has been read."""
        if not cells:
            return
        seen = (tokens / cells, squares / cells)
        before = self._means.get(kind, seen)
        self._means[kind] = (
            KEPT * before[0] + (1 - KEPT) * seen[0],
            KEPT * before[1] + (1 - KEPT) * seen[1],
        )

    def expect(self, outlook: Outlook, *, cells: int) -> Outlook:
        """Return the outlook of a request with a number of cells."""
        per_cell = self._means.get(outlook.kind, (0.0, 0.0))
        return replace(outlook, tokens=round(cells * per_cell[0]), squares=round(cells * per_cell[1]))
