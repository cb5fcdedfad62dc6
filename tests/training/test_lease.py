"""A run has one driver at a time; one that has died, here or elsewhere, is succeeded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cytoray.errors import TrainingError
from cytoray.training import lease


def test_a_lease_is_held_once_and_given_back(tmp_path: Path) -> None:
    with (
        lease.held(str(tmp_path), "run") as first,
        pytest.raises(TrainingError, match="is being trained by process"),
        lease.held(str(tmp_path), "run"),
    ):
        pass
    with lease.held(str(tmp_path), "run") as second:
        assert first != second
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


@pytest.mark.parametrize("beats", [False, True])
def test_a_lease_of_another_machine_counts_while_it_beats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, beats: bool
) -> None:
    monkeypatch.setattr(lease, "EXPIRES_S", 0.4)
    monkeypatch.setattr(lease, "BEAT_S", 0.1)
    folder = tmp_path / "leases"
    folder.mkdir()
    elsewhere = {"attempt": "a", "host": "elsewhere", "boot": "b", "pid": 1, "started": "1"}
    (folder / "000001.json").write_text(json.dumps(elsewhere))
    if not beats:
        with lease.held(str(tmp_path), "run"):
            assert (folder / "000002.json").exists()
        return
    import threading

    over = threading.Event()
    beating = threading.Thread(target=lease._beat, args=(str(folder / "000001.beat"), over))
    beating.start()
    try:
        with pytest.raises(TrainingError, match="on elsewhere"), lease.held(str(tmp_path), "run"):
            pass
    finally:
        over.set()
        beating.join()
