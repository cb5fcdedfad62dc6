"""Wait for a service that follows an alias: it reports the version sooner or later, or says why it does not."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cytoray.config import build_from
from cytoray.errors import ConfigError, RequestError, ServingError
from cytoray.serving.rollout.webhook import Webhook
from cytoray.stages.rollout import RolloutStageConfig, run_rollout

SECRET = "a secret of the service"


class Service(ThreadingHTTPServer):
    """Answers as a service does that takes version 2 over after ``swaps_after`` questions."""

    def __init__(self, secret_file: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.swaps_after, self.asked = 2, 0
        self.degraded: dict[str, str] = {}
        self.default = "blood"
        self.is_ready = True
        self.webhook, self.poked = Webhook(str(secret_file)), []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """The three routes that are asked."""

    server: Service

    def do_GET(self) -> None:
        service = self.server
        service.asked += 1
        version = "2" if service.asked > service.swaps_after else "1"
        model = {"name": service.default, "version": version, "digest": version * 64}
        if self.path == "/readyz":
            body: dict[str, Any] = {"status": "ready", "model": model, "models": [], "degraded": service.degraded}
            self._reply(200 if service.is_ready else 503, body)
        else:
            self._reply(200, {"model": {**model, "name": "gut"}, "degraded": None})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        try:
            self.server.poked.append(self.server.webhook.read(body, {k.lower(): v for k, v in self.headers.items()}))
        except RequestError:
            self._reply(401, {})
            return
        self._reply(202, {})

    def _reply(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    with Service(tmp_path / "secret") as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def ask(service: Service, **more: Any) -> dict[str, Any]:
    settings = {"kind": "rollout", "url": service.url, "model": "models:/blood/2", "poll_s": 0.01, "timeout_s": 30.0}
    return run_rollout(build_from(RolloutStageConfig, {**settings, **more}, source="test"))


def test_it_waits_until_the_service_reports_the_version(service: Service):
    found = ask(service)
    assert (found["digest"], service.asked) == ("2" * 64, 3)


def test_of_several_models_it_asks_for_the_right_one(service: Service):
    service.default = "other"
    assert ask(service, model="models:/gut/2")["digest"] == "2" * 64


def test_the_reason_of_the_service_is_in_the_error(service: Service):
    service.swaps_after, service.degraded = 10_000, {"blood": "version 2 has another vocabulary"}
    with pytest.raises(ServingError, match=r"does not serve models:/blood/2 after 0\.05 s .*another vocabulary"):
        ask(service, timeout_s=0.05)


def test_a_service_that_is_not_ready_or_not_there(service: Service):
    service.is_ready = False
    with pytest.raises(ServingError, match="/readyz answers 503"):
        ask(service, timeout_s=0.05)
    with pytest.raises(ServingError, match="ConnectError"):
        ask(service, timeout_s=0.05, url="http://127.0.0.1:9")


def test_the_webhook_is_signed_with_the_secret_of_the_service(service: Service, tmp_path: Path):
    ask(service, webhook_secret_file=str(tmp_path / "secret"))
    assert service.poked == ["blood"]


def test_a_webhook_that_refuses_is_no_failure_since_the_service_polls(
    service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "wrong").write_text("another secret")
    assert ask(service, webhook_secret_file=str(tmp_path / "wrong"))["digest"] == "2" * 64
    assert service.poked == []
    assert "answered 401" in caplog.text
    with pytest.raises(ConfigError, match="cannot be read"):
        ask(service, webhook_secret_file=str(tmp_path / "nowhere"))
