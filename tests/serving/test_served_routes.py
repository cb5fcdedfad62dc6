"""Every route of a service that is started as a user does: `make test-routes`.

They are called by the curl lines of docs/serving-routes.md. The answers are those that are computed offline; the Python
client and `cytoray query` give them too.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import httpx
import numpy as np
import pandas as pd
import planted_reference
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from documented import check_sync_answer, operations, responses_of, template_of
from full_model import BATCHES, GENES, PAGE_GENES, FullModel, batched, build_full_model
from planted_screen import NEW
from routes_page import Call, read_answer, run_page
from serve_process import CLI, Served, serve

import cytoray
from cytoray.api.genes import static_embeddings
from cytoray.model.bundle import save_bundle
from cytoray.model.predictor import CellPredictor
from cytoray.serving.client import Client
from cytoray.tasks.integration.model import IntegrationModel
from cytoray.tasks.networks.network import load_network

pytestmark = [pytest.mark.routes, pytest.mark.timeout(900)]
NUM_CELLS, SECRET, BATCH = 5, "of-the-webhook", "batch 1"


@dataclass(frozen=True)
class Ran:
    """A service, and what the page's calls got."""

    service: Served
    model: FullModel
    adata: anndata.AnnData
    folder: Path
    calls: list[Call]

    def answer(self, task: str) -> dict[str, Any]:
        """Return the answer to a task, which is the same of both of its routes."""
        found = read_answer(self.folder, f"{task}.json")
        of_model = read_answer(self.folder, f"of-model-{task}.json")
        assert found == of_model
        return found


def _cells() -> anndata.AnnData:
    """Cells of all genes of the model, most of them of the integration."""
    rng = np.random.default_rng(3)
    counts = rng.poisson(1.5, (NUM_CELLS, len(GENES))).astype(np.float32)
    obs = pd.DataFrame({"batch": [BATCH] * NUM_CELLS}, index=[f"c{row}" for row in range(NUM_CELLS)])
    return anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=list(GENES)))


def _members(adata: anndata.AnnData) -> str:
    """Return cells as the page has them in JSON."""
    rows = adata.X.toarray()
    cells = [
        {"id": name, "i": np.flatnonzero(row).tolist(), "v": row[row > 0].tolist()}
        for name, row in zip(adata.obs_names, rows, strict=True)
    ]
    text = json.dumps({"genes": list(adata.var_names), "cells": cells}, separators=(",", ":"))
    return text[1:-1]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    folder = tmp_path_factory.mktemp("routes")
    model = build_full_model(folder)
    save_bundle(planted_reference.build_bundle(genes=GENES, labels=()), folder / "plain")  # without a classifier
    (folder / "secret").write_text(SECRET)
    adata = _cells()
    adata.write_h5ad(folder / "cells.h5ad")
    models = [{"name": "blood", "model_uri": str(model.bundle)}, {"name": "gut", "model_uri": str(folder / "plain")}]
    with serve(folder, models=models, rollout={"webhook_secret_file": str(folder / "secret")}) as service:
        work = folder / "work"
        work.mkdir()
        variables = {"URL": service.url, "MODEL": "blood", "CYTORAY_API_KEY": service.key, "WEBHOOK_SECRET": SECRET}
        page = '"genes": ["CD3D", "CD3E", "IL7R", "LYZ"], "cells": [{"id": "a", "i": [0, 1, 2], "v": [3, 2, 5]}]'
        other = {page: _members(adata), '\\"b1\\"': f'\\"{BATCH}\\"'}
        calls = run_page(work, variables | {"CELLS": str(folder / "cells.h5ad")}, replace=other)
        yield Ran(service, model, adata, work, calls)
    assert "Traceback" not in service.log.read_text()
    assert service.key not in service.log.read_text()


def test_every_route_was_called_and_answered_as_documented(ran: Ran) -> None:
    called = set()
    for call in ran.calls:
        template = template_of(call.path)
        if template is None:
            assert call.path == "/openapi.json"
            continue
        called.add((call.method, template))
        answer = responses_of(operations()[call.method, template])[call.status]
        assert call.status < 300, call
        assert "x-request-id" in call.headers
        media_types = answer.get("content", {})
        given = call.headers.get("content-type", "")
        assert bool(media_types) == bool(given)
        assert not given or given in media_types or given.partition(";")[0] in media_types
    assert called == set(operations())
    assert json.loads((ran.folder / "openapi.json").read_text())["paths"].keys() == {path for _, path in operations()}


def test_embeddings_and_labels_are_those_computed_offline(ran: Ran) -> None:
    bundle = ran.model.load()
    matrix = ran.adata.X
    mapping = bundle.vocabulary.map_genes(list(GENES))
    cells = mapping.apply(matrix.data, matrix.indices, matrix.indptr, np.arange(NUM_CELLS, dtype=np.uint64))
    offline = CellPredictor(bundle).predict(cells)
    embeddings = [cell["embedding"] for cell in ran.answer("embed")["cells"]]
    np.testing.assert_allclose(embeddings, offline.embeddings, atol=1e-5)
    labels = [cell["label"] for cell in ran.answer("annotate")["cells"]]
    assert offline.probabilities is not None
    assert labels == [offline.labels[best] for best in offline.probabilities.argmax(axis=1)]
    annotated = anndata.read_h5ad(ran.folder / "annotated.h5ad")
    assert list(annotated.obs["cytoray_label" if "cytoray_label" in annotated.obs else "label"]) == labels
    for name in ("embeddings.parquet", "result.parquet"):
        np.testing.assert_allclose(
            pq.read_table(ran.folder / name)["embedding"].to_pylist(), offline.embeddings, atol=1e-5
        )


