"""Compare the estimate of ``cytoray train plan`` with an actual run: ``python benchmarks/plan_error.py``.

Real cells (synthetic ones where there are none), the gene table of 60,697 rows, 3 layers of 96, the three shares of
unknown genes and two passes, 2 workers of 1 thread, a checkpoint every 20 steps. The plan is made before the run, and
once more after it, so that a change in what else the machine does shows: without one the two plans agree. The run's
steps are those of its journal, wall time from step to step at rank 0, without the first two.
"""

from __future__ import annotations

import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import common
from benchmarks.train_loop_ours import train_ours
from benchmarks.train_loop_trial import WARM_UP_STEPS, Trial, ingest_cells
from cytoray.corpus.manifest import load_manifest
from cytoray.training.config import GenerativeConfig, PretrainConfig, ShapeConfig
from cytoray.training.plan import Estimate, Hardware, plan_pretraining

SHAPE = ShapeConfig(width=96, num_heads=4, feedforward_width=96, num_layers=3)
CELLS_PER_STEP = 16
NUM_STEPS = 20 if common.QUICK else 80
CHECKPOINT_EVERY = 20


def main() -> None:
    """Print the JSON line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with tempfile.TemporaryDirectory(prefix="cytoray-bench-") as folder:
        origin = ingest_cells(Path(folder))
        trial = Trial(folder, SHAPE, CELLS_PER_STEP, NUM_STEPS)
        plain = trial.config("planned", num_workers=2, checkpoint_every=CHECKPOINT_EVERY)
        config = plain.model_copy(update={"objective": GenerativeConfig()})
        before = _plan(config)
        started = time.perf_counter()
        steps = train_ours(config).steps
        wall_s = time.perf_counter() - started
        after = _plan(config)
    times = [step["step_s"] for step in steps]
    _report(origin, before, after, times, start_s=wall_s - sum(times))


def _plan(config: PretrainConfig) -> Estimate:
    """Return the plan that a user would see."""
    manifest = load_manifest(config.store, config.corpus)
    return plan_pretraining(config, Hardware(), manifest=manifest).estimate


def _report(origin: str, before: Estimate, after: Estimate, times: list[float], *, start_s: float) -> None:
    """The error of the plan made before the run, beside all that it follows from."""
    steady = times[WARM_UP_STEPS:]
    mean = statistics.mean(steady)
    details = {
        "cells": origin,
        "steps": len(times),
        "planned_step_s": round(before.step_s, 4),
        "planned_again_step_s": round(after.step_s, 4),
        "mean_step_s": round(mean, 4),
        "median_step_s": round(statistics.median(steady), 4),
        "error_percent": round(100 * (before.step_s / mean - 1), 1),
        "error_again_percent": round(100 * (after.step_s / mean - 1), 1),
        "planned_start_s": round(before.start_s or 0.0, 1),
        "start_and_end_s": round(start_s, 1),
    }
    common.report("plan_error", value=abs(100 * (before.step_s / mean - 1)), settings=details)


if __name__ == "__main__":
    main()
