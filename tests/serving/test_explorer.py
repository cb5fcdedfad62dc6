"""The explorer's sessions: a file is sent in parts, read, answered and laid out; the page gets columns of numbers."""

from __future__ import annotations

import asyncio
import errno
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import httpx
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from cytoray.errors import CorpusError, RequestError
from cytoray.model.bundle import ModelBundle
from cytoray.model.predictor import CellPredictor, Predictions
from cytoray.serving.api import build_api
from cytoray.serving.edge.exchange import route_of
from cytoray.serving.edge.guard import OPEN
from cytoray.serving.edge.middleware import ROUTES
from cytoray.serving.explorer import answering, sessions, shifting
from cytoray.serving.explorer.cells import CellWriter, StoredCells
from cytoray.serving.explorer.config import DemoConfig, ExplorerConfig
from cytoray.serving.explorer.hub import Explorer
from cytoray.serving.explorer.layout_inputs import read_embeddings
from cytoray.serving.explorer.reading import read_file
from cytoray.serving.explorer.routes import add_explorer
from cytoray.serving.explorer.sessions import Session
from cytoray.serving.explorer.shifting import mean_places, moved_cells
from cytoray.serving.explorer.work import Worker
from cytoray.serving.service import CellService
from cytoray.tokens.cells import SparseCells

NUM_CELLS = 9  # fewer than UMAP takes: its compilation would take most of the time of these tests
GENES = tuple(f"GENE{number:02d}" for number in range(40))
LABELS = ("B", "T", "NK")
API = "/explorer/api"


class Page:
    """What the page does, without a browser."""

    def __init__(self, explorer: Explorer, service: CellService, runner: asyncio.Runner) -> None:
        api = build_api(service)
        add_explorer(api, explorer)
        transport = httpx.ASGITransport(api, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test")
        self.explorer, self.runner = explorer, runner

    def ask(self, method: str, route: str, **options: Any) -> httpx.Response:
        return self.runner.run(self.client.request(method, route, **options))

    def get(self, route: str, session: str = "") -> httpx.Response:
        return self.ask("GET", f"{API}/sessions/{session}{route}" if session else route)

    def send(self, content: bytes, *, name: str = "cells.h5ad", part: int = 10_000) -> str:
        opened = self.ask("POST", f"{API}/sessions", json={"name": name, "num_bytes": len(content)})
        assert opened.status_code == 201, opened.text
        session: str = opened.json()["id"]
        for offset in range(0, len(content), part):
            piece = content[offset : offset + part]
            reply = self.ask("PUT", f"{API}/sessions/{session}/file?offset={offset}", content=piece)
            assert reply.status_code == 200, reply.text
        return session

    def finish(self, session: str) -> dict[str, Any]:
        self.runner.run(self.explorer.wait(session))
        found: dict[str, Any] = self.get("", session).json()
        return found


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def build_page(
    bundle: ModelBundle, build_service: Any, loop: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Page]]:
    pages: list[tuple[Page, CellService, Path]] = []

    def build(**changes: Any) -> Page:
        service, folder = build_service(bundle), tmp_path_factory.mktemp("sessions")
        config = ExplorerConfig(**{"folder": str(folder), "demos": (), **changes})
        pages.append((Page(Explorer(service, config), service, loop), service, folder))
        return pages[-1][0]

    yield build
    for page, service, folder in pages:
        loop.run(page.explorer.close())
        loop.run(service.close())
        assert not [path for path in folder.rglob("*") if path.is_file()], "sessions are removed at stop"


@pytest.fixture
def page(build_page: Callable[..., Page]) -> Page:
    return build_page()


@dataclass(frozen=True)
class Ready:
    """A session that is done, asked for its contents."""

    page: Page
    id: str
    state: dict[str, Any]

    def get(self, route: str) -> httpx.Response:
        return self.page.get(route, self.id)

    def values(self, key: str, kind: str) -> np.ndarray:
        reply = self.get(f"/columns/{key}")
        assert reply.status_code == 200, reply.text
        return np.frombuffer(reply.content, kind)


