"""The real thing: a registered model served by Ray Serve on a local cluster, asked over HTTP."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from cytoray.errors import RegistryError, RequestError, ServingError
from cytoray.model.bundle import save_bundle
from cytoray.model.predictor import CellPredictor
from cytoray.registry.models import register
from cytoray.serving.app import run_service, stop_service
from cytoray.serving.client import Client
from cytoray.serving.deployments import AppArgs
from cytoray.tracking import TrackingConfig

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),  # MLflow's database layer
]

GENES = [f"GENE{number:02d}" for number in range(40)]


@pytest.fixture
def args(build_bundle: Any, mlflow_uri: str, tmp_path: Path) -> AppArgs:
    """Arguments that serve version 1 of a model, registered under an alias."""
    save_bundle(build_bundle(), tmp_path / "bundle")
    tracking = TrackingConfig(uri=mlflow_uri, journal_folder=str(tmp_path / "runs"))
    register(tmp_path / "bundle", name="tiny", tracking=tracking, alias="champion")
    return AppArgs(
        model_uri="models:/tiny@champion",
        tracking=tracking,
        cache_folder=str(tmp_path / "cache"),
        num_cpus=0.5,
        max_replicas=1,
    )


@pytest.fixture
def port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def url(ray_cluster: Any, args: AppArgs, port: int) -> Iterator[str]:
    """The running service."""
    yield run_service(args, port=port)
    stop_service()


def test_the_served_model_answers_as_offline_and_says_who_it_is(
    url: str, args: AppArgs, port: int, bundle: Any, make_counts: Any, as_cells: Any, as_request: Any
) -> None:
    counts = make_counts(24)
    offline = CellPredictor(bundle).predict(as_cells(counts))
    with Client(url, cells_per_request=3) as client, ThreadPoolExecutor(4) as threads:
        for answer in threads.map(lambda _: client.annotate(GENES, counts), range(4)):
            np.testing.assert_allclose(answer.embeddings, offline.embeddings, atol=1e-5)
            np.testing.assert_allclose(answer.probabilities, offline.probabilities, atol=1e-5)
            assert answer.model_version == "1"
        with pytest.raises(RequestError) as caught:
            client.embed([gene.lower() for gene in GENES], counts)
        assert caught.value.code == "unknown_genes"

    hostile = {"x-request-timeout-seconds": "-1", "serve_multiplexed_model_id": "other", "X-Request-Id": "abc"}
    body = json.dumps(as_request(counts[:1])).encode()
    headers = {"Content-Type": "application/json", **hostile}
    response = httpx.post(f"{url}/v1/embed", content=body, headers=headers)
    assert response.status_code == 200
    assert response.headers.get_list("x-request-id") == ["abc"]
    assert response.headers["x-model-version"] == "1"
    assert response.headers["server-timing"].startswith("tok;dur=")
    refused = httpx.get(f"{url}/nothing")
    assert (refused.status_code, refused.headers["content-type"]) == (404, "application/problem+json")
    assert httpx.get(f"{url}/version").json()["model"]["name"] == "tiny"
    assert "/v1/annotate" in httpx.get(f"{url}/openapi.json").json()["paths"]

    metrics = httpx.get(f"{url}/metrics").text
    assert re.search(r'cytoray_build_info\{[^}]*name="tiny"[^}]*process="[a-z0-9]+"[^}]*version="1"\} 1', metrics)
    assert re.search(r'cytoray_cells_total\{[^}]*route="/v1/annotate"\} 96', metrics)
    too_large = httpx.post(f"{url}/v1/embed", content=b" " * (args.limits.max_body_bytes + 1))
    assert (too_large.status_code, len(too_large.headers.get_list("x-request-id"))) == (413, 1)

    with pytest.raises(ServingError, match="already running"):
        run_service(args, port=port)


def test_what_cannot_be_served_is_told_and_leaves_nothing_running(ray_cluster: Any, args: AppArgs, port: int) -> None:
    with pytest.raises(RegistryError, match="challenger"):
        run_service(args.model_copy(update={"model_uri": "models:/tiny@challenger"}), port=port)
    with socket.create_server(("127.0.0.1", port)), pytest.raises(ServingError, match="already in use"):
        run_service(args, port=port)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/healthz")
