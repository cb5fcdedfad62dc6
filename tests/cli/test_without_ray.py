"""What needs no Ray starts none, and a Ray that does not start is one line with its remedy."""

from __future__ import annotations

import json
from pathlib import Path


def test_a_small_ingest_takes_this_process_alone(command, cells, tmp_path):
    ingest = ["data", "ingest", f"{cells}/", "--store", tmp_path / "store", "--corpus", "small"]
    done = command(*ingest, PYTHONPROFILEIMPORTTIME="1")
    assert json.loads(done.stdout)["num_cells"] > 200
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip() for line in lines}
    assert "anndata" in imported
    assert {"ray", "torch", "mlflow", "sklearn", "deepspeed"} & imported == set()
    again = command(*ingest)
    assert json.loads(again.stdout)["skipped"]


def test_a_ray_that_does_not_start_is_one_line_with_its_remedy(command, cells, tmp_path):
    few = ["--set", "checks.min_genes=1"]
    done = command(
        "data",
        "ingest",
        f"{cells}/",
        "--store",
        tmp_path / "store",
        "--corpus",
        "x",
        *few,
        code=2,
        CYTORAY_FEW_CELLS="0",
    )
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "Ray did not start on this machine" in line
    assert "RAY_TMPDIR" in line


def test_a_cluster_that_is_away_is_named(command, cells, tmp_path):
    ingest = ["data", "ingest", f"{cells}/", "--store", tmp_path / "store", "--corpus", "x"]
    done = command(*ingest, code=2, CYTORAY_FEW_CELLS="0", RAY_ADDRESS="127.0.0.1:9", RAY_AUTH_TOKEN=64 * "a")
    assert "Cannot reach the Ray cluster at 127.0.0.1:9" in done.stderr


def test_refusals_come_before_ray(command, tmp_path: Path):
    done = command("data", "ingest", tmp_path / "nowhere/", "--store", tmp_path / "store", "--corpus", "x", code=2)
    assert "nowhere" in done.stderr
