"""A tiny real bundle, a service around it, and ways to ask it, for the tests of the serving room."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx
import numpy as np
import pytest
import scipy.sparse as sp
import torch
import uvicorn
from documented import CHECKED
from prometheus_client import CollectorRegistry

with warnings.catch_warnings():  # importing Serve 2.60 uses a form of Field that pydantic 2.14 deprecates
    warnings.simplefilter("ignore", DeprecationWarning)
    import ray.serve  # noqa: F401

from cytoray.model.bundle import ModelBundle
from cytoray.model.config import ModelConfig
from cytoray.model.predictor import CellPredictor
from cytoray.model.transformer import ScGPT
from cytoray.serving.api import build_api
from cytoray.serving.batching.config import BatchingConfig
from cytoray.serving.config import Limits
from cytoray.serving.edge.config import EdgeConfig
from cytoray.serving.edge.guard import Guard
from cytoray.serving.edge.metrics import EdgeMetrics
from cytoray.serving.edge.middleware import Parts
from cytoray.serving.explorer.config import ExplorerConfig
from cytoray.serving.service import CellService
from cytoray.tasks.endpoint import ServedModel
from cytoray.tasks.messages import ModelInfo
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary
from tests.helpers.two_models import TwoModels

NUM_GENES = 40
GENES = tuple(f"GENE{number:02d}" for number in range(NUM_GENES))
MODEL = ModelInfo(name="tiny", version="7", digest="d" * 64)
LIMITS = Limits(max_cells=16, max_body_bytes=64 * 1024, max_nonzeros=400, min_gene_overlap=0.5, deadline_s=20.0)


@pytest.fixture(scope="session")
def build_bundle() -> Callable[..., ModelBundle]:
    """Build a seeded model whose parameters are jittered, so that labels and embeddings differ between cells."""

    def build(labels: Sequence[str] = ("B", "T", "NK")) -> ModelBundle:
        vocabulary = GeneVocabulary(GENES)
        config = ModelConfig(
            vocabulary_size=vocabulary.size,
            width=16,
            num_heads=4,
            feedforward_width=24,
            num_layers=2,
            dropout=0.0,
            num_labels=len(labels),
        )
        torch.manual_seed(0)
        model = ScGPT(config, pad_id=vocabulary.pad_id)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return ModelBundle(model.eval(), vocabulary, TokenizerConfig(max_length=24), tuple(labels), digest="d" * 64)

    return build


@pytest.fixture(scope="session")
def bundle(build_bundle: Callable[..., ModelBundle]) -> ModelBundle:
    """A bundle with three labels, which cells of ``make_counts`` do not all share."""
    return build_bundle()


@pytest.fixture(scope="session")
def build_service() -> Callable[..., CellService]:
    """Build a service around a bundle, with another predictor where a test wants to misbehave."""

    def build(
        bundle: ModelBundle, *, predictor: Any = None, batching: BatchingConfig | None = None, **limits: float
    ) -> CellService:
        predictor = predictor or CellPredictor(bundle, empty_cells="nan")
        changed = LIMITS.model_copy(update=limits)
        return CellService(ServedModel(bundle, predictor, MODEL), limits=changed, batching=batching or BatchingConfig())

    return build


@pytest.fixture(scope="session")
def one_by_one() -> BatchingConfig:
    """Batches of a single cell: every request that can be divided is."""
    return BatchingConfig(max_batch_tokens=1)


@pytest.fixture(scope="session")
def make_counts() -> Callable[..., sp.csr_matrix]:
    """Make counts over the 40 genes, of cells with different numbers of expressed genes, none without any."""

    def make(num_cells: int, *, seed: int = 0, fractional: bool = False) -> sp.csr_matrix:
        rng = np.random.default_rng(seed)
        dense = rng.poisson(1.0, (num_cells, NUM_GENES)).astype(np.float32)
        dense[:, 0] += 1
        dense[:, 1] *= np.float32(1.1 if fractional else 1)  # no dyadic fraction: only exact decimals bring it across
        return sp.csr_matrix(dense)

    return make


@pytest.fixture(scope="session")
def as_cells() -> Callable[[sp.csr_matrix], SparseCells]:
    """The oracle's way from counts to cells: gene k of the vocabulary has id k."""

    def convert(counts: sp.csr_matrix) -> SparseCells:
        rows = np.arange(counts.shape[0], dtype=np.uint64)
        return SparseCells(counts.indices.astype(np.int32), counts.data, counts.indptr.astype(np.int64), rows)

    return convert


