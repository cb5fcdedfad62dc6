"""Checkpoints written in the background: committed with the parts of all ranks or not at all, and never mixed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from cytoray import failpoints
from cytoray.errors import DigestError, NotFoundError, StorageError, TrainingError
from cytoray.failpoints import FailpointError
from cytoray.training.checkpoint import (
    CheckpointWriter,
    TrainerState,
    best_checkpoint,
    checkpoints_uri,
    latest_checkpoint,
    require_checkpoint,
    save_checkpoint,
    sweep,
)
from cytoray.training.slices import Slice, Snapshot


def _state(step: int, metric: float | None = None) -> TrainerState:
    return TrainerState(step=step, manifest_digest="m", config_digest="c", history=(), metric=metric)


def _alone(value: float) -> Snapshot:
    """The whole of a run with one rank."""
    return Snapshot({"w": torch.full((3,), value)}, {"exp_avg.w": Slice.whole(torch.full((3,), value))})


def _part(rank: int, value: float, world_size: int = 2) -> Snapshot:
    """One rank's part: its share of ten elements that count up from ``value``."""
    weights = {} if rank else {"w": torch.full((2, 5), value)}
    moments = Slice.whole(torch.arange(10.0).reshape(2, 5) + value)
    return Snapshot(weights, {"exp_avg.w": moments.share(rank, world_size)}, None, rank, world_size, 1)


def _writer(tmp_path: Path, attempt: str = "a", *, keep: int = 2, timeout_s: float = 60) -> CheckpointWriter:
    return CheckpointWriter(checkpoints_uri(str(tmp_path), "run"), keep=keep, attempt=attempt, timeout_s=timeout_s)


def _folders(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "runs/run/checkpoints").iterdir())


def _save(tmp_path: Path, step: int, value: float, attempt: str = "a", *, metric: float | None = None) -> None:
    """A checkpoint of two ranks."""
    ranks = [_writer(tmp_path, attempt) for _ in range(2)]
    for rank in (0, 1):
        ranks[rank].submit(_part(rank, value), _state(step, metric))
    for writer in ranks:
        writer.wait()


def test_the_newest_are_kept_and_found(tmp_path: Path) -> None:
    writer = _writer(tmp_path)
    for step in (1, 2, 3):
        writer.submit(_alone(float(step)), _state(step))
    writer.wait()
    found = latest_checkpoint(str(tmp_path), "run")
    assert found is not None
    assert found.state.step == 3
    assert found.load_weights()["w"].tolist() == [3.0] * 3
    assert found.load_moments()["exp_avg.w"].tolist() == [3.0] * 3
    assert found.load_ema() is None
    assert _folders(tmp_path) == ["step-000000002", "step-000000003"]


def test_what_went_wrong_is_raised_before_the_next_and_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("where a folder should be")
    writer = CheckpointWriter(str(tmp_path / "file" / "checkpoints"), keep=2, attempt="a", timeout_s=60)
    writer.submit(_alone(0.0), _state(1))
    with pytest.raises(StorageError):
        writer.submit(_alone(0.0), _state(2))
    writer.submit(_alone(0.0), _state(2))
    with pytest.raises(StorageError):
        writer.wait()
    writer.wait()  # raised once


def test_parts_of_two_ranks_are_one_checkpoint(tmp_path: Path) -> None:
    _save(tmp_path, 5, 1.0)
    found = require_checkpoint(str(tmp_path), "run")
    assert (found.layout.world_size, found.layout.zero_stage) == (2, 1)
    assert torch.equal(found.load_moments()["exp_avg.w"], torch.arange(10.0).reshape(2, 5) + 1)
    assert sorted(path.name for path in Path(found.uri).iterdir()) == ["COMMIT.json", *sorted(found.files)]
    own = next(found.read_slices(rank=1, world_size=2))["exp_avg.w"]
    assert (own.start, own.values.tolist()) == (5, [6.0, 7.0, 8.0, 9.0, 10.0])


def test_nothing_is_committed_without_the_parts_of_all_ranks_of_this_attempt(tmp_path: Path) -> None:
    dead = _writer(tmp_path, "dead")
    dead.submit(_part(1, 9.0), _state(5))  # its first rank died
    dead.wait()
    writer = _writer(tmp_path, "living", timeout_s=0.2)
    writer.submit(_part(0, 1.0), _state(5))
    with pytest.raises(TrainingError, match=r"ranks \[1\] were missing after") as caught:
        writer.wait()
    assert caught.value.details["ranks"] == [1]
    assert latest_checkpoint(str(tmp_path), "run") is None


