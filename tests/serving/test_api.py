"""What a client of the HTTP API sees: the offline numbers, who answered, and honest failures."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import jsonschema
import numpy as np
import pytest

from cytoray.errors import ModelError, ServingError
from cytoray.model.predictor import CellPredictor, Predictions
from cytoray.tasks.annotation.answers import AnnotateResponse
from cytoray.tasks.embedding.answers import EmbedResponse
from cytoray.tokens.cells import SparseCells


def _embeddings(answer: dict[str, Any]) -> np.ndarray:
    return np.array([cell["embedding"] for cell in answer["cells"]], np.float32)


def test_served_equals_offline(http: Any, bundle: Any, make_counts: Any, as_cells: Any, as_request: Any) -> None:
    counts = make_counts(12, fractional=True)
    offline = CellPredictor(bundle).predict(as_cells(counts))
    answer = http.post("/v1/annotate", json=as_request(counts)).json()
    same = partial(np.testing.assert_allclose, rtol=0, atol=1e-6)  # bitwise only for equal batches
    same(_embeddings(answer), offline.embeddings)
    probabilities = [[cell["probabilities"][name] for name in offline.labels] for cell in answer["cells"]]
    same(np.array(probabilities, np.float32), offline.probabilities)
    best = offline.probabilities.argmax(axis=1)
    assert len(set(best)) > 1  # else the next line would show nothing
    assert [cell["label"] for cell in answer["cells"]] == [offline.labels[column] for column in best]
    assert [cell["probability"] for cell in answer["cells"]] == [max(row) for row in probabilities]
    same(_embeddings(http.post("/v1/embed", json=as_request(counts)).json()), offline.embeddings)


def test_gene_order_unknown_genes_and_neighbours_do_not_matter(http: Any, make_counts: Any, as_request: Any) -> None:
    body = as_request(make_counts(6))
    straight = _embeddings(http.post("/v1/embed", json=body).json())
    genes, last = [*body["genes"][::-1], "NOPE"], len(body["genes"]) - 1
    flipped = [{"i": [last - i for i in cell["i"]] + [last + 1], "v": [*cell["v"], 9.0]} for cell in body["cells"]]
    answer = http.post("/v1/embed", json={"genes": genes, "cells": flipped}).json()
    np.testing.assert_allclose(_embeddings(answer), straight, atol=1e-6)
    assert answer["genes"] == {"matched": 40, "total": 41, "unknown": ["NOPE"]}
    alone = http.post("/v1/embed", json={"genes": genes, "cells": flipped[3:4]}).json()
    np.testing.assert_allclose(_embeddings(alone)[0], straight[3], atol=1e-6)


def test_explicit_zeros_are_no_expression(http: Any, make_counts: Any, as_request: Any) -> None:
    body = as_request(make_counts(1))
    cell = body["cells"][0]
    absent = sorted(set(range(40)) - set(cell["i"]))
    padded = {**body, "cells": [{"i": cell["i"] + absent, "v": cell["v"] + [0] * len(absent)}]}
    answers = [http.post("/v1/embed", json=request).json()["cells"] for request in (body, padded)]
    assert answers[0] == answers[1]


def test_who_answered(http: Any, make_counts: Any, as_request: Any) -> None:
    body = as_request(make_counts(2))
    body["cells"][1]["id"] = "AAACCTG-1"
    response = http.post("/v1/embed", json=body, headers={"X-Request-Id": "abc"})
    answer = response.json()
    assert answer["model"] == {"name": "tiny", "version": "7", "digest": "d" * 64}
    assert [cell["id"] for cell in answer["cells"]] == [None, "AAACCTG-1"]
    assert response.headers["x-model-version"] == "7"
    assert response.headers["x-request-id"] == "abc"
    parts = dict(part.split(";dur=") for part in response.headers["server-timing"].split(", "))
    assert parts.keys() == {"tok", "queue", "fwd"}
    assert all(float(milliseconds) >= 0 for milliseconds in parts.values())


def test_annotate_without_embeddings(http: Any, make_counts: Any, as_request: Any) -> None:
    answer = http.post("/v1/annotate", json=as_request(make_counts(2), include_embedding=False)).json()
    assert all(cell.keys() == {"id", "label", "probability", "probabilities"} for cell in answer["cells"])


def test_answers_and_requests_fit_the_published_schema(http: Any, make_counts: Any, as_request: Any) -> None:
    published = http.get("/openapi.json").json()
    request = as_request(make_counts(2))
    for route, kind in (("/v1/embed", EmbedResponse), ("/v1/annotate", AnnotateResponse)):
        answer = http.post(route, json=request)
        kind.model_validate_json(answer.content)
        operation = published["paths"][route]["post"]
        for part, instance in ((operation["requestBody"], request), (operation["responses"]["200"], answer.json())):
            schema = {**part["content"]["application/json"]["schema"], "components": published["components"]}
            jsonschema.validate(instance, schema)
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate({**instance, "surplus": 1}, schema)
    problem = {"$ref": "#/components/schemas/Problem", "components": published["components"]}
    jsonschema.validate(http.post("/v1/embed", json={}).json(), problem)


def test_probes_and_version(http: Any) -> None:
    assert http.get("/healthz").json() == {"status": "ok"}
    assert http.get("/readyz").json()["model"]["version"] == "7"
    about = http.get("/version").json()
    assert (about["labels"], about["embedding_width"]) == (["B", "T", "NK"], 16)
    assert about["limits"]["max_cells"] == 16
    assert http.get("/docs").status_code == 200


def test_not_ready_once_closed(bundle: Any, build_service: Any, connect: Any, runner: Any) -> None:
    service = build_service(bundle)
    http = connect(service)
    runner.run(service.close())
    response = http.get("/readyz")
    assert (response.status_code, response.json()["code"]) == (503, "model_not_ready")
    assert response.headers["retry-after"] == "1"


class _Faulty:
    """A predictor that does ``act`` on every cell but the first it ever sees, the canary."""

    def __init__(self, bundle: Any, act: Any) -> None:
        self.act = None
        self._real = CellPredictor(bundle)
        self._next = act

    def predict(self, cells: SparseCells) -> Predictions:
        if self.act is not None:
            self.act(cells)
        self.act = self._next
        return self._real.predict(cells)


def test_a_failing_model_is_a_500_that_tells_nothing(
    bundle: Any, build_service: Any, connect: Any, make_counts: Any, as_request: Any
) -> None:
    def fail(cells: SparseCells) -> None:
        raise ZeroDivisionError("the secret of the model")

    http = connect(build_service(bundle, predictor=_Faulty(bundle, fail)))
    response = http.post("/v1/embed", json=as_request(make_counts(1)), headers={"X-Request-Id": "abc"})
    assert (response.status_code, response.json()["code"], response.json()["request_id"]) == (500, "internal", "abc")
    assert "secret" not in response.text
    assert "ZeroDivision" not in response.text


def test_a_slow_model_is_a_504(
    bundle: Any, build_service: Any, connect: Any, make_counts: Any, as_request: Any
) -> None:
    release = threading.Event()
    slow = _Faulty(bundle, lambda cells: release.wait(20))
    http = connect(build_service(bundle, predictor=slow, deadline_s=0.05))
    response = http.post("/v1/embed", json=as_request(make_counts(1)))
    release.set()
    assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")


def test_health_is_a_forward_pass(bundle: Any, build_service: Any, runner: Any) -> None:
    faulty = _Faulty(bundle, None)
    service = build_service(bundle, predictor=faulty)
    runner.run(service.check(timeout_s=10))
    release = threading.Event()
    faulty.act = lambda cells: release.wait(200)
    with pytest.raises(ServingError, match="One cell took"):
        runner.run(service.check(timeout_s=0.05))
    runner.run(service.check(timeout_s=600))  # late, but a slow machine is no fault of the model
    release.set()
    faulty.act = None
    runner.run(service.check(timeout_s=10))
    weight = bundle.model.value_encoder.linear1.weight
    saved = weight.detach().clone()
    weight.data += 1.0  # a flipped bit would do
    with pytest.raises(ServingError, match="differently"):
        runner.run(service.check(timeout_s=10))
    weight.data[:] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        runner.run(service.check(timeout_s=10))
    weight.data[:] = saved
    runner.run(service.check(timeout_s=10))


def test_a_model_that_cannot_answer_is_never_ready(build_bundle: Any, build_service: Any) -> None:
    broken = build_bundle()
    broken.model.value_encoder.linear1.weight.data[:] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        build_service(broken)
