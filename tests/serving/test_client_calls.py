"""Calls of the client that take several requests: AnnData in and out, failures on the way, one version for all."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import httpx
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from cytoray.errors import RequestError, ServingError
from cytoray.model.predictor import CellPredictor
from cytoray.serving.api import build_api
from cytoray.serving.client import AsyncClient, Client, IncompleteError
from cytoray.serving.client.pace import Pace

GENES = [f"GENE{number:02d}" for number in range(40)]


class Faulty(httpx.ASGITransport):
    """The application, and faults in front of it: ``fault(number, request)`` may answer, or raise, instead."""

    def __init__(self, app: Any, fault: Callable[[int, httpx.Request], httpx.Response | None]) -> None:
        super().__init__(app)
        self.requests: list[httpx.Request] = []
        self.in_flight = self.most_in_flight = 0
        self._fault = fault

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            found = self._fault(len(self.requests), request)
            return await super().handle_async_request(request) if found is None else found
        finally:
            self.in_flight -= 1


def problem(status: int, code: str, **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"code": code, "detail": f"About {code}."}, headers=headers)


@pytest.fixture
def faulty(bundle: Any, build_service: Any) -> Callable[..., tuple[Faulty, Any]]:
    """Build the application of a service with faults in front of it."""

    def build(fault: Callable[[int, httpx.Request], httpx.Response | None], **limits: Any) -> tuple[Faulty, Any]:
        service = build_service(bundle, **limits)
        return Faulty(build_api(service), fault), service

    return build


@pytest.fixture
def ask(faulty: Any) -> Callable[..., Any]:
    """Embed 37 cells, 8 in a request, through faults; returns embeddings and what was sent."""

    def run(fault: Any, counts: sp.csr_matrix, *, times: int = 1, limits: Any = None, **settings: Any) -> Any:
        async def calls() -> Any:
            transport, service = faulty(fault, **(limits or {}))
            settings.setdefault("cells_per_request", 8)
            async with AsyncClient("http://service", transport=transport, **settings) as client:
                resume, found = None, None
                for _ in range(times):
                    try:
                        found = await client.embed(GENES, counts, resume=resume)
                    except IncompleteError as error:
                        resume = error
            await service.close()
            if found is None and resume is not None:
                raise resume
            return found, transport

        return asyncio.run(calls())

    return run


@pytest.fixture
def wanted(bundle: Any, make_counts: Any, as_cells: Any) -> Any:
    return CellPredictor(bundle).predict(as_cells(make_counts(37))).embeddings


def test_passing_failures_are_retried_with_one_idempotency_key(ask: Any, make_counts: Any, wanted: Any) -> None:
    faults: dict[int, Any] = {
        1: httpx.ConnectError("refused"),
        2: httpx.ReadError("reset"),
        3: httpx.Response(500, text="Internal Server Error"),
        4: httpx.Response(502, text="Bad gateway"),
        6: problem(503, "replica_lost", **{"Retry-After": "0"}),
        8: problem(503, "overloaded", **{"Retry-After": "0"}),
        9: problem(429, "rate_limited", **{"Retry-After": "0"}),
        10: httpx.RemoteProtocolError("closed"),
    }

    def fault(number: int, request: httpx.Request) -> httpx.Response | None:
        found = faults.get(number)
        if isinstance(found, Exception):
            raise found
        return found

    found, transport = ask(fault, make_counts(37))
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    keys = [request.headers["idempotency-key"] for request in transport.requests]
    assert len(keys) == 5 + len(faults)
    assert len(set(keys)) == 5


def test_an_error_that_does_not_pass_is_raised_at_once(ask: Any, make_counts: Any) -> None:
    for code, status, kind in (("bad_values", 422, RequestError), ("internal", 500, ServingError)):
        sent: list[int] = []

        def fault(number: int, request: httpx.Request, code: str = code, status: int = status) -> httpx.Response:
            sent.append(number)  # noqa: B023
            return problem(status, code)

        with pytest.raises(kind, match=f"About {code}") as caught:
            ask(fault, make_counts(37))
        assert not isinstance(caught.value, IncompleteError)
        assert sent == [1]


def test_what_was_answered_is_kept_and_a_second_call_asks_for_the_rest(ask: Any, make_counts: Any, wanted: Any) -> None:
    lost = {3, 5}

    def fault(number: int, request: httpx.Request) -> httpx.Response | None:
        return problem(422, "bad_values") if number in lost else None

    with pytest.raises(IncompleteError, match=r"cells 16 to 23 .*of 37 cells were answered.*resume=error") as caught:
        ask(fault, make_counts(37), parallel=1)
    assert isinstance(caught.value, RequestError)
    assert caught.value.details["code"] == "bad_values"
    partial = caught.value.partial
    assert partial.rows == list(range(16))
    assert partial.missing == list(range(16, 37))
    kept = partial.table()
    np.testing.assert_allclose(np.stack(kept["embedding"].to_numpy()), wanted[:16], atol=1e-6)
    found, transport = ask(fault, make_counts(37), parallel=1, times=3)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert len(transport.requests) == 5 + len(lost)


def test_another_question_cannot_be_resumed(ask: Any, make_counts: Any, faulty: Any) -> None:
    with pytest.raises(IncompleteError) as caught:
        ask(lambda number, request: problem(422, "bad_values") if number > 1 else None, make_counts(37))

    async def resume() -> None:
        async with AsyncClient("http://service") as client:
            await client.embed(GENES, make_counts(38), resume=caught.value)

    with pytest.raises(RequestError, match="answers to other cells"):
        asyncio.run(resume())


def test_requests_that_are_too_large_are_made_smaller(ask: Any, make_counts: Any, wanted: Any) -> None:
    def fault(number: int, request: httpx.Request) -> httpx.Response | None:
        return problem(504, "deadline_exceeded") if number == 1 else None

    found, transport = ask(fault, make_counts(37), limits={"max_cells": 5}, cells_per_request=37, parallel=1)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert len(transport.requests) >= 2 + 37 / 5  # one too late, one too large


def versioned(response: httpx.Response, version: str) -> httpx.Response:
    answer = json.loads(response.content)
    answer["model"]["version"] = version
    return httpx.Response(200, json=answer)


@pytest.mark.parametrize("moved_at", [2, 5])
def test_one_version_answers_all_cells_when_the_alias_moves(
    ask: Any, make_counts: Any, wanted: Any, moved_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From some request on another version answers: the answers of the one before are asked for again."""

    async def handle(self: Any, request: httpx.Request) -> httpx.Response:
        response = await plain(self, request)
        number = len(self.requests)
        await response.aread()
        return versioned(response, "8" if number >= moved_at else "7")

    plain = Faulty.handle_async_request
    monkeypatch.setattr(Faulty, "handle_async_request", handle)
    found, transport = ask(lambda number, request: None, make_counts(37), wire="json", parallel=1)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert len(transport.requests) > 5


