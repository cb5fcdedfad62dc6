"""A cluster is asked who it is before anything is sent: not there, another version, open to anybody, another token."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from cytoray.errors import JobError
from cytoray.operations.jobs.clusters import open_cluster
from cytoray.operations.jobs.tokens import find_token, require_dashboard

TOKEN = "0" * 64


@contextmanager
def dashboard(version: str = "2.60.0", *, is_open: bool = False, path: str = "/api/version") -> Iterator[str]:
    """A server that answers GET /api/version as Ray's dashboard does, with the token or, if open, without."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given = self.headers.get("Authorization")
            refused = 401 if given is None else 403
            status = 200 if is_open or given == f"Bearer {TOKEN}" else refused
            status = status if self.path == path else 404
            body = json.dumps({"version": "4", "ray_version": version}).encode() if status == 200 else b"no"
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """This machine has the token of the dashboards, and no other."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_a_dashboard_of_our_version_that_takes_our_token_is_good():
    with dashboard() as url:
        assert require_dashboard(url) == TOKEN
    with dashboard("2.60.3") as url:
        assert require_dashboard(url) == TOKEN


def test_another_version_is_refused_with_both():
    with dashboard("2.61.0") as url, pytest.raises(JobError, match=r"runs Ray 2\.61\.0") as caught:
        require_dashboard(url)
    assert "ray==2.60" in caught.value.remedy


def test_an_open_cluster_is_refused_unless_the_user_says_so(monkeypatch: pytest.MonkeyPatch):
    with dashboard(is_open=True) as url:
        with pytest.raises(JobError, match="jobs from anybody"):
            require_dashboard(url)
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        assert require_dashboard(url) is None


def test_a_wrong_token_and_none_are_told_apart(monkeypatch: pytest.MonkeyPatch):
    with dashboard() as url:
        monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 64)
        with pytest.raises(JobError, match=r"rejected the token \(HTTP 403\)"):
            require_dashboard(url)
        monkeypatch.delenv("RAY_AUTH_TOKEN")
        with pytest.raises(JobError, match="no token") as caught:
            require_dashboard(url)
        assert "get-auth-token" in caught.value.remedy
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        with pytest.raises(JobError, match=r"HTTP 401"):
            require_dashboard(url)


def test_tokens_are_found_in_the_order_of_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("home\n")
    (tmp_path / "named").write_text("named\n")
    assert find_token() == TOKEN
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    assert find_token() == "home"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "named"))
    assert find_token() == "named"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "missing"))
    assert find_token() is None


def test_another_server_and_no_server_are_named():
    with dashboard(path="/other") as url, pytest.raises(JobError, match="not a Ray dashboard"):
        require_dashboard(url)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    for option in (f"http://127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        with pytest.raises(JobError, match=f"answers at .*127.0.0.1:{port}") as caught:
            open_cluster(option)
        assert "http://HOST:8265" in caught.value.remedy
    with pytest.raises(JobError, match="not a cluster"):
        open_cluster("ssh://host")


def test_a_server_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cytoray.operations.jobs.tokens.PROBE_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(JobError, match="No Ray cluster answers"):
        require_dashboard(f"http://127.0.0.1:{silent.getsockname()[1]}")
