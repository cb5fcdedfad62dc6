"""A run has one driver at a time; one that has died, here or elsewhere, is succeeded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cytoray.errors import TrainingError
from cytoray.training import lease
from cytoray.training.checkpoint import CheckpointWriter, TrainerState, checkpoints_uri, latest_checkpoint
from cytoray.training.slices import Slice, Snapshot


def test_a_lease_is_held_once_and_given_back(tmp_path: Path) -> None:
    with (
        lease.held(str(tmp_path), "run") as first,
        pytest.raises(TrainingError, match="is being trained by process"),
        lease.held(str(tmp_path), "run"),
    ):
        pass
    with lease.held(str(tmp_path), "run") as second:
        assert second.lease.number == first.lease.number + 1
    assert sorted(path.name for path in (tmp_path / "leases").glob("*.json")) == ["000001.json", "000002.json"]


def test_the_lease_of_a_process_that_was_killed_is_taken_over_at_once(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\nfrom cytoray.training import lease\n"
        "with lease.held(sys.argv[1], 'run'):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    died = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert died.returncode == -9
    with lease.held(str(tmp_path), "run"):
        assert (tmp_path / "leases" / "000002.json").exists()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that beat, and expire, within a second."""
    monkeypatch.setattr(lease, "EXPIRES_S", 1.0)
    monkeypatch.setattr(lease, "BEAT_S", 0.1)


def _pretend_elsewhere(folder: Path, **where: str | int) -> None:
    """Let the newest lease be that of a process of another place, such as a pod with the same host and boot id."""
    newest = max(folder.glob("*.json"))
    newest.write_text(json.dumps(json.loads(newest.read_text()) | where))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("where", [{"host": "elsewhere"}, {"boot": "b"}, {"pid_namespace": "pid:[1]"}])
def test_a_lease_that_beats_is_refused_although_its_process_is_not_seen_here(
    tmp_path: Path, where: dict[str, str]
) -> None:
    with lease.held(str(tmp_path), "run") as holder:
        # Started at another time: a process that could be seen here would be taken for dead.
        _pretend_elsewhere(tmp_path / "leases", started="1", **where)
        with pytest.raises(TrainingError, match="is being trained"), lease.held(str(tmp_path), "run"):
            pass
        holder.lease.check()


@pytest.mark.usefixtures("quick")
def test_a_silent_lease_of_another_place_is_taken_over(tmp_path: Path) -> None:
    folder = tmp_path / "leases"
    folder.mkdir()
    elsewhere = {"attempt": "a", "host": "elsewhere", "boot": "b", "pid": 1, "started": "1"}
    (folder / "000001.json").write_text(json.dumps(elsewhere))
    with lease.held(str(tmp_path), "run") as holder:
        assert holder.lease.number == 2


@pytest.mark.usefixtures("quick")
def test_a_holder_notices_at_its_next_beat_that_it_was_succeeded(tmp_path: Path) -> None:
    with lease.held(str(tmp_path), "run") as old:
        (tmp_path / "leases" / "000002.json").write_text(json.dumps({"pid": 7, "host": "elsewhere"}))
        assert old.lost.wait(30)
        with pytest.raises(lease.LeaseLostError, match="taken over by process 7 on elsewhere") as lost:
            old.lease.check()
        assert "another run name" in lost.value.remedy


def test_a_holder_that_lost_its_lease_commits_nothing(tmp_path: Path) -> None:
    folder = checkpoints_uri(str(tmp_path), "run")
    snapshot = Snapshot({"w": torch.zeros(4)}, {"exp_avg.w": Slice.whole(torch.zeros(4))})
    state = TrainerState(step=1, manifest_digest="m", config_digest="c", history=())
    with lease.held(str(tmp_path / "runs" / "run"), "run") as old:
        writer = CheckpointWriter(folder, keep=2, attempt="a", timeout_s=5, lease=old.lease)
        newer = tmp_path / "runs" / "run" / "leases" / "000002.json"
        newer.write_text(json.dumps({"pid": 7, "host": "elsewhere"}))
        writer.submit(snapshot, state)
        with pytest.raises(lease.LeaseLostError):
            writer.wait()
        assert latest_checkpoint(str(tmp_path), "run") is None
        newer.unlink()
        writer.submit(snapshot, state)
        writer.wait()
        assert latest_checkpoint(str(tmp_path), "run") is not None
