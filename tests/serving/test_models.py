"""Several models in one service: which one answers, what is said about each, and which one is not ready."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cytoray.model.predictor import CellPredictor
from cytoray.serving.config import AppArgs
from cytoray.serving.edge.config import EdgeConfig
from cytoray.serving.edge.keys import Allowance, create_key
from cytoray.serving.sending import check_cells, encode_stream
from tests.helpers.two_models import TwoModels
from tests.serving.conftest import GENES

JSON = {"content-type": "application/json"}
ARROW = {"content-type": "application/vnd.apache.arrow.stream"}


def _embeddings(answer: Any) -> Any:
    assert answer.status_code == 200, answer.text
    return np.array([cell["embedding"] for cell in answer.json()["cells"]], np.float32)


def test_each_model_gives_its_offline_answers_however_it_is_named(
    two: TwoModels, make_counts: Any, as_cells: Any, as_request: Any
) -> None:
    counts = make_counts(3)
    body = as_request(counts)
    cells = check_cells(GENES, counts)
    stream = encode_stream(cells, range(3))
    with pa.ipc.open_stream(stream) as reader:
        batch = reader.read_next_batch()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema.with_metadata({"model": "gut"})) as writer:
        writer.write_batch(batch)
    offline = {name: CellPredictor(bundle).predict(as_cells(counts)).embeddings for name, bundle in two.bundles.items()}
    assert np.abs(offline["blood"] - offline["gut"]).max() > 0.01
    packed = gzip.compress(json.dumps({**body, "model": "gut"}).encode())
    answers = {"accept": "application/json"}
    ways: list[tuple[str, str, dict[str, Any]]] = [
        ("blood", "/v1/embed", {"json": body}),
        ("blood", "/v1/models/blood@champion/embed", {"json": body}),
        ("blood", "/v1/embed", {"json": {"model": "blood/3", **body}}),
        ("gut", "/v1/models/gut/embed", {"json": body}),
        ("gut", "/v1/models/gut/1/embed", {"json": body}),
        ("gut", "/v1/embed?model=gut", {"json": body}),
        ("gut", "/v1/embed", {"json": {**body, "model": "gut"}}),
        ("gut", "/v1/embed", {"content": packed, "headers": {**JSON, "content-encoding": "gzip"}}),
        ("gut", "/v1/embed?model=gut", {"content": stream, "headers": ARROW | answers}),
        ("gut", "/v1/embed", {"content": sink.getvalue().to_pybytes(), "headers": ARROW | answers}),
        ("gut", "/v1/embed", {"content": encode_stream(cells, range(3), model="gut"), "headers": ARROW | answers}),
    ]
    for name, route, options in ways:
        answer = two.ask(route, **options)
        np.testing.assert_allclose(_embeddings(answer), offline[name], atol=1e-5, err_msg=f"{route} {name}")
        assert (answer.json()["model"]["name"], answer.headers["x-model"]) == (name, name)
        assert answer.headers["x-model-version"] == two.services[name].model.version
    assert two.ask("/v1/genes?model=gut", json={"genes": [GENES[0]]}).json()["model"]["name"] == "gut"
    assert two.ask("/v1/models/gut/annotate", json=body).json()["code"] == "no_labels"


@pytest.mark.parametrize("route", ["/v1/models/liver/embed", "/v1/embed?model=liver", "/v1/models/blood@old/embed"])
def test_an_unknown_model_is_a_404_that_lists_the_known_ones(
    two: TwoModels, route: str, make_counts: Any, as_request: Any
) -> None:
    answer = two.ask(route, json=as_request(make_counts(1)))
    assert (answer.status_code, answer.json()["code"], answer.json()["known"]) == (
        404,
        "unknown_model",
        ["blood", "gut"],
    )


def test_one_request_asks_one_model(two: TwoModels, make_counts: Any, as_request: Any) -> None:
    body = as_request(make_counts(1))
    both = two.ask("/v1/models/gut/embed?model=blood", json=body)
    assert (both.status_code, both.json()["pointer"]) == (400, "/model")
    assert "'gut' in its path and 'blood' in its query" in both.json()["detail"]
    escaped = json.dumps(body)[:-1] + ', "\\u006dodel": "gut"}'
    hidden = two.ask("/v1/embed", content=escaped.encode(), headers=JSON)
    assert (hidden.status_code, hidden.json()["pointer"]) == (400, "/model")
    nested = {**body, "cells": [{**body["cells"][0], "model": "gut"}]}
    assert two.ask("/v1/embed", json=nested).json()["code"] == "malformed_payload"
    assert two.ask("/v1/embed", json={**body, "model": "liver"}).json()["code"] == "unknown_model"
    assert two.ask("/v1/embed", json={**body, "model": 3}).json()["code"] == "malformed_payload"


def test_the_models_are_described(two: TwoModels) -> None:
    blood, gut = two.get("/v1/models").json()["models"]
    assert [one["name"] for one in (blood, gut)] == ["blood", "gut"]
    assert (blood["alias"], blood["version"], blood["default"], gut["alias"], gut["default"]) == (
        "champion", "3", True, None, False,
    )  # fmt: skip
    assert (blood["num_labels"], gut["num_labels"], gut["embedding_width"]) == (3, 0, 16)
    assert "annotate" in blood["tasks"]
    assert "annotate" not in gut["tasks"]
    assert blood["vocabulary_digest"] == gut["vocabulary_digest"] == two.bundles["gut"].vocabulary.digest()
    assert two.get("/v1/models/gut").json() == two.get("/v1/models/gut/1").json() == gut
    assert two.get("/v1/models/liver").json()["code"] == "unknown_model"
    assert two.get("/version?model=gut").json()["model"]["name"] == "gut"


def test_readiness_and_health_name_the_model_that_fails(two: TwoModels, runner: asyncio.Runner) -> None:
    assert two.get("/readyz").json()["models"] == ["blood", "gut"]
    runner.run(two.services["gut"].close())
    answer = two.get("/readyz")
    assert (answer.status_code, answer.json()["code"]) == (503, "model_not_ready")
    assert "Model gut:" in answer.json()["detail"]
    assert [one["ready"] for one in two.get("/v1/models").json()["models"]] == [True, False]
    with pytest.raises(Exception, match="Model gut:"):
        runner.run(two.table.check(timeout_s=10))


def test_metrics_are_marked_with_the_model(two: TwoModels, make_counts: Any, as_request: Any) -> None:
    two.ask("/v1/models/gut/embed", json=as_request(make_counts(2)))
    text = two.get("/metrics").text
    assert 'cytoray_batcher_cells_total{model="gut",process="service"} 2.0' in text
    assert 'cytoray_batcher_cells_total{model="blood",process="service"} 0.0' in text
    assert text.count("cytoray_build_info{") == 2


def test_a_key_may_be_for_some_models_and_needs_the_scope_of_the_task(
    two: TwoModels, tmp_path: Any, make_counts: Any, as_request: Any
) -> None:
    file = tmp_path / "keys.json"
    allowance = Allowance(scopes=("embed",), models=("gut",))
    key, _ = create_key(file, owner="lab", allowance=allowance, days=None)
    secured = {"config": EdgeConfig(keys_file=str(file)), "headers": {"authorization": f"Bearer {key}"}}
    body = as_request(make_counts(1))
    assert two.ask("/v1/models/gut/embed", json=body, **secured).status_code == 200
    for route in ("/v1/embed", "/v1/models/blood/embed", "/v1/models/gut/annotate"):
        answer = two.ask(route, json=body, **secured)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), route
    assert two.ask("/v1/embed?model=liver", json=body, **secured).json()["known"] == ["gut"]
    listed = two.ask("/v1/models", method="GET", **secured).json()["models"]
    assert [one["name"] for one in listed] == ["gut"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "one of model_uri .* and models"),
        ({"model_uri": "a", "models": [{"name": "a", "model_uri": "a"}]}, "one of model_uri .* and models"),
        (
            {"models": [{"name": "a", "model_uri": "a"}, {"name": "a", "model_uri": "b"}]},
            "name a is given more than once",
        ),
        ({"models": [{"name": "a/b", "model_uri": "a"}]}, "pattern"),
        ({"models": [{"name": "a", "model_uri": "models:/a@champion"}]}, "tracking.uri is required"),
        ({"models": [{"name": "a", "model_uri": "a", "num_cpu": 1}]}, "Extra inputs"),
    ],
)
def test_mistakes_about_models_are_refused(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AppArgs.model_validate(args)


def test_lists_of_plain_data_are_read_as_ray_passes_them() -> None:
    """Ray Serve validates ``args`` as YAML gives them, with lists."""
    models = [{"name": "a", "model_uri": "/a", "num_gpus": 0.5}, {"name": "b", "model_uri": "/b"}]
    demos = [{"name": "x", "uri": "/x"}]
    args = AppArgs.model_validate({"models": models, "explorer": {"demos": demos}})
    assert [model.name for model in args.models] == ["a", "b"]
    assert args.explorer.demos[0].uri == "/x"
    assert (args.reserved("num_gpus"), args.reserved("num_cpus")) == (0.5, 1.0)
    assert args.for_model(args.models[0]).num_gpus == 0.5
