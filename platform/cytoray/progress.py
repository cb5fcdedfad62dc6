"""Progress a person can see: a rich bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

LINE_EVERY_S = 5.0


class Advance(Protocol):
    """Reports ``amount`` more done, with an optional short note (a loss, a file name)."""

    def __call__(self, amount: float, note: str = "") -> None:
        """Move the stage on."""


def silent(amount: float, note: str = "") -> None:
    """Report nothing: the default where nobody watches."""


@contextmanager
def stage(title: str, *, total: float, unit: str) -> Iterator[Advance]:
    """Show one stage of ``total`` units on stderr while the block runs."""
    console = Console(stderr=True)
    if console.is_terminal:
        yield from _bar(console, title, total, unit)
    else:
        yield from _lines(title, total, unit)


def _bar(console: Console, title: str, total: float, unit: str) -> Iterator[Advance]:
    """A rich progress bar."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}  {task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total or None, unit=unit, note="")

        def advance(amount: float, note: str = "") -> None:
            bar.update(task, advance=amount, note=note)

        yield advance


def _lines(title: str, total: float, unit: str) -> Iterator[Advance]:
    """One line every ``LINE_EVERY_S`` seconds, and one at the end."""
    started = last = time.monotonic()
    done = 0.0

    def show(note: str) -> None:
        elapsed = time.monotonic() - started
        rate = done / elapsed if elapsed > 0 else 0.0
        left = f", {(total - done) / rate:.0f} s left" if 0 < done < total and rate > 0 else ""
        of = f"/{total:.0f}" if total else ""
        print(f"  {title}: {done:.0f}{of} {unit}, {rate:.1f}/s{left} {note}".rstrip(), file=sys.stderr, flush=True)  # noqa: T201

    def advance(amount: float, note: str = "") -> None:
        nonlocal done, last
        done += amount
        if time.monotonic() - last >= LINE_EVERY_S:
            last = time.monotonic()
            show(note)

    yield advance
    show("done")
