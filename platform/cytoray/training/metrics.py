"""Progress of a training run for Prometheus, counted by rank 0."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from cytoray.metrics import Counter, Gauge

_RUN = ("run",)
STEP = Gauge("cytoray_train_step", "Steps done.", _RUN)
NUM_STEPS = Gauge("cytoray_train_num_steps", "Steps of the whole run.", _RUN)
STEPPED = Gauge("cytoray_train_last_step_timestamp_seconds", "Time of the newest step, in seconds since 1970.", _RUN)
CHECKPOINTED = Gauge(
    "cytoray_train_last_checkpoint_timestamp_seconds",
    "Time of the newest committed checkpoint, in seconds since 1970.",
    _RUN,
)
LOSS = Gauge("cytoray_train_loss", "Loss of the newest step.", _RUN)
SKIPPED = Counter("cytoray_train_skipped_steps", "Steps left out because their gradient was not finite.", _RUN)
_RATES = {
    "cells_per_s": Gauge("cytoray_train_cells_per_second", "Cells per second of all workers.", _RUN),
    "tokens_per_s": Gauge("cytoray_train_tokens_per_second", "Tokens per second of all workers.", _RUN),
    "data_wait_share": Gauge("cytoray_train_data_wait_ratio", "Share of the time spent waiting for data.", _RUN),
    "checkpoint_stall_share": Gauge(
        "cytoray_train_checkpoint_stall_ratio", "Share of the time spent waiting for checkpoints.", _RUN
    ),
}


def note_start(run: str, *, num_steps: int) -> None:
    """Note that workers have started; a start counts as a step, so that a run that never takes one is seen."""
    NUM_STEPS.set(num_steps, run=run)
    STEPPED.set(time.time(), run=run)


def note_steps(run: str, step: int, values: Sequence[Mapping[str, float]]) -> None:
    """Note the figures of the newest steps, the last of which is number ``step``; rates are their means."""
    STEP.set(step, run=run)
    STEPPED.set(time.time(), run=run)
    LOSS.set(values[-1]["loss"], run=run)
    SKIPPED.add(sum(row.get("skipped", 0.0) for row in values), run=run)
    for name, gauge in _RATES.items():
        found = [row[name] for row in values if name in row]
        if found:
            gauge.set(sum(found) / len(found), run=run)


def note_checkpoint(folder: str) -> None:
    """Note a commit in ``folder``, which is STORE/runs/RUN/checkpoints."""
    CHECKPOINTED.set(time.time(), run=folder.rstrip("/").split("/")[-2])
