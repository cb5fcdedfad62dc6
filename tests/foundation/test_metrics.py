"""Metrics of jobs: nothing happens without Ray, and each room counts what it has done. Ray's side: tests/infra."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from typing import Any

import pytest

from cytoray import metrics
from cytoray.training import metrics as training


class Recorded:
    """In place of Ray's metric: keeps what it was given."""

    def __init__(self) -> None:
        self.values: list[tuple[float, dict[str, str]]] = []

    def inc(self, value: float, tags: dict[str, str]) -> None:
        self.values.append((value, tags))

    set = inc


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    found: dict[str, Any] = defaultdict(Recorded)
    monkeypatch.setattr(metrics, "_session", lambda: "job")
    monkeypatch.setattr(metrics, "_made", lambda metric, session: found[metric.exported])
    return found


def test_without_ray_nothing_is_imported():
    code = (
        "import sys; from cytoray.metrics import Counter, Gauge; Counter('a', '').add(3); Gauge('b', '').set(1); "
        "assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_steps_are_shown_by_their_newest_and_rates_by_their_mean(recorded: dict[str, Any]):
    rows = [
        {"loss": 3.0, "cells_per_s": 100.0, "data_wait_share": 0.5},
        {"loss": 2.0, "cells_per_s": 300.0, "data_wait_share": 0.1, "skipped": 1.0},
    ]
    training.note_steps("r", 7, rows)
    values = {name: entry.values for name, entry in recorded.items()}
    assert values["ray_cytoray_train_step"] == [(7.0, {"run": "r"})]
    assert values["ray_cytoray_train_loss"] == [(2.0, {"run": "r"})]
    assert values["ray_cytoray_train_cells_per_second"] == [(200.0, {"run": "r"})]
    assert values["ray_cytoray_train_data_wait_ratio"] == [(0.3, {"run": "r"})]
    assert values["ray_cytoray_train_skipped_steps_total"] == [(1.0, {"run": "r"})]
    assert "ray_cytoray_train_tokens_per_second" not in values


def test_nothing_is_counted_for_zero(recorded: dict[str, Any]):
    training.note_steps("r", 1, [{"loss": 1.0}])
    assert "ray_cytoray_train_skipped_steps_total" not in recorded


def test_a_checkpoint_belongs_to_the_run_of_its_folder(recorded: dict[str, Any]):
    training.note_checkpoint("s3://bucket/store/runs/human/checkpoints")
    ((_, tags),) = recorded["ray_cytoray_train_last_checkpoint_timestamp_seconds"].values
    assert tags == {"run": "human"}
