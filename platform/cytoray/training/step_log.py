"""Journal every step and post the newest to the board; figures of several steps are fetched from the device at once."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

from cytoray.tracking import RunLog
from cytoray.training import metrics
from cytoray.training.config import RunConfig
from cytoray.training.steps import StepFigures, StepResult, StepRunner

HISTORY_POINTS = 200
FRESH_S = 1.0  # steps that take longer are written one by one, for whoever watches


@dataclass(frozen=True)
class _Taken:
    """A step whose losses have not been fetched yet."""

    number: int  # steps done with it
    done: StepResult
    rates: dict[str, float]  # what the host has timed


class StepLog:
    """Takes in the steps of one rank, and writes them together; rank 0 has a log, the others only help to fetch."""

    def __init__(self, runner: StepRunner, log: RunLog | None, board: Any, config: RunConfig) -> None:
        self._runner, self._log, self._board, self._train = runner, log, board, config.train
        self._run = config.run
        self._pending: list[_Taken] = []
        self._written = time.monotonic()
        self._step_s = 0.0
        self.losses: dict[str, float] = {}  # of the newest step written

    def add(self, number: int, done: StepResult, rates: dict[str, float]) -> None:
        """Keep a step until the next ``write``."""
        self._pending.append(_Taken(number, done, rates))
        self._step_s = rates.get("step_s", 0.0)

    def is_due(self) -> bool:
        """Whether ``train.log_every`` steps are waiting; the same on all ranks."""
        return len(self._pending) >= self._train.log_every

    def is_stale(self) -> bool:
        """Whether too long will have passed, by rank 0's clock, two steps from now."""
        return self._log is not None and time.monotonic() - self._written + 2 * self._step_s >= FRESH_S

    def write(self) -> list[dict[str, float]]:
        """Fetch, journal and post the steps that wait; the points of the run's history among them. Collective."""
        pending, self._pending, self._written = self._pending, [], time.monotonic()
        figures = self._runner.fetch([taken.done for taken in pending])
        if not figures:
            return []
        self.losses = figures[-1].losses
        if self._log is None:
            return []
        points, rows = [], [_values(taken, own) for taken, own in zip(pending, figures, strict=True)]
        for taken, values in zip(pending, rows, strict=True):
            self._log.log_metrics(values, step=taken.number)
            if self._is_in_history(taken.number):
                kept = {name: value for name, value in values.items() if math.isfinite(value)}
                points.append({"step": float(taken.number), **kept})
        metrics.note_steps(self._run, pending[-1].number, rows)
        self._board.post.remote(pending[-1].number, self.losses["loss"])
        return points

    def _is_in_history(self, number: int) -> bool:
        """About 200 steps of a run, the last among them, are kept in its checkpoints."""
        every = max(1, self._train.num_steps // HISTORY_POINTS)
        return number % every == 0 or number == self._train.num_steps


def _values(taken: _Taken, figures: StepFigures) -> dict[str, float]:
    """The figures of a step in the journal."""
    norm = {} if figures.gradient_norm is None else {"gradient_norm": figures.gradient_norm}
    skipped = {} if taken.done.applied else {"skipped": 1.0}
    return {**figures.losses, "learning_rate": taken.done.learning_rate, **norm, **taken.rates, **skipped}
