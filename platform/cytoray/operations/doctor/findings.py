"""What a check has found: good, doubtful or bad, what was seen, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

Outcome = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    check: str  # dotted name, such as store.clock
    outcome: Outcome
    seen: str
    remedy: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return {"check": self.check, "outcome": self.outcome, "seen": self.seen, "remedy": self.remedy or None}


@dataclass(frozen=True)
class Check:
    """A check: ``look`` yields findings as it makes them, so that those before a hang are kept."""

    name: str
    look: Callable[[], Iterator[Finding]]
    late: Outcome = "fail"  # outcome if it does not end in time
    remedy: str = ""  # if it does not end in time


def ok(check: str, seen: str) -> Finding:
    """Return a good finding."""
    return Finding(check, "ok", seen)


def warn(check: str, seen: str, *, remedy: str) -> Finding:
    """Return a doubtful finding."""
    return Finding(check, "warn", seen, remedy)


def fail(check: str, seen: str, *, remedy: str) -> Finding:
    """Return a bad finding."""
    return Finding(check, "fail", seen, remedy)
