"""A service in two tiers: the ingress chooses the model, and asks another replica if one dies."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from ray.exceptions import ActorDiedError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from cytoray.model.predictor import CellPredictor
from cytoray.registry.pinning import PinnedModel
from cytoray.serving.api import build_api
from cytoray.serving.config import AppArgs
from cytoray.serving.edge.config import EdgeConfig
from cytoray.serving.edge.forwarding import Retries
from cytoray.serving.edge.guard import Guard
from cytoray.serving.edge.metrics import EdgeMetrics
from cytoray.serving.edge.middleware import Parts
from cytoray.serving.explorer.config import ExplorerConfig
from cytoray.serving.hosting.ingress import build_ingress
from cytoray.serving.hosting.planning import PlannedModel
from cytoray.serving.hosting.relay import answer_in_parts, answer_whole
from cytoray.serving.hosting.remote import RemoteModel, RemoteTable
from cytoray.serving.hosting.replicas import Replicas
from cytoray.serving.hosting.routes import describe
from cytoray.serving.hosting.table import HostedModel, ModelTable
from tests.helpers.two_models import TwoModels
from tests.serving.conftest import GENES, LIMITS


class Handle:
    """The handle of a deployment, with one replica in this process; all that crosses is pickled.

    ``losses``: errors that the next calls end with.
    """

    def __init__(self, model: HostedModel, explorer: ExplorerConfig | None) -> None:
        self.losses: list[Exception] = []
        self.num_calls = 0
        self.table = ModelTable([model])
        edge = Parts(EdgeConfig(), LIMITS, EdgeMetrics(CollectorRegistry()))
        api = build_api(self.table, edge=edge, explorer=explorer)
        self.describe = SimpleNamespace(remote=self._describe)

        async def answer(scope: Any, body: bytes) -> Any:
            self._lose()
            return pickle.loads(pickle.dumps(await answer_whole(api, *pickle.loads(pickle.dumps((scope, body))))))  # noqa: S301

        async def stream(scope: Any, body: bytes) -> AsyncIterator[Any]:
            self._lose()
            async for message in answer_in_parts(api, scope, body):
                yield message

        self.answer, self.stream = SimpleNamespace(remote=answer), SimpleNamespace(remote=stream)

    def options(self, **_: Any) -> Handle:
        return self

    def _lose(self) -> None:
        self.num_calls += 1
        if self.losses:
            raise self.losses.pop(0)

    async def _describe(self) -> Any:
        self._lose()
        return describe(self.table.default, self.table).model_dump() | {"labels": [], "degraded": None}


class Tiers:
    """An ingress in front of two models."""

    def __init__(self, two: TwoModels, explorer: ExplorerConfig, *, within_s: float = 60.0) -> None:
        self.runner = two.runner
        self.handles = {one.name: Handle(one, explorer if one is two.table.default else None) for one in two.table}
        self.retries: list[str] = []
        args = AppArgs(model_uri="models", limits=LIMITS, edge=EdgeConfig(auth=False))
        models = []
        for one in two.table:
            info = one.model
            planned = PlannedModel(one.name, args, PinnedModel("uri", info.name, info.version, info.digest))
            retries = Retries(within_s=within_s)
            handle: Any = self.handles[one.name]
            models.append(
                RemoteModel.build(planned, Replicas(one.name, handle), retries=retries, on_retry=self.retries.append)
            )
        parts = Parts(args.edge, LIMITS, EdgeMetrics(CollectorRegistry()), guard=Guard(args.edge))

        async def gather() -> list[Any]:
            return []

        self.api = build_ingress(RemoteTable(models), args, edge=parts, gather=gather)

    def ask(self, route: str, *, method: str = "POST", **options: Any) -> httpx.Response:
        return self.runner.run(self._ask(method, route, options))

    def get(self, route: str) -> httpx.Response:
        return self.ask(route, method="GET")

    async def _ask(self, method: str, route: str, options: dict[str, Any]) -> httpx.Response:
        transport = httpx.ASGITransport(self.api, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.request(method, route, **options)


@pytest.fixture
def tiers(two: TwoModels, tmp_path: Any) -> Tiers:
    return Tiers(two, ExplorerConfig(folder=str(tmp_path), demos=()))


def _died() -> ActorDiedError:
    return ActorDiedError()


def test_the_model_that_is_asked_answers_as_in_one_tier(
    tiers: Tiers, two: TwoModels, make_counts: Any, as_cells: Any, as_request: Any
) -> None:
    counts = make_counts(3)
    for name, route in (("blood", "/v1/embed"), ("gut", "/v1/models/gut/embed"), ("gut", "/v1/embed?model=gut/1")):
        answer = tiers.ask(route, json=as_request(counts), headers={"x-request-id": "abc"})
        found = [cell["embedding"] for cell in answer.json()["cells"]]
        offline = CellPredictor(two.bundles[name]).predict(as_cells(counts)).embeddings
        np.testing.assert_allclose(np.array(found, np.float32), offline, atol=1e-5)
        assert (answer.headers["x-model"], answer.headers["x-model-version"]) == (
            name,
            two.table.find(name).model.version,
        )
        assert (answer.headers["x-request-id"], answer.headers["x-cells"]) == ("abc", "3")
    refused = tiers.ask("/v1/embed", json={**as_request(counts), "genes": list(reversed(["x"] * len(GENES)))})
    assert (refused.status_code, refused.headers["content-type"]) == (422, "application/problem+json")
    unknown = tiers.ask("/v1/embed?model=liver", json=as_request(counts))
    assert (unknown.status_code, unknown.json()["code"], unknown.json()["known"]) == (
        404,
        "unknown_model",
        ["blood", "gut"],
    )


def test_models_and_readiness_are_those_of_the_other_tier(tiers: Tiers) -> None:
    blood, gut = tiers.get("/v1/models").json()["models"]
    assert (blood["name"], blood["default"], gut["name"], gut["default"]) == ("blood", True, "gut", False)
    assert tiers.get("/v1/models/gut").json() == gut
    assert tiers.get("/version?model=gut").json()["embedding_width"] == 16
    assert tiers.get("/readyz").json()["models"] == ["blood", "gut"]
    tiers.handles["gut"].losses = [_died()]
    answer = tiers.get("/readyz")
    assert (answer.status_code, answer.json()["code"]) == (503, "model_not_ready")
    assert "Model gut: no replica answers" in answer.json()["detail"]


def test_pages_are_relayed_to_the_default_model(tiers: Tiers) -> None:
    page = tiers.get("/")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert tiers.get("/explorer/api/about").json()["model"]["name"] == "blood"
    assert tiers.get("/nothing").json()["code"] == "not_found"
    assert "/v1/models/{model}/embed" in tiers.get("/openapi.json").json()["paths"]


@pytest.mark.parametrize(
    ("losses", "status", "code", "num_calls"),
    [
        ((_died,), 200, None, 2),
        ((_died, _died), 200, None, 3),
        ((_died, _died, _died), 500, "poison_request", 3),
        ((lambda: BackPressureError(num_queued_requests=1, max_queued_requests=1),), 503, "overloaded", 1),
    ],
)
def test_another_replica_answers_if_one_dies(
    tiers: Tiers,
    make_counts: Any,
    as_request: Any,
    losses: tuple[Callable[[], Exception], ...],
    status: int,
    code: str | None,
    num_calls: int,
) -> None:
    handle = tiers.handles["gut"]
    handle.losses = [loss() for loss in losses]
    answer = tiers.ask("/v1/models/gut/embed", json=as_request(make_counts(1)))
    assert (answer.status_code, answer.json().get("code"), handle.num_calls) == (status, code, num_calls)
    assert len(tiers.retries) == num_calls - 1


def _unavailable() -> DeploymentUnavailableError:
    return DeploymentUnavailableError(DeploymentID(name="Model-gut"))


@pytest.mark.parametrize(("times", "status", "num_calls"), [(3, 200, 4), (100, 503, 5)])
def test_a_request_waits_while_a_model_has_no_replica_for_a_moment(
    tiers: Tiers,
    make_counts: Any,
    as_request: Any,
    monkeypatch: pytest.MonkeyPatch,
    times: int,
    status: int,
    num_calls: int,
) -> None:
    """It was not given to a replica, so that it counts neither as lost nor as overload, unless that lasts."""
    monkeypatch.setattr("cytoray.serving.hosting.replicas.UNAVAILABLE_TIMES", 5)
    monkeypatch.setattr("cytoray.serving.hosting.replicas.UNAVAILABLE_PAUSE_S", 0.0)
    handle = tiers.handles["gut"]
    handle.losses = [_unavailable() for _ in range(times)]
    answer = tiers.ask("/v1/models/gut/embed", json=as_request(make_counts(1)))
    assert (answer.status_code, handle.num_calls, tiers.retries) == (status, num_calls, [])


def test_a_request_that_may_kill_replicas_is_tried_alone(tiers: Tiers, make_counts: Any, as_request: Any) -> None:
    """Others that were lost with it are answered."""
    handle = tiers.handles["gut"]
    handle.losses = [_died() for _ in range(4)]  # both requests, on two replicas
    body = as_request(make_counts(1))

    async def ask_both() -> list[httpx.Response]:
        return list(await asyncio.gather(*(tiers._ask("POST", "/v1/embed?model=gut", {"json": body}) for _ in "ab")))

    assert [answer.status_code for answer in tiers.runner.run(ask_both())] == [200, 200]
    assert handle.num_calls == 6


def test_a_request_does_not_wait_for_a_replica_for_ever(
    two: TwoModels, tmp_path: Any, make_counts: Any, as_request: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cytoray.serving.hosting.remote.MARGIN_S", 0.0)
    tiers = Tiers(two, ExplorerConfig(folder=str(tmp_path), demos=()), within_s=0.05)

    async def wait(*_: Any) -> None:
        await asyncio.Event().wait()

    tiers.handles["gut"].answer = SimpleNamespace(remote=wait)
    answer = tiers.ask("/v1/models/gut/embed", json=as_request(make_counts(1)))
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