def test_versions_that_keep_changing_are_not_mixed(ask: Any, make_counts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def handle(self: Any, request: httpx.Request) -> httpx.Response:
        response = await plain(self, request)
        await response.aread()
        return versioned(response, str(len(self.requests)))

    plain = Faulty.handle_async_request
    monkeypatch.setattr(Faulty, "handle_async_request", handle)
    with pytest.raises(ServingError, match="changed its model while answering"):
        ask(lambda number, request: None, make_counts(37), wire="json", parallel=1)


def test_requests_in_flight_are_bounded_and_progress_is_reported(ask: Any, make_counts: Any) -> None:
    seen: list[tuple[int, int]] = []
    _, transport = ask(
        lambda number, request: None, make_counts(37), parallel=3, cells_per_request=2,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert 1 < transport.most_in_flight <= 3
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (37, 37)


def test_a_busy_service_gets_fewer_requests() -> None:
    async def limits() -> list[float]:
        pace = Pace(8)
        found = []
        for step in (lambda: pace.refused(0), lambda: pace.refused(0), pace.answered):
            step()
            found.append(pace.limit)
        for _ in range(100):
            pace.answered()
        return [*found, pace.limit]

    assert asyncio.run(limits()) == [4.0, 2.0, 2.5, 8.0]


def test_the_model_may_be_chosen(ask: Any, make_counts: Any, wanted: Any) -> None:
    for model in ("tiny", "tiny/7"):
        found, transport = ask(lambda number, request: None, make_counts(37), model=model)
        np.testing.assert_allclose(found, wanted, atol=1e-6)
        assert {request.url.path for request in transport.requests} == {f"/v1/models/{model}/embed"}
    with pytest.raises(RequestError, match=r"no model 'other'.*It has tiny") as caught:
        ask(lambda number, request: None, make_counts(2), model="other")
    assert caught.value.code == "unknown_model"


@pytest.fixture
def adata(make_counts: Any) -> anndata.AnnData:
    counts = make_counts(23)
    obs = pd.DataFrame({"donor": ["a"] * 23}, index=[f"cell{row}" for row in range(23)])
    found = anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=GENES))
    found.raw = found.copy()
    return found


