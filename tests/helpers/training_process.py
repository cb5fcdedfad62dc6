"""Trainings in processes of their own, to be disturbed, and what an undisturbed one ends with."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from processes import end_all

from cytoray import failpoints
from cytoray.training.checkpoint import latest_checkpoint
from cytoray.training.config import PretrainConfig, RunConfig

DRIVER = Path(__file__).parent.parent / "helpers" / "train_driver.py"
STEPS, EVERY, RUN = 12, 4, "run"


@dataclass
class Training:
    """A training in another process."""

    process: subprocess.Popen[bytes]
    folder: Path

    @property
    def log(self) -> str:
        """Its stderr."""
        return (self.folder / "stderr").read_text()

    def result(self, code: int = 0) -> dict[str, Any]:
        """Wait for its end with this exit code; return its result."""
        assert self.process.wait(900) == code, self.log[-3000:]
        found: dict[str, Any] = json.loads((self.folder / "result.json").read_text())
        return found

    def ranks(self) -> list[psutil.Process]:
        """The processes of its Ray Train workers."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if "ray::RayTrainWorker" in "".join(child.cmdline())]

    def stop_at_once(self) -> None:
        """SIGKILL to it and, since a stopped process cannot leave with its parents, to all below it."""
        end_all(self.process)


def build_config(store: Path | str, **changes: Mapping[str, Any]) -> PretrainConfig:
    """The run of ``store``; ``changes`` are of sections."""
    config: dict[str, Any] = {
        "store": str(store), "run": RUN, "corpus": "cells",
        "model": {"width": 16, "num_heads": 2, "feedforward_width": 16, "num_layers": 1, "dropout": 0.0},
        "tokenizer": {"max_length": 41},
        "train": {"num_steps": STEPS, "cells_per_step": 16, "checkpoint_every": EVERY},
        "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2, "epsilon": 1e-3},
        "workers": {"num_workers": 2},
        "tracking": {"uri": "http://127.0.0.1:9"},
    }  # fmt: skip
    for section, values in changes.items():
        config[section] = {**config[section], **values}
    return PretrainConfig.model_validate_json(json.dumps(config))


def start_training(
    store: Path | str, folder: Path, *, plan: str = "", once: Path | None = None, changes: Mapping[str, Any], nodes: int
) -> Training:
    """Start the run of ``store`` on a Ray of its own, with failpoints, on several nodes or (0) without."""
    config = build_config(store, **{**changes, "tracking": {**_tracking(folder), **changes.get("tracking", {})}})
    return start_run(config, folder, plan=plan, once=once, nodes=nodes)


def start_run(config: RunConfig, folder: Path, *, plan: str = "", once: Path | None = None, nodes: int = 0) -> Training:
    """Start a run of any kind that the driver knows on a Ray of its own, with failpoints."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config.model_dump_json())
    environment = {**os.environ, failpoints.VARIABLE: plan}
    if once is not None:
        once.mkdir()
        environment[failpoints.ONCE_VARIABLE] = str(once)
    command = [sys.executable, str(DRIVER), str(folder), str(nodes)]
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True
        )
    return Training(process, folder)


def _tracking(folder: Path) -> dict[str, str]:
    return {"journal_folder": str(folder.parent / "journal")}


def assert_equal(store: Path | str, unbroken: Path) -> None:
    """The last checkpoints hold the same weights, bit for bit."""
    found, expected = latest_checkpoint(str(store), RUN), latest_checkpoint(str(unbroken), RUN)
    assert found is not None
    assert expected is not None
    assert found.state.step == expected.state.step == STEPS
    weights, others = found.load_weights(), expected.load_weights()
    assert weights.keys() == others.keys()
    assert [name for name in weights if not torch.equal(weights[name], others[name])] == []


def recovery_s(training: Training) -> float:
    """The longest time between two events of the run's journal, in seconds."""
    (journal,) = (training.folder.parent / "journal").rglob("*.jsonl")
    times = [json.loads(line)["time_ms"] for line in journal.read_text().splitlines()]
    return float(max(after - before for before, after in itertools.pairwise(times)) / 1000)


def wait_for_commit(store: Path, training: Training, step: int) -> None:
    """Until the checkpoint of a step is there; the training must be alive."""
    commit, deadline = store / f"runs/{RUN}/checkpoints/step-{step:09d}/COMMIT.json", time.monotonic() + 300
    while not commit.exists():
        assert training.process.poll() is None, training.log[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def begun_at(event: str) -> int:
    """The step that an event of a start names."""
    return int(event.rpartition("at step ")[2].split()[0].strip(".,:"))
