"""Plans beside what was measured: time, memory and cost of an ingest and of a pretraining, each a process as in a job.

``python benchmarks/plans.py [--only ingest]``, on an idle machine: times depend on its load. The goal is 20 %.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from benchmarks import common
from cytoray.config import load_config
from cytoray.corpus.config import IngestConfig
from cytoray.operations.planning.prices import load_prices
from cytoray.operations.planning.stage_plan import StagePlan, plan_stage
from cytoray.training.config import PretrainConfig

NUM_CELLS = 8_000
STEPS = 60
INSTANCE = "m6i.2xlarge"
POLL_S = 0.2


def main() -> None:
    """Plan and run each stage, and print one JSON line per stage."""
    prices = load_prices(ROOT / "configs" / "prices.yaml")
    assert prices is not None
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=["ingest"], help="without the pretraining, which starts Ray")
    only = parser.parse_args().only
    (hourly,) = [each.hourly for each in prices.instances if each.name == INSTANCE]
    with tempfile.TemporaryDirectory() as name:
        store = f"{name}/store"
        files = common.synthetic_files(NUM_CELLS, num_files=1, mean_genes=400)
        sources = f"sources=[{{uri: {files[0]}}}]"
        overrides = [f"store={store}", "corpus=cells", sources]
        path = ROOT / "configs/corpus/quickstart.yaml"
        plan = plan_stage(load_config(IngestConfig, path, overrides=overrides), prices=prices)
        _compare("ingest", plan, _measure("ingest", path, overrides), hourly=hourly)

        if only == "ingest":
            return
        tracking = [f"tracking.uri=sqlite:///{name}/mlflow.db", f"tracking.journal_folder={name}/journal"]
        overrides = [f"store={store}", "corpus=cells", f"train.num_steps={STEPS}", *tracking]
        overrides.append(f"tracking.artifact_location={name}/mlflow")
        path = ROOT / "configs/pretrain/quickstart.yaml"
        plan = plan_stage(load_config(PretrainConfig, path, overrides=overrides), prices=prices)
        _compare("pretrain", plan, _measure("pretrain", path, overrides), hourly=hourly)


def _measure(stage: str, path: Path, overrides: list[str]) -> dict[str, float]:
    """Run a stage as a job does; returns seconds and the peak memory of the process or of a training worker."""
    words = [sys.executable, "-m", f"jobs.{stage}", "--config", str(path)]
    words += [word for override in overrides for word in ("--set", override)]
    peaks: dict[int, int] = {}
    started = time.perf_counter()
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            for each in _processes(process.pid, workers=stage == "pretrain"):
                try:
                    peaks[each.pid] = max(peaks.get(each.pid, 0), each.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue
            time.sleep(POLL_S)
    assert process.returncode == 0, process.returncode
    return {"seconds": time.perf_counter() - started, "memory_bytes": max(peaks.values(), default=0)}


def _processes(pid: int, *, workers: bool) -> list[psutil.Process]:
    """The process itself, or the workers that train."""
    try:
        root = psutil.Process(pid)
        if not workers:
            return [root]
        return [each for each in root.children(recursive=True) if "RayTrainWorker" in " ".join(each.cmdline()[:1])]
    except psutil.NoSuchProcess:
        return []


def _compare(stage: str, plan: StagePlan, measured: dict[str, float], *, hourly: float) -> None:
    """Print a plan beside what was measured."""
    assert plan.seconds is not None
    assert plan.memory_bytes is not None
    (cost,) = [each.amount for each in plan.costs if each.instance == INSTANCE]
    spent = measured["seconds"] / 3600 * hourly
    rows: dict[str, Any] = {
        "seconds": (plan.seconds, measured["seconds"]),
        "memory_bytes": (plan.memory_bytes, measured["memory_bytes"]),
        "cost": (cost, spent),
    }
    errors = {name: round(made / seen - 1, 3) for name, (made, seen) in rows.items()}
    common.emit({"name": f"plan_{stage}", "planned_and_measured": rows, "relative_error": errors})


if __name__ == "__main__":
    main()