def test_the_other_tasks_answer_as_offline(ran: Ran, tmp_path: Path) -> None:
    folder = ran.model.folder
    wanted = cytoray.ProteinModel.load(folder / "proteins").predict(ran.adata)
    proteins = ran.answer("proteins")
    np.testing.assert_allclose([cell["values"] for cell in proteins["cells"]], wanted.values, atol=1e-4)
    effects = cytoray.PerturbationModel.load(folder / "perturbations").predict([NEW])
    (effect,) = ran.answer("perturb")["perturbations"]
    deltas = dict(zip(effects.genes, effects.deltas[0], strict=True))
    assert len(effect["top_genes"]) == 3
    assert all(one["delta"] == pytest.approx(deltas[one["gene"]], abs=1e-5) for one in effect["top_genes"])
    edges = load_network(str(folder / "networks")).neighbourhood("IRF1", num=5)
    (near,) = ran.answer("networks")["genes"]
    assert [edge["target"] for edge in near["targets"]] == list(edges[edges["tf"] == "IRF1"]["target"])
    kept = IntegrationModel.load(folder / "integration")
    integrated = [cell["embedding"] for cell in ran.answer("integrate")["cells"]]
    np.testing.assert_allclose(integrated, kept.transform(batched(ran.adata)), atol=1e-3)
    static = static_embeddings(ran.model.load())
    genes = ran.answer("genes")["genes"]
    np.testing.assert_allclose([gene["embedding"] for gene in genes], static.loc[["CD3D", "LYZ"]].to_numpy(), atol=1e-6)
    command = [*CLI, "reference", "query", str(ran.model.bundle), "--data", str(folder / "cells.h5ad")]
    subprocess.run([*command, "--out", str(tmp_path / "mapped.json")], check=True, capture_output=True, timeout=300)
    mapped = json.loads((tmp_path / "mapped.json").read_text())["cells"]
    assert [cell["label"] for cell in ran.answer("map")["cells"]] == [cell["label"] for cell in mapped]
    assert BATCHES.n_obs > 0
    assert set(PAGE_GENES) <= set(GENES)


def test_the_client_and_query_give_the_same(ran: Ran, tmp_path: Path) -> None:
    wanted = [cell["embedding"] for cell in ran.answer("embed")["cells"]]
    with Client(ran.service.url, key=ran.service.key) as client:
        np.testing.assert_allclose(client.query(ran.adata, "embed").obsm["X_cytoray"], wanted, atol=1e-5)
        job = client.submit_job(ran.model.folder / "cells.h5ad", task="embed", format="parquet")
        job.result(tmp_path / "job.parquet")
    np.testing.assert_allclose(pq.read_table(tmp_path / "job.parquet")["embedding"].to_pylist(), wanted, atol=1e-5)
    command = [*CLI, "query", str(ran.model.folder / "cells.h5ad"), "--url", ran.service.url, "--task", "embed"]
    environment = os.environ | {"CYTORAY_API_KEY": ran.service.key}
    subprocess.run(
        [*command, "--out", str(tmp_path / "out.h5ad")], check=True, capture_output=True, timeout=300, env=environment
    )
    np.testing.assert_allclose(anndata.read_h5ad(tmp_path / "out.h5ad").obsm["X_cytoray"], wanted, atol=1e-5)


def test_http_itself(ran: Ran) -> None:
    """What Serve's HTTP server and the edge do with unusual requests, which the application never sees as such."""
    hooks: Any = {"response": [check_sync_answer]}
    with httpx.Client(base_url=ran.service.url, headers=ran.service.headers, event_hooks=hooks, timeout=60) as client:
        for method in ("HEAD", "OPTIONS", "PATCH"):
            refused = client.request(method, "/v1/jobs")
            assert (refused.status_code, refused.headers["allow"]) == (405, "GET, POST")
        assert client.get("/v1/embed/").json()["code"] == "not_found"
        assert client.get("/v1/models/blood%2Funregistered").json()["name"] == "blood"
        assert client.get("/version", params={"surplus": "1"}).json()["pointer"] == "/surplus"
        with_range = client.get("/v1/jobs/j0/result", headers={"Range": "bytes=5-1"})
        assert with_range.json()["code"] == "not_found"
    body = b"{" + _members(ran.adata).encode() + b"}"
    lines = ("POST /v1/embed HTTP/1.1", "Host: x", f"Authorization: Bearer {ran.service.key}")
    head = "".join(f"{line}\r\n" for line in (*lines, "Content-Type: application/json"))
    expecting = f"{head}Content-Length: {len(body)}\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    first, rest = _exchange(ran, expecting.encode(), then=body)
    assert first == b"HTTP/1.1 100 Continue"
    assert b"HTTP/1.1 200 OK" in rest
    chunked = f"{head}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode()
    parts = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:1000], body[1000:]))
    assert _exchange(ran, chunked + parts + b"0\r\n\r\n")[0] == b"HTTP/1.1 200 OK"
    twice = f"{head}Content-Type: text/csv\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}".encode()
    assert b"malformed_payload" in _exchange(ran, twice)[1]
    for broken in (b"NONSENSE\r\n\r\n", f"{head}Content-Length: 2\r\nContent-Length: 3\r\n\r\n{{}}".encode()):
        assert _exchange(ran, broken)[0].startswith(b"HTTP/1.1 4")


def _exchange(ran: Ran, request: bytes, *, then: bytes = b"") -> tuple[bytes, bytes]:
    """Send bytes; returns the first line and the rest of what comes back, after ``then`` is sent."""
    host, port = ran.service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(request)
        answer = connection.makefile("rb")
        first = answer.readline().strip()
        connection.sendall(then)
        return first, answer.read()
