"""A pipeline whose processes were all killed ends, when it is run again, as one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from processes import end_all

from cytoray.corpus.manifest import load_manifest
from cytoray.failpoints import ONCE_VARIABLE, VARIABLE
from cytoray.operations.pipeline.planning import plan
from cytoray.operations.pipeline.reading import read_pipeline

COMMAND = [sys.executable, "-c", "from cytoray.cli import main; main()", "pipeline", "run"]


def run(path: Path, **environment: str) -> tuple[int, str]:
    """Run a pipeline as the command does; its exit code and what it printed."""
    process = subprocess.Popen(
        [*COMMAND, str(path), "--json"], env={**os.environ, **environment}, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        out, _ = process.communicate(timeout=280)
        return process.returncode, out
    finally:
        end_all(process)


def test_killed_in_a_job_and_run_again(write: Callable[..., Path], stages: dict[str, Any], tmp_path: Path):
    del stages["champion"]
    path, once = write(), tmp_path / "once"
    once.mkdir()
    code, out = run(path, **{VARIABLE: "ingest.before_commit=kill", ONCE_VARIABLE: str(once)})
    assert code == 1
    error = json.loads(out)["error"]
    assert error["kind"] == "StageError"
    assert f"was killed by signal {int(signal.SIGKILL)}" in error["message"]
    (planned,) = plan(read_pipeline(path))
    assert (planned.state, planned.reason) == ("run", "was started and is not done")
    code, out = run(path)
    assert (code, json.loads(out)["ran"]) == (0, ["cells"])
    killed = load_manifest(str(tmp_path / "store"), "blood").content_digest
    clean = tmp_path / "clean.yml"
    clean.write_text(path.read_text().replace(str(tmp_path / "store"), str(tmp_path / "other")))
    assert run(clean)[0] == 0
    assert load_manifest(str(tmp_path / "other"), "blood").content_digest == killed
