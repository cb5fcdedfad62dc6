"""Kill the inference of a network between its blocks: run again it ends as if it had never been killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from planted_network import build

from cytoray import failpoints
from cytoray.tasks.networks.network import load_network

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
OPTIONS = ("--num-trees", "10", "--block-size", "15", "--pool-size", "3", "--groups", "cell_type", "--run-on", "here")


def infer(data: Path, out: Path, plan: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, with failpoints."""
    command = [sys.executable, "-c", "from cytoray.cli import main; main()", "networks", "infer"]
    environment = {**os.environ, failpoints.VARIABLE: plan or "no.such_point=raise"}
    return subprocess.run(
        [*command, "--data", str(data), "--out", str(out), *OPTIONS],
        env=environment, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("point", ["assess.after_piece=kill@3", "networks.before_file=kill@2"])
def test_killed_and_run_again(point: str, tmp_path: Path, outcome: Any) -> None:
    data = tmp_path / "cells.h5ad"
    build().write_h5ad(data)
    assert infer(data, tmp_path / "whole").returncode == 0
    killed = infer(data, tmp_path / "killed", point)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    left = {path.name for path in (tmp_path / "killed").iterdir()}
    assert "network.json" not in left, "a network is visible only when it is whole"
    num_pieces = len(list((tmp_path / "killed" / ".pieces").iterdir()))
    continued = infer(data, tmp_path / "killed")
    assert continued.returncode == 0, continued.stderr[-3000:]
    for name in ("edges.parquet", "activity.parquet", "network.graphml"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    both = [
        {**load_network(str(tmp_path / name)).about, "seconds": None, "files": None} for name in ("whole", "killed")
    ]
    assert both[0] == both[1]
    assert not (tmp_path / "killed" / ".pieces").exists()
    outcome(f"F12 kill -9 of a network inference at {point}", num_pieces, "rerun: the bytes of an unbroken inference")
