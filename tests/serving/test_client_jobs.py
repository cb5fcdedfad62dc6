"""Jobs through the client, against a small service that keeps the contract of docs/serving-jobs.md."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata
import httpx
import numpy as np
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from cytoray.errors import ConfigError, RequestError, ServingError
from cytoray.serving.client import AsyncClient, AsyncJob

PART_BYTES = 1_000
RESULT = bytes(range(256)) * 40


class Service:
    """Uploads and jobs in memory; ``lost`` requests (by number) are worked on, but not answered."""

    def __init__(self) -> None:
        self.uploads: dict[str, dict[str, Any]] = {}
        self.content: dict[str, bytes] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.by_key: dict[str, str] = {}
        self.polls = 0
        self.states = ["queued", "running", "succeeded"]
        self.digest = hashlib.sha256(RESULT).hexdigest()
        self.api = FastAPI()
        self.api.post("/v1/uploads", status_code=201)(self.open_upload)
        self.api.put("/v1/uploads/{name}")(self.put)
        self.api.post("/v1/jobs")(self.submit)
        self.api.get("/v1/jobs/{name}")(self.show)
        self.api.get("/v1/jobs/{name}/result")(self.result)
        self.api.delete("/v1/jobs/{name}", status_code=204)(self.delete)

    async def open_upload(self, request: Request) -> dict[str, Any]:
        about = await request.json()
        name = f"u{len(self.uploads)}"
        self.uploads[name] = {**about, "id": name, "received": 0, "part_bytes": PART_BYTES, "put_url": None}
        self.content[name] = b""
        return self.uploads[name]

    async def put(self, request: Request, name: str, offset: int) -> Response:
        upload = self.uploads[name]
        if offset != upload["received"]:
            return JSONResponse({"code": "wrong_offset", "detail": "No.", "received": upload["received"]}, 409)
        part = await request.body()
        assert 0 < len(part) <= PART_BYTES
        self.content[name] += part
        upload["received"] += len(part)
        return JSONResponse(upload)

    async def submit(self, request: Request) -> Response:
        key = request.headers["idempotency-key"]
        if key in self.by_key:
            return JSONResponse(self.jobs[self.by_key[key]])
        asked = await request.json()
        if asked["task"] == "nothing":
            return JSONResponse({"code": "unknown_task", "detail": "Unknown task."}, 422)
        name = f"j{len(self.jobs)}"
        self.by_key[key] = name
        self.jobs[name] = {**asked, "id": name, "state": "queued", "done": 0, "total": None, "problem": None}
        return JSONResponse(self.jobs[name], 202)

    async def show(self, name: str) -> dict[str, Any]:
        job = self.jobs[name]
        job["state"] = self.states[min(self.polls, len(self.states) - 1)]
        self.polls += 1
        job |= {"done": 5 * self.polls, "total": 15 if self.polls > 1 else None}
        if job["state"] == "succeeded":
            about = {"href": f"/v1/jobs/{name}/result", "num_bytes": len(RESULT), "sha256": self.digest}
            job["result"] = about
        if job["state"] == "failed":
            job["problem"] = {"code": "bad_values", "title": "Bad", "detail": "A value is negative."}
        return job

    async def result(self, request: Request, name: str) -> Response:
        first, last = (int(number) for number in request.headers["range"].removeprefix("bytes=").split("-"))
        return Response(RESULT[first : last + 1], 206)

    async def delete(self, name: str) -> Response:
        del self.jobs[name]
        return Response(status_code=204)


class Losing(httpx.ASGITransport):
    """Loses some answers after the service has done the work."""

    lost: frozenset[int] = frozenset()
    number = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.number += 1
        response = await super().handle_async_request(request)
        if self.number in self.lost:
            raise httpx.ReadError("reset")
        return response


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("cytoray.serving.client.jobs._POLL_S", 0.001)
    monkeypatch.setattr("cytoray.serving.client.jobs._DOWNLOAD_BYTES", 4_000)
    monkeypatch.setattr("cytoray.serving.client.connection._FIRST_PAUSE_S", 0.001)
    return


def connect(service: Service, *, lost: frozenset[int] = frozenset()) -> AsyncClient:
    transport = Losing(service.api)
    transport.lost = lost
    return AsyncClient("http://service", transport=transport)


@pytest.mark.usefixtures("quick")
def test_a_file_is_uploaded_and_its_result_downloaded_whatever_answers_are_lost(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(3_500)
    (tmp_path / "cells.h5ad").write_bytes(content)
    service, seen = Service(), []

    async def work() -> AsyncJob:
        async with connect(service, lost=frozenset((3, 6, 9, 12))) as client:
            job = await client.submit_job(tmp_path / "cells.h5ad", "embed", format="parquet", parameters={"a": 1})
            assert job.state == "queued"
            await job.wait(progress=lambda done, total: seen.append((done, total)))
            assert await job.result(tmp_path / "out.parquet") == tmp_path / "out.parquet"
            with pytest.raises(ConfigError, match="already exists"):
                await job.result(tmp_path / "out.parquet")
            return job

    job = asyncio.run(work())
    assert (tmp_path / "out.parquet").read_bytes() == RESULT
    assert list(service.content.values()) == [content]
    assert len(service.jobs) == 1
    assert service.jobs[job.id]["input"] == {"upload": "u0"}
    assert service.uploads["u0"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert seen[-1][1] == 15
    assert job.state == "succeeded"


@pytest.mark.usefixtures("quick")
def test_cells_may_be_an_anndata_a_uri_or_a_corpus(tmp_path: Path) -> None:
    service = Service()

    async def work() -> None:
        async with connect(service) as client:
            for cells in (anndata.AnnData(np.eye(3, dtype=np.float32)), "s3://bucket/cells/", {"corpus": "blood@2"}):
                await client.submit_job(cells)
            await (await client.job("j1")).cancel()
            with pytest.raises(ConfigError, match="is not a file"):
                await client.submit_job("missing.h5ad")
            with pytest.raises(RequestError, match="Unknown task"):
                await client.submit_job("s3://bucket/cells/", "nothing")

    asyncio.run(work())
    assert [job["input"] for job in service.jobs.values()] == [{"upload": "u0"}, {"corpus": "blood@2"}]
    (tmp_path / "cells.h5ad").write_bytes(service.content["u0"])
    assert anndata.read_h5ad(tmp_path / "cells.h5ad").shape == (3, 3)


@pytest.mark.usefixtures("quick")
def test_a_job_that_fails_or_is_damaged_raises(tmp_path: Path) -> None:
    service = Service()

    async def work() -> None:
        async with connect(service) as client:
            job = await client.submit_job("s3://bucket/cells/")
            service.digest = "0" * 64
            with pytest.raises(ServingError, match="another SHA-256"):
                await job.result(tmp_path / "out.h5ad")
            service.states, service.polls = ["running", "failed"], 0
            with pytest.raises(ServingError, match="A value is negative") as caught:
                await job.wait()
            assert caught.value.details["code"] == "bad_values"
            service.states, service.polls = ["running"], 0
            with pytest.raises(ServingError, match=r"not ended within 0 s.*continues"):
                await job.wait(timeout=0)

    asyncio.run(work())
    assert list(tmp_path.iterdir()) == []
