"""The alias moves while two replicas of Ray Serve answer: the webhook reaches both, and no request fails."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from mlflow.webhooks import delivery

from cytoray.registry.promotion import roll_back
from cytoray.serving.app import run_service, stop_service
from cytoray.serving.rollout.config import RolloutConfig

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]
WAIT_S = 120.0


@pytest.fixture
def url(ray_cluster: Any, args: Any, publish: Any, tmp_path: Path, free_port: int) -> Iterator[str]:
    """A service of two replicas that look at the alias only when they are notified."""
    publish(1)
    (tmp_path / "secret").write_text("secret")
    rollout = RolloutConfig(poll_s=1000.0, webhook_secret_file=str(tmp_path / "secret"))
    changes = {"rollout": rollout, "num_cpus": 0.1, "min_replicas": 2, "max_replicas": 2}
    yield run_service(args.model_copy(update=changes), port=free_port, timeout_s=400)
    stop_service()


def deliver(url: str) -> None:
    """Send the message that MLflow sends when an alias has moved."""
    data = {"name": "tiny", "alias": "champion", "version": "2"}
    body = json.dumps({"entity": "model_version_alias", "action": "created", "data": data})
    stamp, identity = str(int(time.time())), str(time.time_ns())
    headers = {
        delivery.WEBHOOK_DELIVERY_ID_HEADER: identity,
        delivery.WEBHOOK_TIMESTAMP_HEADER: stamp,
        delivery.WEBHOOK_SIGNATURE_HEADER: delivery._generate_hmac_signature("secret", identity, stamp, body),
    }
    assert httpx.post(f"{url}/v1/webhooks/mlflow", content=body, headers=headers, timeout=30).status_code == 202


def wait_until_both_serve(url: str, version: str) -> float:
    """Wait until the metrics of both replicas show a version; returns the seconds."""
    start, pause = time.monotonic(), threading.Event()
    while time.monotonic() < start + WAIT_S:
        lines = httpx.get(f"{url}/metrics", timeout=30).text.splitlines()
        serving = [line for line in lines if line.startswith("cytoray_model_version_info") and 'role="serving"' in line]
        if len(serving) == 2 and all(f'version="{version}"' in line for line in serving):
            return time.monotonic() - start
        pause.wait(0.1)
    raise AssertionError(f"not both replicas serve version {version}: {serving}")


def test_a_flip_under_load_loses_nothing_and_reaches_all_replicas(
    url: str, publish: Any, offline: Any, tracking: Any, make_counts: Any, as_request: Any
) -> None:
    counts = make_counts(2)
    body = json.dumps(as_request(counts)).encode()
    stop, seen = threading.Event(), []

    def ask(_: int) -> None:
        with httpx.Client(timeout=60) as client:
            while not stop.is_set():
                reply = client.post(f"{url}/v1/embed", content=body, headers={"Content-Type": "application/json"})
                assert reply.status_code == 200, reply.text
                answer = reply.json()
                assert reply.headers["x-model-version"] == answer["model"]["version"]
                seen.append((answer["model"]["version"], [cell["embedding"] for cell in answer["cells"]]))

    with ThreadPoolExecutor(3) as threads:
        clients = [threads.submit(ask, number) for number in range(3)]
        try:
            wait_until_both_serve(url, "1")
            publish(2)
            deliver(url)
            print(f"rollout in {wait_until_both_serve(url, '2'):.1f} s")
            roll_back("tiny", tracking=tracking)
            deliver(url)
            print(f"rollback in {wait_until_both_serve(url, '1'):.1f} s")
        finally:
            stop.set()
        for client in clients:
            client.result()
    assert {version for version, _ in seen} == {"1", "2"}
    expected = {version: offline(int(version), counts) for version in ("1", "2")}
    for version, embeddings in seen:
        np.testing.assert_allclose(np.array(embeddings), expected[version], atol=1e-5)
