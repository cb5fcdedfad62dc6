"""Show progress: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as RichProgress

LINE_EVERY_S = 5.0
RATE_OVER_S = 60.0  # window over which the rate is measured
_SETTLED_S = 5.0  # of work after which the start-up, the time before the first report, no longer counts
_SAMPLE_EVERY_S = 1.0


class Advance(Protocol):
    """Interface of a callback that reports progress, with an optional short note (a loss, a file name)."""

    def __call__(self, amount: float, note: str = "", *, already: bool = False) -> None:
        """Report that ``amount`` more is done; with ``already`` it was done before this stage began."""


def silent(amount: float, note: str = "", *, already: bool = False) -> None:
    """Report nothing: the default without a display."""


@contextmanager
def stage(title: str, *, total: float, unit: str, brief: bool = False) -> Iterator[Advance]:
    """Show one stage of ``total`` units on stderr while the block runs.

    ``brief`` shows nothing of a stage that takes less than ``LINE_EVERY_S``, except on a terminal.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        yield from _bar(console, title, total, unit)
    else:
        yield from _lines(title, total, unit, brief=brief)


def time_text(seconds: float) -> str:
    """Format a duration: ``34 s``, ``4 min 10 s``, ``12 min``, ``1 h 12 min``."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class _Pace:
    """The progress of a stage and its recent rate."""

    def __init__(self, total: float) -> None:
        self.total, self.done = total, 0.0
        self._now = time.monotonic()
        self._samples = deque([(self._now, 0.0)])  # (time, amount done); the first is the start
        self._first: float | None = None  # time of the first report; None once the start is dropped
        self._started = False

    def add(self, amount: float, *, already: bool) -> None:
        """Add ``amount``; work that was ``already`` done does not change the rate."""
        self._now = time.monotonic()
        self.done += amount
        if already:
            self._samples = deque((when, done + amount) for when, done in self._samples)
            if not self._started:
                self._samples = deque([(self._now, self.done)])
            return
        if not self._started:
            self._started, self._first = True, self._now
        if len(self._samples) == 1 or self._now - self._samples[-1][0] >= _SAMPLE_EVERY_S:
            self._samples.append((self._now, self.done))
        self._forget()

    def _forget(self) -> None:
        """Drop the start once enough work was done to measure the rate, and samples older than the window."""
        if self._first is not None and self._now - self._first >= _SETTLED_S:
            self._samples.popleft()
            self._first = None
        while len(self._samples) > 2 and self._now - self._samples[1][0] >= RATE_OVER_S:
            self._samples.popleft()

    @property
    def rate(self) -> float:
        """Units per second up to the newest report; 0 before the first one."""
        when, done = self._samples[0]
        return (self.done - done) / (self._now - when) if self._now > when else 0.0

    @property
    def left(self) -> str:
        """Remaining time as text; empty until a rate has been measured without the start-up."""
        rate = self.rate if self._started and self._first is None else 0.0
        return f"{time_text((self.total - self.done) / rate)} left" if rate > 0 and self.done < self.total else ""


def _bar(console: Console, title: str, total: float, unit: str) -> Iterator[Advance]:
    """A rich progress bar."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}  {task.fields[note]}"),
        TextColumn("{task.fields[left]}"),
    )
    pace = _Pace(total)
    with RichProgress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total or None, unit=unit, note="", left="")

        def advance(amount: float, note: str = "", *, already: bool = False) -> None:
            """Count work done and update the display."""
            pace.add(amount, already=already)
            bar.update(task, completed=pace.done, note=note, left=pace.left)

        yield advance


def _lines(title: str, total: float, unit: str, *, brief: bool) -> Iterator[Advance]:
    """One line every ``LINE_EVERY_S`` seconds, and one at the end; if ``brief``, only after another line."""
    pace, last, shown = _Pace(total), time.monotonic(), False

    def show(note: str) -> None:
        """Print one line."""
        left = f", {pace.left}" if pace.left else ""
        of = f"/{total:.0f}" if total else ""
        rate = f"{pace.rate:.1f}" if pace.rate >= 1 or not pace.rate else f"{pace.rate:.2g}"
        print(f"  {title}: {pace.done:.0f}{of} {unit}, {rate}/s{left} {note}".rstrip(), file=sys.stderr, flush=True)  # noqa: T201

    def advance(amount: float, note: str = "", *, already: bool = False) -> None:
        """Count work done and update the display."""
        nonlocal last, shown
        pace.add(amount, already=already)
        if time.monotonic() - last >= LINE_EVERY_S:
            last, shown = time.monotonic(), True
            show(note)

    yield advance
    if shown or not brief:
        show("done")
