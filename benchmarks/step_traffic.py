"""What a second worker gains at a tiny model, and what a step exchanges: ``python benchmarks/step_traffic.py``.

The model of ``configs/model/tiny.yaml`` on 32 real cells per step (synthetic ones if there are none), workers of 1
thread. Steps per second are those of whole runs through Ray Train, from their journals; 1 and 2 workers take turns, and
the median of each is taken. Counts, and CPU seconds of a worker's step, are of the same steps without Ray, between two
points at which losses are fetched: collectives of the training thread, and how often it waits for a value of a tensor.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import socket
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from cytoray.cluster import prepare_auth

prepare_auth()  # before anything imports ray

from benchmarks import common
from benchmarks.step_traffic_rank import take_steps
from benchmarks.train_loop_ours import train_ours
from benchmarks.train_loop_trial import WARM_UP_STEPS, Trial, ingest_cells
from cytoray.config import load_config
from cytoray.training.config import ShapeConfig

WORKERS = (1, 2)


def main() -> None:
    """Print one JSON line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=32, help="cells per step, of all workers")
    parser.add_argument("--steps", type=int, default=6 if common.QUICK else 60, help="steps of a run")
    parser.add_argument("--runs", type=int, default=1 if common.QUICK else 3, help="runs with each number of workers")
    options = parser.parse_args()
    shape = load_config(ShapeConfig, common.ROOT / "configs" / "model" / "tiny.yaml")
    rates: dict[int, list[float]] = {number: [] for number in WORKERS}
    with tempfile.TemporaryDirectory(prefix="cytoray-bench-") as folder:
        origin = ingest_cells(Path(folder))
        trial = Trial(folder, shape, options.cells, options.steps)
        for run in range(options.runs):
            for number in WORKERS:
                rates[number].append(_steps_per_s(trial, f"run-{run}-{number}", number))
        ranks = {number: _without_ray(trial, number) for number in WORKERS}
    settings: dict[str, Any] = {**shape.model_dump(mode="json"), "cells": origin, "cells_per_step": options.cells}
    settings |= {"steps": options.steps - WARM_UP_STEPS, "runs": rates}
    settings |= {f"step_of_{number}_workers_without_ray": found for number, found in ranks.items()}
    one, two = (statistics.median(rates[number]) for number in WORKERS)
    common.report("step_traffic", value=two, baseline=one, settings=settings)


def _steps_per_s(trial: Trial, run: str, num_workers: int) -> float:
    """Steps per second of a run as a user has it, its last step, which saves, left out."""
    steps_s = train_ours(trial.config(run, num_workers=num_workers)).steps_s
    return round(len(steps_s) / sum(steps_s), 3)


def _without_ray(trial: Trial, num_workers: int) -> dict[str, Any]:
    """What rank 0 has counted and timed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        ranks = [pool.submit(take_steps, trial, rank, num_workers, port) for rank in range(num_workers)]
        found = [rank.result() for rank in ranks]
    return {name: value if isinstance(value, dict) else round(value, 4) for name, value in found[0].items()}


if __name__ == "__main__":
    main()
