"""Uploads: in parts that may be sent again, verified, of bounded size; and past the service if the store is S3."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest


def _announce(service: Any, content: bytes, **members: Any) -> httpx.Response:
    body = {"name": "cells.h5ad", "num_bytes": len(content), **members}
    response: httpx.Response = service.ask("POST", "/v1/uploads", json=body)
    return response


def test_a_file_arrives_in_parts(serve_jobs: Callable[..., Any], cells_file: Path) -> None:
    service = serve_jobs()
    content = cells_file.read_bytes()
    upload = _announce(service, content, sha256=hashlib.sha256(content).hexdigest()).json()
    assert (upload["received"], upload["complete"], upload["put_url"]) == (0, False, None)
    assert upload["part_bytes"] == 256 * 1024  # as much as a request may have
    route, half = f"/v1/uploads/{upload['id']}", len(content) // 2
    assert service.ask("PUT", f"{route}?offset=0", content=content[:half]).json()["received"] == half
    twice = service.ask("PUT", f"{route}?offset=0", content=content[:half])
    assert (twice.status_code, twice.json()["code"], twice.json()["received"]) == (409, "wrong_offset", half)
    early = service.submit(task="embed", input={"upload": upload["id"]})
    assert (early.status_code, early.json()["code"]) == (409, "upload_incomplete")
    assert service.ask("GET", route).json()["received"] == half
    too_long = service.ask("PUT", f"{route}?offset={half}", content=content[half:] + b"x")
    assert (too_long.status_code, too_long.json()["code"]) == (413, "too_large")
    assert service.ask("PUT", f"{route}?offset={half}", content=content[half:]).json()["complete"]
    assert service.submit(task="embed", input={"upload": upload["id"]}).status_code == 202
    assert service.ask("DELETE", route).status_code == 204
    assert service.ask("GET", route).status_code == 404
    service.jobs.remove("", service.jobs.files.queue()[0])
    service.work()


def test_sizes_and_digests_are_checked(serve_jobs: Callable[..., Any], cells_file: Path) -> None:
    service = serve_jobs(max_upload_bytes=100, max_stored_bytes=150)
    assert _announce(service, b"x" * 101).json()["code"] == "too_large"
    upload = _announce(service, b"x" * 100, sha256="0" * 64).json()
    wrong = service.ask("PUT", f"/v1/uploads/{upload['id']}?offset=0", content=b"x" * 100)
    assert (wrong.status_code, wrong.json()["code"]) == (422, "wrong_digest")
    assert service.ask("GET", f"/v1/uploads/{upload['id']}").json()["received"] == 0
    assert _announce(service, b"x" * 51).json()["code"] == "too_large"
    assert _announce(service, b"x", name="").json()["pointer"] == "/name"
    assert service.ask("GET", "/v1/uploads/..%2F..%2Fetc").status_code == 404
    assert service.ask("POST", "/v1/uploads", content=b"", headers={"Content-Type": "text/plain"}).status_code == 400


def test_names_of_files_lead_nowhere(serve_jobs: Callable[..., Any], tmp_path: Path) -> None:
    service = serve_jobs()
    for name in ("../../evil", "/etc/passwd", "..", "a\x00b", "ü/ß.h5ad"):
        record = service.jobs.uploads.find("", _announce(service, b"x", name=name).json()["id"])
        path = Path(service.jobs.uploads.uri(record))
        assert path.parent == tmp_path / "jobs" / "uploads" / record.id / "file"
        assert record.asked.name == name


def test_on_s3_files_go_past_the_service(
    serve_jobs: Callable[..., Any], cells_file: Path, s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    service = serve_jobs(folder=f"{s3_uri}/jobs")
    content = cells_file.read_bytes()
    upload = _announce(service, content, sha256=hashlib.sha256(content).hexdigest()).json()
    refused = service.ask("PUT", f"/v1/uploads/{upload['id']}?offset=0", content=content)
    assert (refused.status_code, refused.json()["code"]) == (409, "use_put_url")
    assert httpx.put(upload["put_url"], content=content).status_code == 200
    assert service.ask("GET", f"/v1/uploads/{upload['id']}").json()["complete"]
    job = service.submit(task="embed", input={"upload": upload["id"]}).json()["id"]
    service.work()
    assert service.ask("GET", f"/v1/jobs/{job}").json()["problem"] is None
    redirect = service.ask("GET", f"/v1/jobs/{job}/result")
    assert redirect.status_code == 307
    table = pq.read_table(io.BytesIO(httpx.get(redirect.headers["location"]).content))
    assert table.num_rows == 21
    assert service.ask("DELETE", f"/v1/jobs/{job}").status_code == 204