@pytest.fixture(scope="module")
def ready(build_page: Callable[..., Page], counts: sp.csr_matrix, tmp_path_factory: pytest.TempPathFactory) -> Ready:
    page = build_page()
    content = as_h5ad(counts, tmp_path_factory.mktemp("made"), uns={"title": "mine"})
    session = page.send(content, name="my cells.h5ad")
    return Ready(page, session, page.finish(session))


@pytest.fixture(scope="module")
def counts() -> sp.csr_matrix:
    dense = np.random.default_rng(3).poisson(1.0, (NUM_CELLS, 40)).astype(np.float32)
    dense[:, 0] += 1
    return sp.csr_matrix(dense)


def as_h5ad(counts: sp.csr_matrix, folder: Path, **more: Any) -> bytes:
    obs = pd.DataFrame(
        {"donor": pd.Categorical(["a", "b", "a"] * (counts.shape[0] // 3)), "age": np.arange(counts.shape[0]) / 2},
        index=[f"cell{row}" for row in range(counts.shape[0])],
    )
    anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=list(GENES)), **more).write_h5ad(folder / "made.h5ad")
    return (folder / "made.h5ad").read_bytes()


@pytest.fixture(scope="module")
def offline(bundle: ModelBundle, as_cells: Any, counts: sp.csr_matrix) -> Predictions:
    """The same answers by the model alone."""
    return CellPredictor(bundle, empty_cells="nan").predict(as_cells(counts))


def test_a_file_becomes_columns_places_and_downloads(ready: Ready, counts: sp.csr_matrix, offline: Predictions) -> None:
    state = ready.state
    assert (state["stage"], state["num_cells"], state["name"]) == ("ready", NUM_CELLS, "my cells.h5ad"), state
    assert {finding["title"] for finding in state["findings"]} == {"Cells", "Values", "Genes"}
    assert "demo_uri" not in state
    columns = {(column["group"], column["part_of"], column["name"]): column for column in state["columns"]}

    assert offline.probabilities is not None
    wanted = [LABELS[best] for best in offline.probabilities.argmax(axis=1)]
    label = columns["annotate", "", "label"]
    codes = ready.values(label["key"], "<u2")
    assert [label["categories"][code] for code in codes] == wanted
    assert label["counts"] == sorted((wanted.count(name) for name in label["categories"]), reverse=True)
    for number, name in enumerate(LABELS):
        found = ready.values(columns["annotate", "probabilities", name]["key"], "<f4")
        np.testing.assert_allclose(found, offline.probabilities[:, number], atol=1e-6)

    donor = columns["obs", "", "donor"]
    assert (donor["categories"], donor["counts"]) == (["a", "b"], [6, 3])
    np.testing.assert_array_equal(ready.values(columns["obs", "", "age"]["key"], "<f4"), np.arange(9) / 2)
    totals = np.asarray(counts.sum(axis=1)).ravel()
    np.testing.assert_array_equal(ready.values(columns["quality", "", "Counts per cell"]["key"], "<f4"), totals)
    places = ready.values("layout.pca", "<f4").reshape(-1, 2)
    assert state["layouts"] == ["pca"]
    assert np.abs(places).max() == pytest.approx(1)

    assert set(ready.get("/genes").json()) == set(GENES)
    expression = np.frombuffer(ready.get("/genes/GENE07").content, "<f4")
    np.testing.assert_allclose(expression, np.log1p(counts.toarray()[:, 7] / totals * 1e4), rtol=1e-6)

    table = pd.read_csv(io.BytesIO(ready.get("/download/answers.csv").content))
    assert table["label"].tolist() == wanted
    assert table["cell"].tolist() == [f"cell{row}" for row in range(NUM_CELLS)]
    np.testing.assert_allclose(table["probabilities.T"], offline.probabilities[:, 1], atol=1e-6)
    assert {"pca_1", "pca_2"} <= set(table)


def test_an_h5ad_comes_back_with_its_counts_and_the_answers(
    ready: Ready, counts: sp.csr_matrix, offline: Predictions, tmp_path: Path
) -> None:
    reply = ready.get("/download/annotated.h5ad")
    assert "my%20cells.annotated.h5ad" in reply.headers["content-disposition"]
    (tmp_path / "back.h5ad").write_bytes(reply.content)
    back = anndata.read_h5ad(tmp_path / "back.h5ad")
    assert (counts != back.X).nnz == 0
    assert back.uns["title"] == "mine"
    assert back.uns["cytoray_model"]["version"] == "7"
    assert offline.probabilities is not None
    assert back.obs["cytoray_label"].tolist() == [LABELS[best] for best in offline.probabilities.argmax(axis=1)]
    assert back.obs["donor"].tolist()[:3] == ["a", "b", "a"]
    np.testing.assert_allclose(back.obsm["X_scGPT"], offline.embeddings, atol=1e-5)
    np.testing.assert_allclose(back.obsm["cytoray_probabilities"], offline.probabilities, atol=1e-6)
    assert list(back.uns["cytoray_probabilities_names"]) == list(LABELS)
    assert back.obsm["X_cytoray_pca"].shape == (NUM_CELLS, 2)


def test_a_cell_is_described_as_the_service_answers_it(ready: Ready, counts: sp.csr_matrix) -> None:
    found = ready.get("/cells/4").json()
    one = {"i": counts[4].indices.tolist(), "v": counts[4].data.tolist(), "id": "cell4"}
    body = {"genes": list(GENES), "cells": [one], "include_embedding": False}
    wanted = ready.page.ask("POST", "/v1/annotate", json=body).json()["cells"][0]
    assert found["answers"] == {"annotate": {"cell": wanted, "header": None}}
    assert found["top_genes"][0]["gene"] == GENES[int(counts[4].toarray().argmax())]
    assert ready.get("/cells/9").status_code == 404


def test_a_demo_needs_no_upload(build_page: Callable[..., Page], counts: sp.csr_matrix, tmp_path: Path) -> None:
    as_h5ad(counts, tmp_path)
    page = build_page(demos=(DemoConfig(name="Nine cells", uri=str(tmp_path / "made.h5ad")),))
    about = page.get(f"{API}/about").json()
    assert about["demos"] == [{"name": "Nine cells", "about": ""}]
    assert about["tasks"] == ["embed", "annotate", "genes"]
    session = page.ask("POST", f"{API}/sessions", json={"demo": "Nine cells"}).json()["id"]
    assert page.get("", session).json()["name"] == "Nine cells"
    assert page.ask("POST", f"{API}/sessions", json={"demo": "Ten"}).status_code == 404


def test_a_file_without_cells_is_a_failed_session_that_says_why(page: Page) -> None:
    state = page.finish(page.send(b"PK no cells" * 99, name="notes.txt"))
    assert state["stage"] == "failed"
    assert state["trouble"]["detail"].startswith("notes.txt: this looks like")
    assert state["trouble"]["remedy"]


def test_an_error_of_the_service_ends_a_session_and_is_logged(
    page: Page, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(worker: Worker, session: Session, *, uri: str, owner: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Worker, "run", fail)
    session = page.send(b"anything")
    page.runner.run(asyncio.wait([page.explorer._work[session]]))
    state = page.get("", session).json()
    assert (state["stage"], state["trouble"]["detail"]) == ("failed", "The service failed on this file.")
    assert f"session {session} of the explorer failed" in caplog.text


def test_a_file_of_genes_that_the_model_does_not_know_says_so(
    bundle: ModelBundle, counts: sp.csr_matrix, tmp_path: Path
) -> None:
    adata = anndata.AnnData(counts, var=pd.DataFrame(index=[f"XYZ{number}" for number in range(40)]))
    adata.write_h5ad(tmp_path / "upload")
    (tmp_path / "vocabulary.json").write_text(bundle.vocabulary.to_json())
    options = {"uri": str(tmp_path / "upload"), "name": "other.h5ad", "max_cells": 100}
    with pytest.raises(CorpusError, match=r"^other.h5ad: 0 of 40 genes"):
        read_file(tmp_path, options, lambda message: None)


def test_of_many_cells_a_sample_is_read(bundle: ModelBundle, counts: sp.csr_matrix, tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(as_h5ad(counts, tmp_path))
    (tmp_path / "vocabulary.json").write_text(bundle.vocabulary.to_json())
    (tmp_path / "columns").mkdir()
    messages: list[dict[str, Any]] = []
    read_file(tmp_path, {"uri": str(tmp_path / "upload"), "name": "a", "max_cells": 4}, messages.append)
    assert messages[-1]["num_cells"] == 4
    assert "4 of 9 cells are shown" in str(messages[-1]["findings"])
    cells = StoredCells.open(tmp_path / "cells")
    assert cells.names == [f"cell{row}" for row in cells.rows]
    np.testing.assert_array_equal(cells.totals, np.asarray(counts.sum(axis=1)).ravel()[cells.rows])
    wanted = np.log1p(counts.toarray()[cells.rows, 7] / cells.totals * 1e4)
    np.testing.assert_allclose(cells.expression(7), wanted, rtol=1e-6)


def test_parts_must_follow_one_another_and_fit(page: Page) -> None:
    session = page.ask("POST", f"{API}/sessions", json={"name": "a", "num_bytes": 10}).json()["id"]
    route = f"{API}/sessions/{session}/file"
    assert page.ask("PUT", f"{route}?offset=3", content=b"abc").json()["received"] == 0
    assert page.ask("PUT", f"{route}?offset=0", content=b"abc").status_code == 200
    assert page.ask("PUT", f"{route}?offset=3", content=b"a" * 8).status_code == 413
    assert page.get("", session).json()["received"] == 3


def test_sessions_are_bounded_aged_and_private(build_page: Callable[..., Page]) -> None:
    page = build_page(max_sessions=2, max_file_bytes=100, max_age_s=60.0)

    def opened(size: int = 10) -> httpx.Response:
        return page.ask("POST", f"{API}/sessions", json={"name": "../../a", "num_bytes": size})

    assert opened(101).json()["code"] == "too_large"
    first, second = opened().json(), opened().json()
    assert first["name"] == "a"
    assert opened().json()["code"] == "too_many_sessions"
    assert page.ask("DELETE", f"{API}/sessions/{first['id']}").status_code == 204
    assert page.get("", first["id"]).json()["detail"].startswith("This session does not exist")
    third = opened().json()
    (folder,) = Path(page.explorer.config.folder).rglob(second["id"])
    assert folder.stat().st_mode & 0o077 == 0
    os.utime(folder, (0, 0))
    assert opened().status_code == 201
    assert page.get("", second["id"]).status_code == 404
    assert page.get("", third["id"]).status_code == 200
    assert page.get("/columns/..%2F..%2Fstate.json", third["id"]).status_code == 404


def test_the_page_is_served_with_a_policy_that_allows_its_own_files_only(page: Page) -> None:
    reply = page.get("/")
    assert reply.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert page.ask("GET", "/", headers={"If-None-Match": reply.headers["etag"]}).status_code == 304
    assert page.get("/assets/explorer.js").status_code == 200
    assert page.get("/assets/passwd").json()["code"] == "not_found"


def test_a_perturbation_moves_cells_by_the_change_of_their_nearest_cells(tmp_path: Path) -> None:
    writer = CellWriter(tmp_path / "cells")
    dense = np.array([[4.0, 0.0, 6.0], [0.0, 5.0, 5.0]], np.float32)
    rows = sp.csr_matrix(dense)
    ids = np.arange(2, dtype=np.uint64)
    writer.add(SparseCells(rows.indices, rows.data, rows.indptr.astype(np.int64), ids))
    about = {"names": ["a", "b"], "rows": [0, 1], "values_are": "counts"}
    totals = dense.sum(axis=1).astype(np.float64)
    writer.finish(num_genes=3, totals=totals, genes=np.arange(3, dtype=np.int32), about=about)
    cells = StoredCells.open(tmp_path / "cells")
    moved = moved_cells(cells, [1, 0], np.array([1, 2]), np.array([-100.0, 0.5], np.float32))
    normalised = np.log1p(dense / totals[:, None] * 1e4)
    assert moved.gene_ids.tolist() == [2, 0, 2], "a gene whose expression would be negative has none"
    wanted = [normalised[1, 2] + 0.5, normalised[0, 0], normalised[0, 2] + 0.5]
    np.testing.assert_allclose(moved.values, wanted, rtol=1e-6)
    assert [cells.expression(gene).tolist() for gene in (0, 1)] == [
        pytest.approx([normalised[0, 0], 0]),
        pytest.approx([0, normalised[1, 1]]),
    ]
    known = np.eye(3, dtype=np.float32)[[0, 0, 1, 2]]
    places = np.array([[0, 0], [2, 0], [5, 5], [9, 9]], np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shifting, "NUM_NEIGHBOURS", 2)
        near = mean_places(known, places, np.array([[1, 0, 0], [np.nan] * 3], np.float32))
    assert near[0].tolist() == [1, 0]
    assert np.isnan(near[1]).all()


def test_with_keys_the_page_is_open_and_its_data_is_not() -> None:
    routes = {path: route_of(path, ROUTES) for path in ("/", "/assets/explorer.js", f"{API}/about", f"{API}/sessions")}
    assert {path for path, route in routes.items() if route in OPEN} == {"/", "/assets/explorer.js"}
    assert routes[f"{API}/sessions"] == "/explorer"


def test_a_busy_model_is_asked_again_in_smaller_chunks(
    ready: Ready, counts: sp.csr_matrix, tmp_path: Path, loop: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, asked = ready.page.explorer.service, []

    class Busy:
        served, limits = service.served, service.limits

        async def ask(self, endpoint: Any, question: Any, caller: Any) -> Any:
            asked.append(question.cells.num_cells)
            if len(asked) == 1:
                raise RequestError("busy", code="overloaded")
            if question.cells.num_cells > 4:
                raise RequestError("too long", code="deadline_exceeded")
            return await service.ask(endpoint, question, caller)

    monkeypatch.setattr(answering, "RETRY_S", 0.0)
    cells = ready.page.explorer.cells(ready.page.explorer.sessions.find(ready.id))
    group = [endpoint for endpoint in answering.cell_endpoints(service.served) if endpoint.name == "embed"]
    done: list[int] = []
    loop.run(answering.answer_cells(Busy(), group, cells, tmp_path, done.append))
    assert asked[:2] == [NUM_CELLS, NUM_CELLS]
    assert sum(done) == NUM_CELLS
    assert max(done) <= 4
    again = read_embeddings(tmp_path)
    np.testing.assert_allclose(again, read_embeddings(ready.page.explorer.sessions.find(ready.id).folder), atol=1e-6)


def test_a_full_disk_leaves_no_session_and_no_half_of_a_part(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytes(30_000)
    opened = page.ask("POST", f"{API}/sessions", json={"name": "a.h5ad", "num_bytes": len(content)}).json()["id"]
    before = len(list(page.explorer.sessions._folders()))

    class Full(io.BufferedWriter):
        def write(self, data: Any) -> int:
            super().write(data[:100])
            raise OSError(errno.ENOSPC, "No space left on device")

    def open_full(path: Path, mode: str = "r", **options: Any) -> Any:
        return Full(io.FileIO(path, "a")) if mode == "ab" else open(path, mode, **options)

    def fail(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(Path, "open", open_full)
        full.setattr(sessions, "replace_file", fail)
        reply = page.ask("PUT", f"{API}/sessions/{opened}/file?offset=0", content=content)
        assert (reply.status_code, reply.json()["code"]) == (507, "storage_full")
        reply = page.ask("POST", f"{API}/sessions", json={"name": "b.h5ad", "num_bytes": 10})
        assert (reply.status_code, reply.json()["code"]) == (507, "storage_full")
    assert len(list(page.explorer.sessions._folders())) == before
    assert page.get("", opened).json()["received"] == 0
    page.ask("DELETE", f"{API}/sessions/{opened}")
