"""Jobs over HTTP: the answers of requests and of offline, whole files, owners, limits, and what is refused."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import httpx
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from cytoray.model.bundle import save_bundle
from cytoray.serving.edge.config import EdgeConfig
from cytoray.serving.edge.keys import Allowance, create_key
from cytoray.serving.problems import CASES
from cytoray.stages.config import offline_config
from cytoray.stages.run import answer_offline


def _problem(response: httpx.Response, code: str) -> dict[str, Any]:
    found: dict[str, Any] = response.json()
    assert (response.status_code, found["code"]) == (CASES[code].status, code), response.text
    return found


def test_a_job_gives_the_answers_of_requests_and_of_the_command(
    serve_jobs: Callable[..., Any], cells_file: Path, tmp_path: Path
) -> None:
    service = serve_jobs()
    read = {"content": cells_file.read_bytes(), "headers": {"Content-Type": "application/x-h5ad"}}
    refused = service.ask("POST", "/v1/annotate", **read)
    _problem(refused, "use_jobs")
    assert refused.headers["link"] == '</v1/jobs>; rel="alternate"'

    upload = service.upload(cells_file)
    submitted = service.submit(task="annotate", input={"upload": upload}, parameters={"include_embedding": True})
    assert submitted.status_code == 202
    job = submitted.json()
    assert (job["state"], job["total"], submitted.headers["location"]) == ("queued", None, f"/v1/jobs/{job['id']}")
    _problem(service.ask("GET", f"/v1/jobs/{job['id']}/result"), "job_not_done")
    service.work()
    done = service.ask("GET", f"/v1/jobs/{job['id']}").json()
    assert (done["state"], done["done"], done["total"], done["num_empty"]) == ("succeeded", 21, 21, 1)
    assert done["model"]["digest"] == service.bundle.digest

    result = service.ask("GET", f"/v1/jobs/{job['id']}/result")
    assert result.headers["etag"] == f'"{done["result"]["sha256"]}"'
    table = pq.read_table(io.BytesIO(result.content)).to_pandas()
    assert table["obs_name"].tolist() == [f"c{row}" for row in range(21)]
    assert table["row"].tolist() == list(range(21))
    assert set(table["source"]) == {"cells.h5ad"}

    for start in (0, 10):  # the service takes 16 at a time
        few = tmp_path / f"{start}.h5ad"
        anndata.read_h5ad(cells_file)[start : start + 10].copy().write_h5ad(few)
        read["content"] = few.read_bytes()
        for row, cell in enumerate(service.ask("POST", "/v1/annotate", **read).json()["cells"], start):
            assert table["label"][row] == cell["label"]
            if cell["embedding"] is not None:
                np.testing.assert_allclose(table["embedding"][row], cell["embedding"], atol=1e-5)
                assert dict(table["probabilities"][row]) == pytest.approx(cell["probabilities"], abs=1e-5)

    save_bundle(service.bundle, tmp_path / "bundle")
    config = offline_config("annotate")(
        kind="annotate", model=f"{tmp_path}/bundle", data=({"uri": str(cells_file)},), out=f"{tmp_path}/out"
    )
    answer_offline(config)
    (part,) = (tmp_path / "out").glob("part-*")
    offline = pq.read_table(part).to_pandas()
    assert offline["label"].equals(table["label"])
    assert (offline["cell_id"] == table["cell_id"]).all()
    np.testing.assert_allclose(offline["probability"], table["probability"], atol=1e-5)


def test_results_are_written_in_the_format_that_was_asked_for(serve_jobs: Callable[..., Any], cells_file: Path) -> None:
    service = serve_jobs()
    upload = {"upload": service.upload(cells_file)}
    ids = {name: service.submit(task="embed", input=upload, format=name).json()["id"] for name in ("h5ad", "csv")}
    service.work()
    files = {name: service.ask("GET", f"/v1/jobs/{job}/result") for name, job in ids.items()}
    written = anndata.read_h5ad(io.BytesIO(files["h5ad"].content))
    table = pd.read_csv(io.BytesIO(files["csv"].content))
    assert files["csv"].headers["content-disposition"] == 'attachment; filename="cells.csv"'
    numbers = table[[f"embedding_{place}" for place in range(16)]].to_numpy()
    np.testing.assert_allclose(numbers, written.obsm["X_scGPT"], atol=1e-6)
    assert np.isnan(numbers[5]).all()
    assert table["obs_name"].tolist() == written.obs_names.tolist()
    part = service.ask("GET", f"/v1/jobs/{ids['csv']}/result", headers={"Range": "bytes=0-6"})
    assert (part.status_code, part.content) == (206, b'"cell_i')


def test_a_key_of_idempotency_stands_for_one_body(serve_jobs: Callable[..., Any], cells_file: Path) -> None:
    service = serve_jobs()
    body = {"task": "embed", "input": {"upload": service.upload(cells_file)}}
    send = {"headers": {"Idempotency-Key": "blood-1"}}
    first = service.ask("POST", "/v1/jobs", json=body, **send)
    again = service.ask("POST", "/v1/jobs", json=dict(reversed(body.items())), **send)
    assert (first.status_code, again.status_code) == (202, 200)
    assert first.json()["id"] == again.json()["id"]
    _problem(service.ask("POST", "/v1/jobs", json={**body, "format": "csv"}, **send), "idempotency_conflict")
    assert service.submit(**body).json()["id"] != first.json()["id"]
    assert len(service.ask("GET", "/v1/jobs").json()["jobs"]) == 2
    bad = service.ask("POST", "/v1/jobs", json=body, headers={"Idempotency-Key": "x" * 129})
    _problem(bad, "malformed_payload")


def test_a_job_belongs_to_its_owner_and_counts_in_the_quota(
    serve_jobs: Callable[..., Any], cells_file: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.json"
    allowances = {
        "ann": Allowance(scopes=("jobs",), cells_per_minute=1.0),
        "bob": Allowance(),
        "cy": Allowance(scopes=("embed",)),
    }
    tokens = {
        owner: create_key(keys, owner=owner, allowance=allowance, days=None)[0]
        for owner, allowance in allowances.items()
    }
    ann, bob, cy = ({"Authorization": f"Bearer {tokens[owner]}"} for owner in allowances)
    service = serve_jobs(edge=EdgeConfig(keys_file=str(keys)))
    upload = service.upload(cells_file, **ann)
    body = {"task": "embed", "input": {"upload": upload}}
    _problem(service.ask("POST", "/v1/jobs", json=body), "unauthenticated")
    _problem(service.ask("POST", "/v1/jobs", json=body, headers=cy), "forbidden")
    _problem(service.ask("POST", "/v1/uploads", content=b"x", headers=cy), "forbidden")
    _problem(service.ask("POST", "/v1/jobs", json=body, headers=bob), "not_found")
    job = service.ask("POST", "/v1/jobs", json=body, headers=ann).json()["id"]
    for method, end in (("GET", ""), ("DELETE", ""), ("GET", "/result"), ("GET", "/events")):
        _problem(service.ask(method, f"/v1/jobs/{job}{end}", headers=bob), "not_found")
    assert service.ask("GET", "/v1/jobs", headers=bob).json() == {"jobs": []}
    service.work()
    route = f"/v1/jobs/{job}"
    assert [service.ask("GET", route, headers=ann).headers["x-cells"] for _ in range(2)] == ["21", "0"]  # paid once
    _problem(service.ask("POST", "/v1/jobs", json=body, headers=ann), "rate_limited")  # the balance is negative
    assert service.ask("GET", f"{route}/result", headers=ann).status_code == 200


def test_a_job_is_cancelled_while_it_waits_and_deleted_when_it_has_ended(
    serve_jobs: Callable[..., Any], cells_file: Path, tmp_path: Path
) -> None:
    service = serve_jobs()
    upload = service.upload(cells_file)
    job = service.submit(task="embed", input={"upload": upload}).json()["id"]
    cancelled = service.ask("DELETE", f"/v1/jobs/{job}")
    assert (cancelled.status_code, cancelled.json()["state"]) == (202, "cancelling")
    service.work()
    assert service.ask("GET", f"/v1/jobs/{job}").json()["state"] == "cancelled"
    events = service.ask("GET", f"/v1/jobs/{job}/events")
    assert events.headers["content-type"].startswith("text/event-stream")
    _, event = events.text.strip().split("\n\n")
    name, data = event.split("\n")
    assert (name, json.loads(data.removeprefix("data: "))["id"]) == ("event: cancelled", job)
    assert service.ask("DELETE", f"/v1/jobs/{job}").status_code == 204
    _problem(service.ask("GET", f"/v1/jobs/{job}"), "not_found")
    assert not list((tmp_path / "jobs" / "jobs").iterdir())
    metrics = service.ask("GET", "/metrics").text
    (line,) = (line for line in metrics.splitlines() if line.startswith("cytoray_jobs_cancelled_total{"))
    assert line.endswith(" 1.0")


def test_what_is_old_is_deleted(serve_jobs: Callable[..., Any], cells_file: Path, tmp_path: Path) -> None:
    service = serve_jobs(keep_h=1e-9)
    upload = service.upload(cells_file)
    job = service.submit(task="embed", input={"upload": upload}).json()["id"]
    service.jobs.sweep()
    assert service.ask("GET", f"/v1/uploads/{upload}").status_code == 200  # a job needs it
    service.work()
    service.jobs.sweep()
    _problem(service.ask("GET", f"/v1/jobs/{job}"), "not_found")
    _problem(service.ask("GET", f"/v1/uploads/{upload}"), "not_found")
    assert not [path for path in (tmp_path / "jobs").rglob("*") if path.is_file()]


def test_limits_and_mistakes_are_answered_before_anything_is_done(
    serve_jobs: Callable[..., Any], cells_file: Path
) -> None:
    service = serve_jobs(max_per_owner=1, max_queued=1)
    given = {"upload": service.upload(cells_file)}
    assert "annotate" in _problem(service.submit(task="sort", input=given), "unknown_task")["detail"]
    _problem(service.submit(task="embed", input=given, model="other"), "unknown_model")
    _problem(service.submit(task="proteins", input=given), "wrong_model")
    unknown = service.submit(task="annotate", input=given, parameters={"genes": []})
    assert _problem(unknown, "malformed_payload")["pointer"] == "/parameters/genes"
    wrong = service.submit(task="annotate", input=given, parameters={"include_embedding": 1})
    assert _problem(wrong, "malformed_payload")["pointer"] == "/parameters/include_embedding"
    _problem(service.submit(task="embed", input={}), "malformed_payload")
    _problem(service.submit(task="embed", input={"corpus": "cells"}), "input_not_allowed")
    assert service.submit(task="embed", input=given).status_code == 202
    full = service.submit(task="embed", input=given)
    _problem(full, "overloaded")
    assert full.headers["retry-after"] == "60"
    service.jobs.config = service.jobs.config.model_copy(update={"max_queued": 5})
    _problem(service.submit(task="embed", input=given), "too_many_jobs")
    service.work()


def test_a_file_that_is_not_one_of_cells_fails_by_its_own_name(serve_jobs: Callable[..., Any], tmp_path: Path) -> None:
    service = serve_jobs()
    (tmp_path / "notes.h5ad").write_bytes(b"these are no cells" * 100)
    upload = service.upload(tmp_path / "notes.h5ad")
    job = service.submit(task="embed", input={"upload": upload}).json()["id"]
    service.work()
    failed = service.ask("GET", f"/v1/jobs/{job}").json()
    assert (failed["state"], failed["problem"]["code"]) == ("failed", "unreadable_input")
    assert failed["problem"]["detail"].startswith("notes.h5ad: this looks like")
    assert str(tmp_path) not in failed["problem"]["detail"]
    _problem(service.ask("GET", f"/v1/jobs/{job}/result"), "job_not_done")


def test_a_service_without_jobs_says_so(http: Any) -> None:
    _problem(http.post("/v1/jobs", json={}), "jobs_off")
