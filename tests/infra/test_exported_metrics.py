"""Every metric that a rule or a dashboard names is exported: by a Ray that ingests and trains, or by the service."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import ray
import yaml

from cytoray.metrics import Counter, Gauge

from .conftest import INFRA

pytestmark = [pytest.mark.infra, pytest.mark.timeout(900)]
DRIVER = Path(__file__).parents[1] / "helpers" / "metrics_driver.py"
MODULES = ("cytoray.corpus.ingesting.metrics", "cytoray.training.metrics", "cytoray.tracking.metrics")
NAME = re.compile(r"\bray_[a-z0-9_]*[a-z0-9]")
# Ray exports these counters once they have happened; their names, to which _total is added, are in its programs.
EVENTS = {"ray_memory_manager_worker_eviction_total"}
# Of ours, counted only once they have happened.
RARE = {"ray_cytoray_train_skipped_steps_total"}


def used() -> set[str]:
    """Names of Ray's metrics in rules and dashboards."""
    prometheus, grafana = INFRA / "monitoring" / "prometheus", INFRA / "monitoring" / "grafana"
    files = [yaml.safe_load((prometheus / name).read_text()) for name in ("rules_jobs.yaml", "rules_ray.yaml")]
    texts = [rule["expr"] for file in files for group in file["groups"] for rule in group["rules"]]
    dashboards = [json.loads(path.read_text()) for path in grafana.glob("*.json")]
    texts += [target["expr"] for board in dashboards for panel in board["panels"] for target in panel["targets"]]
    return {name for text in texts for name in NAME.findall(re.sub(r'"[^"]*"', "", text))}


def declared() -> dict[str, Counter | Gauge]:
    """What our rooms declare, by the name in Prometheus."""
    modules = [importlib.import_module(name) for name in MODULES]
    found = [value for module in modules for value in vars(module).values()]
    found += list(importlib.import_module(MODULES[1])._RATES.values())
    return {metric.exported: metric for metric in found if isinstance(metric, Counter | Gauge)}


def ray_declares() -> set[str]:
    """The gauges of Ray's nodes, of GPUs too, that a machine without GPUs does not export; and the events."""
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    raylet = (Path(ray.__file__).parent / "core" / "src" / "ray" / "raylet" / "raylet").read_bytes()
    events = {name for name in EVENTS if name.removeprefix("ray_").removesuffix("_total").encode() in raylet}
    return {f"ray_{name}" for name in METRICS_GAUGES} | events


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """What Ray exported during an ingest and a training."""
    folder = tmp_path_factory.mktemp("metrics")
    # A busy machine starts the agents of a node in minutes.
    waits = {"RAY_raylet_start_wait_time_s": "300", "RAY_agent_register_timeout_ms": "300000"}
    environment = {**os.environ, **waits}
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(folder)], env=environment, capture_output=True, text=True, timeout=800
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, float] = json.loads((folder / "exported.json").read_text())
    return found


def test_every_metric_of_ray_in_rules_and_dashboards_is_exported(exported: dict[str, float]) -> None:
    names = used()
    assert len(names) > 25
    assert names - exported.keys() - ray_declares() - RARE == set()
    assert declared().keys() >= RARE


def test_all_that_we_declare_is_exported_and_used(exported: dict[str, float]) -> None:
    assert declared().keys() - exported.keys() == RARE
    assert {name for name in declared() if name not in used()} == set()


def test_the_values_are_those_of_the_work(exported: dict[str, float]) -> None:
    assert exported["ray_cytoray_ingest_planned_cells"] == 300
    assert exported["ray_cytoray_ingest_running"] == 0
    assert exported["ray_cytoray_train_step"] == exported["ray_cytoray_train_num_steps"] == 6
    newest = exported["ray_cytoray_train_last_step_timestamp_seconds"]
    assert exported["ray_cytoray_train_last_checkpoint_timestamp_seconds"] >= newest - 600
    assert exported["ray_cytoray_tracking_unshipped_bytes"] > 0  # MLflow is away
    assert exported["ray_cytoray_tracking_lost_events"] == 0
    assert 0 <= exported["ray_cytoray_train_data_wait_ratio"] <= 1
