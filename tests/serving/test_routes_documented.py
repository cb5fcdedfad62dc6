"""Every route answers what docs/openapi.json has for it, and the document has every route and outcome.

All clients of the tests of this room compare answers with the document (``documented.CHECKED``); here are the outcomes
that the others do not come by, of every route.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from documented import (
    CHECKED,
    INTERNAL,
    NotDocumented,
    check,
    codes_of,
    document,
    operations,
    responses_of,
)
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry

from cytoray.serving.api import build_api
from cytoray.serving.documenting import ANY, KEYED
from cytoray.serving.edge.config import EdgeConfig
from cytoray.serving.edge.gate import Gate
from cytoray.serving.edge.guard import Guard
from cytoray.serving.edge.keys import Allowance, create_key
from cytoray.serving.edge.metrics import EdgeMetrics
from cytoray.serving.edge.middleware import Parts
from cytoray.serving.explorer.config import ExplorerConfig
from cytoray.serving.payloads.media import JSON
from cytoray.serving.problems import CASES, PROBLEM_TYPE
from cytoray.serving.schemas import Problem
from cytoray.tasks import task_endpoints

OPERATIONS = sorted(operations())
IDS = [f"{method} {path}" for method, path in OPERATIONS]
OPEN = {"/healthz", "/readyz", "/v1/webhooks/mlflow"}
GENES = [f"GENE{number:02d}" for number in range(40)]
CELLS = {"genes": GENES, "cells": [{"id": "a", "i": [0, 1, 2], "v": [3, 2, 5]}]}


class Asked:
    """The application behind an edge with keys, asked without a network."""

    def __init__(self, service: Any, runner: asyncio.Runner, folder: Path) -> None:
        keys = str(folder / "keys.json")
        self.key, _ = create_key(keys, owner="lab", allowance=Allowance(), days=None)
        self.narrow, _ = create_key(keys, owner="narrow", allowance=Allowance(scopes=("nothing",)), days=None)
        one_at_a_time = Allowance(concurrency=1)
        self.busy, _ = create_key(keys, owner="busy", allowance=one_at_a_time, days=None)
        config, self.gate = EdgeConfig(keys_file=keys), Gate()
        guard = Guard(config)
        guard._quotas.enter("busy", one_at_a_time)  # a request that is never answered
        parts = Parts(config, service.limits, EdgeMetrics(CollectorRegistry()), guard=guard, gate=self.gate)
        self.api = build_api(service, edge=parts, explorer=ExplorerConfig())
        transport = httpx.ASGITransport(self.api, raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", event_hooks=CHECKED)
        self._runner = runner

    def __call__(self, method: str, path: str, *, key: str | None = "", **options: Any) -> httpx.Response:
        given = dict(options.pop("headers", {}))
        if key is not None:
            given["Authorization"] = f"Bearer {key or self.key}"
        return self._runner.run(self._client.request(method, path, headers=given, **options))


@pytest.fixture(scope="module")
def ask(bundle: Any, build_service: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    """The application with keys, without jobs."""
    service = build_service(bundle)
    with asyncio.Runner() as runner:
        yield Asked(service, runner, tmp_path_factory.mktemp("keys"))
        runner.run(service.close())


def _path(template: str) -> str:
    """Return a path that the template matches."""
    return (
        template.replace("{model}", "tiny").replace("{job_id}", "j" + "0" * 16).replace("{upload_id}", "u" + "0" * 16)
    )


def test_every_route_is_documented_or_named_as_internal(ask: Asked) -> None:
    served = {
        (method, route.path.replace(":path}", "}"))
        for route in ask.api.routes
        if isinstance(route, APIRoute)
        for method in route.methods
    }
    assert {one for one in served if not INTERNAL.fullmatch(one[1])} == set(OPERATIONS)
    assert ask("GET", "/explorer/api/about").status_code == 200


@pytest.mark.parametrize(("method", "template"), OPERATIONS, ids=IDS)
def test_what_any_request_may_get(ask: Asked, method: str, template: str) -> None:
    path, query = _path(template), {"offset": "0"} if method == "PUT" else {}
    outcomes = {
        "too_large": ask(method, path, headers={"Content-Length": str(2**40)}, params=query).json()["code"],
    }
    if template not in OPEN:
        for code, key in (("unauthenticated", None), ("forbidden", ask.narrow), ("rate_limited", ask.busy)):
            outcomes[code] = ask(method, path, key=key, params=query).json().get("code")
        outcomes["unauthenticated twice"] = ask(method, path, key="cytoray_x_y", params=query).json()["code"]
    ask.gate.is_closed = True
    stopped = ask(method, path, params=query)
    ask.gate.is_closed = False
    outcomes["draining"] = stopped.json()["code"] if template != "/healthz" else "draining"
    expected = {name: name.partition(" ")[0] for name in outcomes}
    if template in ("/version", "/v1/model", "/v1/models", "/v1/models/{model}"):  # for keys of any scope
        expected["forbidden"] = outcomes["forbidden"]
    assert outcomes == expected


@pytest.mark.parametrize(("method", "template"), OPERATIONS, ids=IDS)
def test_other_methods_slashes_and_parameters(ask: Asked, method: str, template: str) -> None:
    path, query = _path(template), {"offset": "0"} if method == "PUT" else {}
    allowed = sorted(other for other, known in OPERATIONS if known == template)
    for other in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} - set(allowed):
        refused = ask(other, path, params=query)
        assert (refused.status_code, refused.headers["allow"]) == (405, ", ".join(allowed))
    slash = ask(method, f"{path}/", params=query, content=b"{}", headers={"Content-Type": JSON})
    is_below_models = template.startswith("/v1/models/{model}/")  # whose names may have a slash
    assert slash.status_code == (405 if is_below_models else 404)
    if template.startswith("/v1/") and not template.startswith("/v1/webhooks"):
        for parameters in ([*query.items(), ("surplus", "1")], [*query.items(), *[("model", "tiny")] * 2]):
            refused = ask(method, path, params=parameters, content=b"{}", headers={"Content-Type": JSON})
            assert (refused.status_code, refused.json()["code"]) == (400, "malformed_payload")


TASKS = [(name, of_model) for name in task_endpoints() for of_model in (False, True)]


@pytest.mark.parametrize(("name", "of_model"), TASKS)
def test_what_a_task_refuses(ask: Asked, name: str, of_model: bool) -> None:
    path = f"/v1/models/tiny/{name}" if of_model else f"/v1/{name}"
    about_cells = "cells" in task_endpoints()[name].example
    as_json = {"Content-Type": JSON}
    body = json.dumps(CELLS if about_cells else task_endpoints()[name].example).encode()
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "not JSON": ({"content": b"{"}, "malformed_payload"),
        "another type": ({"content": body, "headers": {"Content-Type": "text/csv"}}, "unsupported_media_type"),
        "no type": ({"content": body, "headers": {"Content-Type": ""}}, "unsupported_media_type"),
        "another encoding": (
            {"content": body, "headers": as_json | {"Content-Encoding": "br"}},
            "unsupported_media_type",
        ),
        "not that encoding": (
            {"content": body, "headers": as_json | {"Content-Encoding": "gzip"}},
            "malformed_payload",
        ),
        "another answer": ({"content": body, "headers": as_json | {"Accept": "image/png"}}, "not_acceptable"),
        "two types": (
            {"content": body, "headers": [("Content-Type", JSON), ("Content-Type", "application/x-npz")]},
            "malformed_payload",
        ),
        "another model": ({"content": body[:-1] + b', "model": "x"}', "headers": as_json}, "unknown_model"),
        "options beside JSON": ({"content": body, "params": {"matrix": "X"}, "headers": as_json}, "malformed_payload"),
    }
    if of_model:
        cases["another model"] = (cases["another model"][0], "malformed_payload")
        cases["two models"] = ({"content": body, "params": {"model": "x"}, "headers": as_json}, "malformed_payload")
    model_has_it = name in ("embed", "annotate", "genes")
    for case, (options, code) in cases.items():
        given = options.get("headers", as_json)
        answer = ask_with(ask, path, options, given)
        late = code == "malformed_payload" and case in ("not JSON", "not that encoding") and not model_has_it
        expected = {"wrong_model"} if late and case == "not JSON" else {code}
        assert answer.json()["code"] in expected, case


def ask_with(ask: Asked, path: str, options: dict[str, Any], given: Any) -> httpx.Response:
    """Ask with headers that may be given twice."""
    pairs = [*(given.items() if isinstance(given, dict) else given), ("Authorization", f"Bearer {ask.key}")]
    rest = {name: value for name, value in options.items() if name != "headers"}
    return ask._runner.run(ask._client.request("POST", path, headers=pairs, **rest))


def test_names_of_models_in_paths(ask: Asked) -> None:
    for name in ("tiny", "tiny/7", "tiny%2F7", "%74iny"):
        assert ask("GET", f"/v1/models/{name}").json()["name"] == "tiny"
        assert ask("POST", f"/v1/models/{name}/embed", json=CELLS).headers["x-model"] == "tiny"
    for name in ("tinx", "tiny@champion", "tiny/8", "%00", "%FF", "tiny%20", "a" * 2_000, "../healthz", "tiny%2F7%2F"):
        for method, path in (("GET", f"/v1/models/{name}"), ("POST", f"/v1/models/{name}/embed")):
            found = ask(method, path, json=CELLS if method == "POST" else None)
            assert (found.status_code, found.json()["code"]) in {(404, "unknown_model"), (404, "not_found")}


def test_bodies_without_a_length_and_headers_given_twice(ask: Asked) -> None:
    body = json.dumps(CELLS).encode()

    async def chunks() -> Any:
        for start in range(0, len(body), 7):
            yield body[start : start + 7]

    assert ask("POST", "/v1/embed", content=chunks(), headers={"Content-Type": JSON}).status_code == 200
    pairs = [("Content-Type", JSON), ("Content-Type", JSON)]
    assert ask_with(ask, "/v1/embed", {"content": body}, pairs).status_code == 200  # they agree
    pairs = [("Content-Type", JSON), ("Accept", "image/png"), ("Accept", JSON)]
    assert ask_with(ask, "/v1/embed", {"content": body}, pairs).status_code == 200  # a list in two headers
    pairs = [("Content-Type", JSON), ("Authorization", "Bearer cytoray_x_y")]
    assert ask_with(ask, "/v1/embed", {"content": body}, pairs).json()["code"] == "unauthenticated"
    pairs = [("Content-Type", JSON), ("Authorization", f"Bearer {ask.key}"), ("Authorization", "Bearer cytoray_x_y")]
    refused = ask._runner.run(ask._client.request("POST", "/v1/embed", headers=pairs, content=body))
    assert refused.json()["code"] == "unauthenticated"


def test_every_route_has_its_problems_in_the_closed_catalogue() -> None:
    for about in operations().values():
        for status, answer in responses_of(about).items():
            codes = codes_of(answer)
            assert bool(codes) == (status >= 400)
            assert all(CASES[code].status == status for code in codes)
        found = {code for answer in responses_of(about).values() for code in codes_of(answer)}
        assert found >= set(ANY) | (set(KEYED) if about["security"] else set())
        assert all(
            set(answer.get("content", {})) <= {PROBLEM_TYPE} for s, answer in responses_of(about).items() if s >= 400
        )
    enum = set(document()["components"]["schemas"]["Problem"]["properties"]["code"]["enum"])
    assert enum == {code for code, case in CASES.items() if case.status != 499}
    assert enum >= {
        code for about in operations().values() for a in responses_of(about).values() for code in codes_of(a)
    }
    assert Problem.model_fields.keys() == set(document()["components"]["schemas"]["Problem"]["required"])


def test_examples_are_valid_requests() -> None:
    examples = 0
    for about in operations().values():
        for media_type, media in about.get("requestBody", {}).get("content", {}).items():
            if "example" not in media:
                assert media["schema"].get("format") == "binary"
                continue
            examples += 1
            jsonschema.validate(media["example"], {**media["schema"], "components": document()["components"]})
            assert media_type == JSON
    assert examples == 2 * len(task_endpoints()) + 3
    for endpoint in task_endpoints().values():
        endpoint.request.model_validate_json(json.dumps(endpoint.example))


def test_the_check_of_answers_fails_for_what_is_not_documented() -> None:
    good = {"content-type": PROBLEM_TYPE, "x-request-id": "a", "x-problem-code": "not_found"}
    about = {"type": "t", "title": "t", "status": 404, "detail": "d", "instance": "/", "request_id": "a"}
    job = "/v1/jobs/j1"
    check("GET", job, 404, good, json.dumps({**about, "code": "not_found"}).encode())
    wrong: list[tuple[int, dict[str, str], bytes]] = [
        (418, good, b"{}"),
        (404, good | {"content-type": "text/plain"}, b"gone"),
        (404, good, json.dumps({**about, "code": "unknown_genes"}).encode()),
        (404, good, b"{}"),
        (404, {"content-type": PROBLEM_TYPE}, json.dumps({**about, "code": "not_found"}).encode()),
        (404, good | {"x-new": "1"}, json.dumps({**about, "code": "not_found"}).encode()),
        (200, {"content-type": JSON, "x-request-id": "a"}, b"{}"),
    ]
    for status, given, content in wrong:
        with pytest.raises(NotDocumented):
            check("GET", job, status, given, content)
    with pytest.raises(NotDocumented):
        check("PATCH", job, 405, good | {"allow": "GET"}, b"")
    with pytest.raises(NotDocumented):
        check("GET", "/v1/nothing", 200, good, b"{}")
