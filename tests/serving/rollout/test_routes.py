"""Versions as a service reports them over HTTP, and MLflow's webhook, signed by MLflow's own function."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from documented import CHECKED
from mlflow.webhooks import delivery
from mlflow.webhooks.types import ModelVersionAliasCreatedPayload
from prometheus_client import CollectorRegistry

from cytoray.serving.api import build_api
from cytoray.serving.edge.config import EdgeConfig
from cytoray.serving.edge.guard import Guard
from cytoray.serving.edge.keys import Allowance, create_key
from cytoray.serving.edge.metrics import EdgeMetrics
from cytoray.serving.edge.middleware import Parts
from cytoray.serving.rollout.routes import Rollouts

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
SECRET = "a secret"


class Service:
    """The application around a slot, behind an edge that asks for keys."""

    def __init__(self, slot: Any, runner: asyncio.Runner, tmp_path: Path) -> None:
        self.notified: list[str] = []
        secret_file, keys = tmp_path / "secret", tmp_path / "keys.json"
        secret_file.write_text(f"{SECRET}-of-before\n{SECRET.replace(' ', '-')}\n")
        self.key, _ = create_key(str(keys), owner="lab", allowance=Allowance(), days=None)
        config = EdgeConfig(keys_file=str(keys))
        edge = Parts(config, slot.limits, EdgeMetrics(CollectorRegistry()), guard=Guard(config))

        async def notify(name: str) -> None:
            self.notified.append(name)

        api = build_api(slot, edge=edge, rollouts=Rollouts(str(secret_file), notify))
        transport = httpx.ASGITransport(api, raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://test", event_hooks=CHECKED)
        self._runner = runner

    def get(self, route: str) -> httpx.Response:
        return self._runner.run(self._client.get(route, headers={"Authorization": f"Bearer {self.key}"}))

    def deliver(self, body: bytes, headers: dict[str, str]) -> httpx.Response:
        """Send a message as MLflow does, without a key of the service."""
        return self._runner.run(self._client.post("/v1/webhooks/mlflow", content=body, headers=headers))


def signed(body: bytes, *, secret: str = SECRET.replace(" ", "-"), stamp: float | None = None, delivery_id: str = "d1"):
    stamp_text = str(int(time.time() if stamp is None else stamp))
    signature = delivery._generate_hmac_signature(secret, delivery_id, stamp_text, body.decode())
    return {
        "Content-Type": "application/json",
        delivery.WEBHOOK_DELIVERY_ID_HEADER: delivery_id,
        delivery.WEBHOOK_TIMESTAMP_HEADER: stamp_text,
        delivery.WEBHOOK_SIGNATURE_HEADER: signature,
    }


def event(entity: str = "model_version_alias", action: str = "created", name: str = "tiny") -> bytes:
    data = {**ModelVersionAliasCreatedPayload.example(), "name": name, "alias": "champion"}
    return json.dumps({"entity": entity, "action": action, "timestamp": "2026-01-01", "data": data}).encode()


def test_versions_and_the_webhook_over_http(publish: Any, follow: Any, runner: Any, tmp_path: Path) -> None:
    publish(1)
    slot = follow()
    service = Service(slot, runner, tmp_path)
    publish(2)
    slot.follower.check()
    found = service.get("/v1/model")
    assert found.headers["x-model-version"] == "2"
    assert found.json()["model"]["version"] == "2"
    assert found.json()["previous"]["version"] == "1"
    assert found.json()["swaps"] == {"swapped": 1}
    assert service.get("/readyz").json()["degraded"] == {}
    assert service.get("/v1/model?model=other").status_code == 404
    metrics = service.get("/metrics").text
    assert 'cytoray_swaps_total{model="tiny",process="service",result="swapped"} 1.0' in metrics
    assert 'role="serving",version="2"} 1.0' in metrics
    assert 'role="previous",version="1"} 1.0' in metrics
    assert 'cytoray_rollout_degraded{model="tiny",process="service"} 0.0' in metrics

    body = event()
    assert service.deliver(body, signed(body)).json() == {"looked_at": "tiny"}
    assert service.deliver(body, signed(body)).json() == {"looked_at": None}  # the same delivery again
    deleted = event(action="deleted", name="other")
    assert service.deliver(deleted, signed(deleted, delivery_id="d2")).status_code == 202
    tag = event(entity="model_version_tag", action="set")
    assert service.deliver(tag, signed(tag, delivery_id="d3")).json() == {"looked_at": None}
    assert service.notified == ["tiny", "other"]

    now = time.time()
    refused = {
        "another secret": (body, signed(body, secret="guessed", delivery_id="d4"), 401),
        "another body": (event(name="else"), signed(body, delivery_id="d5"), 401),
        "another delivery": (body, {**signed(body, delivery_id="d6"), delivery.WEBHOOK_DELIVERY_ID_HEADER: "d7"}, 401),
        "no signature": (body, {"Content-Type": "application/json"}, 401),
        "long ago": (body, signed(body, stamp=now - 3600, delivery_id="d8"), 401),
        "in the future": (body, signed(body, stamp=now + 3600, delivery_id="d9"), 401),
        "not an event": (b"[]", signed(b"[]", delivery_id="d10"), 400),
        "too large": (b" " * 70_000, signed(b" " * 70_000, delivery_id="d11"), 413),
    }
    seen = {kind: service.deliver(content, headers).status_code for kind, (content, headers, _) in refused.items()}
    assert seen == {kind: status for kind, (_, _, status) in refused.items()}
    assert service.notified == ["tiny", "other"]


def test_without_a_secret_there_is_no_webhook(http: Any) -> None:
    answer = http.post("/v1/webhooks/mlflow", json={})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
