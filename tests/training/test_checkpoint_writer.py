"""Checkpoints written in the background: committed in order, the newest kept, and a failure is never swallowed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cytoray.errors import StorageError
from cytoray.training.checkpoint import CheckpointWriter, Snapshot, TrainerState, checkpoints_uri, latest_checkpoint


def _state(step: int) -> TrainerState:
    return TrainerState(step=step, manifest_digest="m", config_digest="c", history=())


def test_the_newest_are_kept_and_found(tmp_path: Path) -> None:
    writer = CheckpointWriter(checkpoints_uri(str(tmp_path), "run"), keep=2)
    for step in (1, 2, 3):
        writer.submit(Snapshot({"w": torch.full((3,), float(step))}, {}), _state(step))
    writer.wait()
    found = latest_checkpoint(str(tmp_path), "run")
    assert found is not None
    assert found.state.step == 3
    assert found.load_weights()["w"].tolist() == [3.0] * 3
    assert sorted(path.name for path in (tmp_path / "runs/run/checkpoints").iterdir()) == [
        "step-000000002",
        "step-000000003",
    ]


def test_what_went_wrong_is_raised_before_the_next_and_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("where a folder should be")
    writer = CheckpointWriter(str(tmp_path / "file" / "checkpoints"), keep=2)
    writer.submit(Snapshot({"w": torch.zeros(1)}, {}), _state(1))
    with pytest.raises(StorageError):
        writer.submit(Snapshot({"w": torch.zeros(1)}, {}), _state(2))
    writer.submit(Snapshot({"w": torch.zeros(1)}, {}), _state(2))
    with pytest.raises(StorageError):
        writer.wait()
