"""Two tiers on a real Ray: two models, and replicas of one that are killed while it is asked."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.schema import ReplicaState

from cytoray.model.bundle import save_bundle
from cytoray.model.predictor import CellPredictor
from cytoray.serving.app import run_service, stop_service
from cytoray.serving.config import AppArgs
from cytoray.serving.processes import APP_NAME, find_processes

pytestmark = [pytest.mark.ray, pytest.mark.slow]
NUM_KILLS = 2
NUM_CLIENTS = 4


@pytest.fixture
def port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _pids(name: str) -> dict[str, int]:
    """The processes of the replicas of a model."""
    _, replicas = find_processes()
    there = {actor: handle for actor, handle in replicas.items() if f"#Model-{name}#" in actor}
    found = {}
    for actor, handle in there.items():
        with contextlib.suppress(RayError):  # it has just ended
            found[actor] = ray.get(handle.__ray_call__.remote(lambda _: os.getpid()))
    return found


def _is_replaced(name: str, victim: str) -> bool:
    """Whether another replica of a model serves in the place of a killed one."""
    running = serve.status().applications[APP_NAME].deployments[f"Model-{name}"].replica_states
    there = _pids(name)
    return victim not in there and len(there) == 2 and running.get(ReplicaState.RUNNING) == 2


def test_killed_replicas_of_a_model_cost_no_request(
    ray_cluster: Any, build_bundle: Any, tmp_path: Path, port: int, make_counts: Any, as_cells: Any, as_request: Any
) -> None:
    bundles = {"blood": build_bundle(), "gut": build_bundle(())}
    bundles["gut"].model.value_encoder.linear1.weight.data *= 2
    models = []
    for name, bundle in bundles.items():
        save_bundle(bundle, tmp_path / name)
        replicas = {"min_replicas": 2, "max_replicas": 2} if name == "gut" else {"max_replicas": 1}
        models.append({"name": name, "model_uri": str(tmp_path / name), "num_cpus": 0.1, **replicas})
    limits = {"deadline_s": 50.0}
    given = {"layout": "tiered", "limits": limits, "models": models, "ingress_replicas": 1, "ingress_num_cpus": 0.1}
    url = run_service(AppArgs.model_validate(given), port=port, timeout_s=400.0)
    try:
        counts = make_counts(3)
        body = as_request(counts)
        offline = {name: CellPredictor(bundle).predict(as_cells(counts)).embeddings for name, bundle in bundles.items()}
        done = threading.Event()
        failures: list[str] = []
        answered: list[str] = []

        def load(client: int) -> None:
            """Ask one model after the other until all kills have happened."""
            while not done.is_set():
                name = ("gut", "gut", "blood")[len(answered) % 3]
                answer = httpx.post(f"{url}/v1/models/{name}/embed", json=body, timeout=300)
                if answer.status_code != 200:
                    failures.append(answer.text)
                    continue
                found = np.array([cell["embedding"] for cell in answer.json()["cells"]], np.float32)
                np.testing.assert_allclose(found, offline[name], atol=1e-5)
                answered.append(name)

        with ThreadPoolExecutor(NUM_CLIENTS) as threads:
            clients = [threads.submit(load, client) for client in range(NUM_CLIENTS)]
            try:
                for kill in range(NUM_KILLS):
                    victim, pid = min(_pids("gut").items())
                    before = len(answered)
                    os.kill(pid, signal.SIGKILL)
                    while len(answered) < before + 12 and not failures:
                        done.wait(0.1)
                    while kill < NUM_KILLS - 1 and not _is_replaced("gut", victim):  # else nobody can take over
                        done.wait(0.5)
            finally:
                done.set()
            for client in clients:
                client.result()
        assert failures == []
        assert set(answered) == {"blood", "gut"}
    finally:
        stop_service()