@pytest.fixture(scope="session")
def as_request() -> Callable[..., dict[str, Any]]:
    """The request body for counts, written from the dense matrix."""

    def convert(counts: sp.csr_matrix, **members: Any) -> dict[str, Any]:
        rows = [(np.flatnonzero(row), row) for row in counts.toarray()]
        cells = [{"i": columns.tolist(), "v": row[columns].tolist()} for columns, row in rows]
        return {"genes": list(GENES), "cells": cells, **members}

    return convert


class Http:
    """The application around a service, asked without a network; its event loop lives from call to call."""

    def __init__(self, service: CellService, runner: asyncio.Runner) -> None:
        transport = httpx.ASGITransport(build_api(service), raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://test", event_hooks=CHECKED)
        self._runner = runner

    def get(self, route: str) -> httpx.Response:
        return self._runner.run(self._client.get(route))

    def ask(self, method: str, route: str, **options: Any) -> httpx.Response:
        return self._runner.run(self._client.request(method, route, **options))

    def post(self, route: str, **options: Any) -> httpx.Response:
        return self._runner.run(self._client.post(route, **options))


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    """An event loop to run coroutines in, one after the other."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def connect(runner: asyncio.Runner) -> Iterator[Callable[[CellService], Http]]:
    """Connect to the application around a service; errors come back as replies."""
    services: list[CellService] = []

    def connect(service: CellService) -> Http:
        services.append(service)
        return Http(service, runner)

    yield connect
    for service in services:
        runner.run(service.close())


@pytest.fixture
def http(
    bundle: ModelBundle, build_service: Callable[..., CellService], connect: Callable[[CellService], Http]
) -> Http:
    """The application around ``bundle``."""
    return connect(build_service(bundle))


@pytest.fixture
def post(http: Http) -> Callable[..., httpx.Response]:
    """``post(route, body)`` JSON or raw bytes to the application around ``bundle``."""

    def send(route: str, body: Any, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return http.post(route, content=content, headers={"Content-Type": "application/json", **headers})

    return send


@pytest.fixture
def listen() -> Iterator[Callable[..., str]]:
    """``listen(service)`` puts the application around a service behind uvicorn, in a thread; returns its URL."""
    stops: list[Callable[[], None]] = []

    def listen(
        service: CellService, *, config: EdgeConfig | None = None, explorer: ExplorerConfig | None = None
    ) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        parts = None
        if config is not None:
            parts = Parts(config, service.limits, EdgeMetrics(CollectorRegistry()), guard=Guard(config))
        server = uvicorn.Server(uvicorn.Config(build_api(service, edge=parts, explorer=explorer), log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()

        def stop() -> None:
            server.should_exit = True
            thread.join(20)
            listener.close()

        stops.append(stop)
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield listen
    for stop in stops:
        stop()


@pytest.fixture
def two(build_bundle: Callable[..., ModelBundle], runner: asyncio.Runner) -> Iterator[TwoModels]:
    """A service with the models blood and gut, which answer differently; gut has no labels."""
    gut = build_bundle(())
    gut.model.value_encoder.linear1.weight.data *= 2
    two = TwoModels({"blood": build_bundle(), "gut": gut}, runner, LIMITS)
    yield two
    runner.run(two.table.close())