@pytest.mark.parametrize("world_size", [2, 3])
def test_what_a_dead_attempt_left_is_not_mixed_in(tmp_path: Path, world_size: int) -> None:
    for rank in range(1, world_size):
        dead = _writer(tmp_path, "dead")
        dead.submit(_part(rank, 9.0, world_size), _state(5))
        dead.wait()
    _save(tmp_path, 5, 1.0, "living")
    found = require_checkpoint(str(tmp_path), "run")
    assert torch.equal(found.load_moments()["exp_avg.w"], torch.arange(10.0).reshape(2, 5) + 1)
    assert sorted(path.name for path in Path(found.uri).iterdir()) == ["COMMIT.json", *sorted(found.files)]


def test_a_committed_step_stays_as_it_is_and_a_damaged_one_is_replaced(tmp_path: Path) -> None:
    _save(tmp_path, 5, 1.0, "first")
    _save(tmp_path, 5, 2.0, "second")
    found = require_checkpoint(str(tmp_path), "run")
    assert found.load_weights()["w"].unique().tolist() == [1.0]
    part = Path(found.uri) / "optimizer-00001-of-00002.safetensors"
    part.write_bytes(part.read_bytes()[:-1] + b"\xff")
    _save(tmp_path, 5, 3.0, "third")
    found = require_checkpoint(str(tmp_path), "run")
    assert found.load_weights()["w"].unique().tolist() == [3.0]
    assert torch.equal(found.load_moments()["exp_avg.w"], torch.arange(10.0).reshape(2, 5) + 3)


def test_a_damaged_part_leads_to_the_checkpoint_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _save(tmp_path, 4, 1.0)
    _save(tmp_path, 5, 2.0)
    newest = require_checkpoint(str(tmp_path), "run")
    part = Path(newest.uri) / "optimizer-00000-of-00002.safetensors"
    part.write_bytes(part.read_bytes()[:-1] + b"\xff")
    assert require_checkpoint(str(tmp_path), "run").state.step == 4
    assert "step-000000005 is damaged" in caplog.text
    unverified = latest_checkpoint(str(tmp_path), "run", verify=False)
    assert unverified is not None
    assert unverified.state.step == 5
    with pytest.raises(DigestError):
        unverified.load_moments()
    part.unlink()
    with pytest.raises(NotFoundError):
        newest.load_moments()
    (Path(newest.uri) / "COMMIT.json").write_text("{")
    assert require_checkpoint(str(tmp_path), "run").state.step == 4


def test_missing_slices_are_reported(tmp_path: Path) -> None:
    _save(tmp_path, 5, 1.0)
    found = require_checkpoint(str(tmp_path), "run")
    files = {name: digest for name, digest in found.files.items() if "00001-of" not in name}
    with pytest.raises(TrainingError, match=r"lacks part of the optimiser state of 1 tensors, such as exp_avg\.w"):
        found.model_copy(update={"files": files}).load_moments()


def test_the_best_is_kept_beside_the_newest(tmp_path: Path) -> None:
    writer = _writer(tmp_path)
    for step, metric in enumerate([5.0, 2.0, 3.0, None, 4.0], start=1):
        writer.submit(_alone(float(step)), _state(step, metric))
    writer.wait()
    assert _folders(tmp_path) == ["step-000000002", "step-000000004", "step-000000005"]
    best = best_checkpoint(str(tmp_path), "run")
    assert best is not None
    assert best.state.step == 2


def test_a_sweep_deletes_what_was_left_uncommitted_before_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 4):
        dead = _writer(tmp_path, "dead")
        dead.submit(_part(1, 1.0), _state(step))
        dead.wait()
    _save(tmp_path, 3, 1.0)
    folder = tmp_path / "runs/run/checkpoints"
    (folder / "note.txt").write_text("somebody's")
    shutil.copytree(folder / "step-000000003", folder / "step-000000005")
    sweep(str(folder), keep=1)
    assert _folders(tmp_path) == ["note.txt", "step-000000005"]


@pytest.mark.parametrize("point", ["before_part", "after_part", "before_commit", "after_commit"])
def test_a_death_at_any_point_leaves_a_checkpoint_whole_or_not_there(
    tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, f"checkpoint.{point}=raise")
    writer = _writer(tmp_path, "dead")
    writer.submit(_alone(1.0), _state(5, 0.5))
    with pytest.raises(FailpointError):
        writer.wait()
    monkeypatch.delenv(failpoints.VARIABLE)
    found = latest_checkpoint(str(tmp_path), "run")
    assert (found is not None) == (point == "after_commit")
    folder = checkpoints_uri(str(tmp_path), "run")
    again = save_checkpoint(folder, {"w": torch.full((3,), 2.0)}, {"exp_avg.w": torch.zeros(3)}, _state(5, 0.5))
    assert again.load_weights()["w"].tolist() == [1.0 if point == "after_commit" else 2.0] * 3
    assert again == require_checkpoint(str(tmp_path), "run")