def test_anndata_in_anndata_out(bundle: Any, build_service: Any, listen: Any, adata: Any, as_cells: Any) -> None:
    offline = CellPredictor(bundle).predict(as_cells(adata.X))
    with Client(listen(build_service(bundle)), cells_per_request=8) as client:
        found = client.annotate(adata)
        embedded = client.embed(found, matrix="raw.X")
        arrays = client.annotate_adata(adata)
    assert list(adata.obs) == ["donor"]
    assert not adata.obsm
    assert found.X is adata.X
    assert list(found.obs) == ["donor", "cytoray_label", "cytoray_probability"]
    assert tuple(found.obs["cytoray_label"]) == arrays.labels
    np.testing.assert_allclose(found.obsm["X_cytoray"], offline.embeddings, atol=1e-6)
    names = list(found.uns["cytoray_probabilities_names"])
    order = [names.index(name) for name in offline.labels]
    np.testing.assert_allclose(found.obsm["cytoray_probabilities"][:, order], offline.probabilities, atol=1e-6)
    assert found.uns["cytoray"]["annotate"]["model"] == {"name": "tiny", "version": "7", "digest": "d" * 64}
    assert set(embedded.uns["cytoray"]) == {"annotate", "embed"}
    assert set(found.uns["cytoray"]) == {"annotate"}


def test_the_answers_survive_a_file(bundle: Any, build_service: Any, listen: Any, adata: Any, tmp_path: Path) -> None:
    with Client(listen(build_service(bundle)), cells_per_request=8) as client:
        found = client.query(adata[3:].copy())
    found.write_h5ad(tmp_path / "answered.h5ad")
    again = anndata.read_h5ad(tmp_path / "answered.h5ad")
    assert list(again.obs["cytoray_label"]) == list(found.obs["cytoray_label"])
    assert again.uns["cytoray"]["annotate"]["model"]["version"] == "7"


@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
def test_a_backed_file_is_read_in_parts(
    bundle: Any, build_service: Any, listen: Any, adata: Any, tmp_path: Path, layout: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("cytoray.serving.sending._ROWS_OF_COLUMNS", 5)
    monkeypatch.setattr("cytoray.serving.sending._COLUMN_ENTRIES", 64)
    wide = anndata.AnnData({"csr": adata.X, "csc": adata.X.tocsc(), "dense": adata.X.toarray()}[layout], obs=adata.obs)
    wide.var["symbol"] = [*GENES[:39], "GENE00"]  # one gene twice: summed
    wide.write_h5ad(tmp_path / "cells.h5ad")
    sizes: list[int] = []
    encode = __import__("cytoray.serving.client.wire", fromlist=["x"]).encode_stream

    def watched(block: Any, rows: range, /, **members: Any) -> bytes:
        sizes.append(block.num_cells)
        return bytes(encode(block, rows, **members))

    monkeypatch.setattr("cytoray.serving.client.wire.encode_stream", watched)
    with Client(listen(build_service(bundle)), cells_per_request=7) as client:
        wanted = client.embed(wide, gene_names="symbol")
        backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
        found = client.embed(backed, gene_names="symbol")
    assert found is backed
    np.testing.assert_allclose(found.obsm["X_cytoray"], wanted.obsm["X_cytoray"], atol=1e-6)
    assert max(sizes) == 7
    backed.file.close()


def test_a_frame_has_genes_as_columns(bundle: Any, build_service: Any, listen: Any, make_counts: Any) -> None:
    counts = make_counts(3)
    with Client(listen(build_service(bundle))) as client:
        found = client.embed(pd.DataFrame(counts.toarray(), columns=GENES))
        np.testing.assert_array_equal(found, client.embed(GENES, counts))


def test_it_works_where_an_event_loop_runs_and_leaves_no_thread(
    bundle: Any, build_service: Any, listen: Any, make_counts: Any
) -> None:
    url = listen(build_service(bundle))

    async def cell_of_a_notebook() -> Any:
        with Client(url) as client:
            return client.embed(GENES, make_counts(2))

    assert asyncio.run(cell_of_a_notebook()).shape == (2, 16)
    assert not [thread for thread in threading.enumerate() if thread.name == "cytoray-client"]


def test_the_client_needs_neither_torch_nor_ray(tmp_path: Path) -> None:
    code = (
        "import sys\nsys.modules.update(torch=None, ray=None, mlflow=None, fastapi=None)\n"
        "from cytoray.serving.client import AsyncClient, Client\nfrom cytoray.tasks import task_endpoints\n"
        "task_endpoints()\nwith Client('http://127.0.0.1:9') as client:\n    client.map\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
