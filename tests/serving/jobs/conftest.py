"""A service that takes jobs, asked without a network; jobs are done by a thread instead of a process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anndata
import httpx
import pandas as pd
import pytest
from documented import CHECKED
from prometheus_client import CollectorRegistry

from cytoray.model.bundle import ModelBundle, compute_digest
from cytoray.model.predictor import CellPredictor
from cytoray.serving.api import build_api
from cytoray.serving.config import Limits
from cytoray.serving.confined.reader import readers
from cytoray.serving.edge.config import EdgeConfig
from cytoray.serving.edge.guard import Guard
from cytoray.serving.edge.metrics import EdgeMetrics
from cytoray.serving.edge.middleware import Parts
from cytoray.serving.jobs.config import JobsConfig, RunnerSettings
from cytoray.serving.jobs.hub import Jobs, JobsPlace
from cytoray.serving.jobs.runner import run_job
from cytoray.serving.service import CellService
from cytoray.tasks.endpoint import ServedModel
from cytoray.tasks.messages import ModelInfo

LIMITS = Limits(max_cells=16, max_body_bytes=256 * 1024, max_nonzeros=40_000, min_gene_overlap=0.5)


class ThreadWorker:
    """Does a job in a thread."""

    def __init__(self, settings: RunnerSettings) -> None:
        self._thread = threading.Thread(target=run_job, args=(settings,))
        self._thread.start()

    def is_running(self) -> bool:
        return self._thread.is_alive()

    def kill(self) -> None:
        self._thread.join()


@dataclass(frozen=True)
class JobService:
    """The routes of a service, and its jobs, which are looked after when ``work`` is called."""

    client: httpx.AsyncClient
    runner: asyncio.Runner
    jobs: Jobs
    bundle: ModelBundle

    def ask(self, method: str, route: str, **options: Any) -> httpx.Response:
        return self.runner.run(self.client.request(method, route, **options))

    def submit(self, **job: Any) -> httpx.Response:
        return self.ask("POST", "/v1/jobs", json=job)

    def upload(self, path: Path, **headers: str) -> str:
        response = self.ask(
            "POST", "/v1/uploads", params={"name": path.name}, content=path.read_bytes(),
            headers={"Content-Type": "application/x-h5ad", **headers},
        )  # fmt: skip
        assert response.status_code == 201, response.text
        return str(response.json()["id"])

    def work(self) -> None:
        """Look after the queue until it is empty."""
        while self.jobs.files.queue():
            self.jobs.keeper.look()
            for worker in list(self.jobs.keeper._workers.values()):
                worker.kill()


@pytest.fixture(scope="module", autouse=True)
def one_reader() -> Iterator[None]:
    """The process that reads files is kept for all jobs of a module."""
    with readers():
        yield


@pytest.fixture(scope="session")
def job_bundle(build_bundle: Callable[..., ModelBundle]) -> ModelBundle:
    """A model whose digest is its own: jobs keep a copy."""
    made = build_bundle()
    return replace(made, digest=compute_digest(made))


@pytest.fixture
def cells_file(make_counts: Callable[..., Any], tmp_path: Path) -> Path:
    """21 cells, one of them without genes, more than a request may have."""
    counts = make_counts(21).tolil()
    counts[5] = 0
    obs = pd.DataFrame(index=[f"c{row}" for row in range(21)])
    var = pd.DataFrame(index=[f"GENE{gene:02d}" for gene in range(counts.shape[1])])
    anndata.AnnData(counts.tocsr(), obs=obs, var=var).write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


@pytest.fixture
def serve_jobs(job_bundle: ModelBundle, tmp_path: Path) -> Iterator[Callable[..., JobService]]:
    """``serve_jobs(folder=…, edge=…, keys of JobsConfig)`` builds the application around a service that takes jobs."""
    services: list[JobService] = []
    stops: list[Callable[[], Any]] = []

    def serve(*, edge: EdgeConfig | None = None, store: str | None = None, **config: Any) -> JobService:
        info = ModelInfo(name="tiny", version="7", digest=job_bundle.digest)
        service = CellService(
            ServedModel(job_bundle, CellPredictor(job_bundle, empty_cells="nan"), info), limits=LIMITS
        )
        settings = JobsConfig(**{"folder": str(tmp_path / "jobs"), "rows_per_chunk": 8, **config})
        made: list[Jobs] = []

        def make(find: Any) -> Jobs:
            place = JobsPlace(settings, store, str(tmp_path / "models"), LIMITS.max_body_bytes)
            jobs = Jobs(place, find, start=ThreadWorker)
            jobs.begin = lambda: None  # the test looks after the queue
            made.append(jobs)
            return jobs

        parts = None
        if edge is not None:
            parts = Parts(edge, LIMITS, EdgeMetrics(CollectorRegistry()), guard=Guard(edge))
        api = build_api(service, edge=parts, make_jobs=make)
        client = httpx.AsyncClient(
            transport=httpx.ASGITransport(api, raise_app_exceptions=False), base_url="http://test", event_hooks=CHECKED
        )
        found = JobService(client, asyncio.Runner(), made[0], job_bundle)
        services.append(found)
        stops.append(service.close)
        return found

    yield serve
    for found, stop in zip(services, stops, strict=True):
        found.runner.run(stop())
        found.runner.close()
