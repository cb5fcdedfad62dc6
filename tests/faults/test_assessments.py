"""Kill an assessment between its pieces: run again it continues, and reports as if it had never been killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anndata
import assess_driver
import pytest

import cytoray
from cytoray import failpoints
from cytoray.failpoints import FailpointError

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
POINT = "assess.after_piece"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small fits of the driver, undone at the end; failpoints count their hits."""
    from cytoray.evaluation import annotator
    from cytoray.tasks.annotation import assessment as annotation
    from cytoray.tasks.integration import judging
    from cytoray.tasks.multiomic import assessment, members

    changed = {(annotator, "NUM_FOLDS"), (annotation, "NUM_FOLDS"), (judging, "NUM_DRAWS"), (assessment, "NUM_FOLDS"),
               (members, "NUM_NETWORKS"), (members, "LAYERS")}  # fmt: skip
    for module, name in changed:
        monkeypatch.setattr(module, name, getattr(module, name))
    assess_driver.make_small()
    monkeypatch.setenv(failpoints.VARIABLE, "no.such_point=raise")


def assess(task: str, settings: dict[str, Any], out: Path) -> tuple[dict[str, Any], int]:
    """Assess a task; return the report without its seconds, and the number of pieces that were computed."""
    failpoints._hits.clear()
    found = cytoray.assess(task, **settings, out=str(out))
    assert json.loads((out / "report.json").read_text()) == found
    assert not (out / ".pieces").exists(), "pieces are removed once the report is there"
    return {**found, "seconds": None}, failpoints._hits["assess.before_piece"]


def run_until_killed(task: str, settings: dict[str, Any], out: Path, nth: int) -> None:
    """Assess a task in a process that dies after its ``nth`` piece."""
    command = [sys.executable, assess_driver.__file__, task, json.dumps({**settings, "out": str(out)})]
    environment = {**os.environ, failpoints.VARIABLE: f"{POINT}=kill@{nth}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    assert [path.name for path in out.iterdir()] == [".pieces"], "nothing of a report is visible"
    assert len(list((out / ".pieces").iterdir())) == nth


@pytest.mark.parametrize("task", assess_driver.TASKS)
def test_killed_and_run_again(task: str, tmp_path: Path, outcome: Any) -> None:
    settings = assess_driver.write_settings(task, tmp_path)
    whole, num_pieces = assess(task, settings, tmp_path / "whole")
    assert num_pieces > 1
    nth = num_pieces // 2
    run_until_killed(task, settings, tmp_path / "killed", nth)
    continued, num_computed = assess(task, settings, tmp_path / "killed")
    assert num_computed == num_pieces - nth, "finished pieces are not computed again"
    assert continued == whole
    outcome(f"F11 kill -9 of an assessment of {task} after piece {nth}", 1, "rerun: the report of an unbroken run")


@pytest.mark.parametrize("change", ["a count", "the seed", "a byte of a piece"])
def test_no_piece_is_used_for_what_it_is_not(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, outcome: Any
) -> None:
    settings = assess_driver.write_settings("multiomic", tmp_path)
    with monkeypatch.context() as patch:
        patch.setenv(failpoints.VARIABLE, f"{POINT}=raise@2")
        with pytest.raises(FailpointError):
            assess("multiomic", settings, tmp_path / "out")
    pieces = list((tmp_path / "out" / ".pieces").iterdir())
    expected = 4
    if change == "a count":
        adata = anndata.read_h5ad(settings["data"])
        adata.X[0, 0] += 1
        adata.write_h5ad(settings["data"])
    elif change == "the seed":
        settings["seed"] = 1
    else:
        data = bytearray(pieces[0].read_bytes())
        data[len(data) // 2] ^= 1
        pieces[0].write_bytes(data)
        expected = 3
    again, num_computed = assess("multiomic", settings, tmp_path / "out")
    assert num_computed == expected
    assert ("is damaged and is computed again" in caplog.text) == (expected == 3)
    assert again == assess("multiomic", settings, tmp_path / "clean")[0]
    outcome(f"F11 pieces of a killed assessment, {change} changed", len(pieces), f"{expected} of 4 pieces computed")


@pytest.mark.parametrize("point", ["assess.before_file", "assess.after_report"])
def test_stopped_while_the_report_is_written(
    point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: Any
) -> None:
    settings = assess_driver.write_settings("multiomic", tmp_path)
    assess("multiomic", {**settings, "seed": 1}, tmp_path / "out")
    nth = 2 if point == "assess.before_file" else 1
    with monkeypatch.context() as patch:
        patch.setenv(failpoints.VARIABLE, f"{point}=raise@{nth}")
        with pytest.raises(FailpointError):
            assess("multiomic", settings, tmp_path / "out")
    assert (tmp_path / "out" / "report.json").exists() == (point == "assess.after_report")
    found, num_computed = assess("multiomic", settings, tmp_path / "out")
    assert num_computed == 0
    assert found == assess("multiomic", settings, tmp_path / "clean")[0]
    outcome(f"F11 an assessment stopped at {point}", 1, "rerun: the report, nothing computed")
