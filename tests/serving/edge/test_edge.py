"""What passes the edge and what does not: headers, bodies, drain, lost replicas, WebSockets, logs and metrics."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from cytoray.serving.edge import middleware
from cytoray.serving.edge.config import EdgeConfig
from cytoray.serving.edge.metrics import CONTENT_TYPE, collect


async def _reply(send: Any, status: int, body: bytes, *, media_type: str = "application/json") -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", media_type.encode())]})
    await send({"type": "http.response.body", "body": body})


async def ok(scope: Any, receive: Any, send: Any) -> None:
    body = (await receive())["body"]
    names = [name.decode() for name, _ in scope["headers"]]
    await _reply(send, 200, json.dumps({"headers": names, "length": len(body)}).encode())


def test_headers_that_control_serve_do_not_pass(behind: Any) -> None:
    hostile = {
        "x-request-timeout-seconds": "-1",
        "X-Request-Disconnect-Disabled": "?1",
        "serve_multiplexed_model_id": "other",
        "Serve-Multiplexed-Model-Id": "other",
        "x-session-id": "a",
        "x-serve-router-replica": "b",
        "x-request-id": "x" * 200,
        "x-mine": "kept",
    }
    answer = behind(ok).ask(headers=hostile).json()
    seen = [name for name in answer["headers"] if name.startswith(("x-", "serve"))]
    assert sorted(seen) == ["x-mine", "x-request-id"]


def test_a_body_over_the_limit_is_refused_early(behind: Any) -> None:
    called: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        called.append(1)
        await ok(scope, receive, send)

    async def endless() -> Any:
        for _ in range(100):
            yield b"." * 1000
        raise AssertionError("read to the end")

    edge = behind(app, max_body_bytes=2048)
    for content in (b"." * 2049, endless()):
        answer = edge.ask(content=content)
        assert (answer.status_code, answer.json()["code"], answer.json()["limit"]) == (413, "too_large", 2048)
    assert not called
    assert edge.ask(content=b"." * 2048).json()["length"] == 2048


def test_a_body_that_does_not_arrive_is_given_up(behind: Any) -> None:
    async def never() -> Any:
        yield b"."
        await asyncio.Event().wait()

    edge = behind(ok, config=EdgeConfig(body_timeout_s=0.05))
    answer = edge.ask(content=never())
    assert (answer.status_code, answer.json()["code"]) == (408, "body_timeout")
    assert edge.app._bodies.held == 0


def test_a_closed_gate_answers_what_is_in_flight_and_refuses_the_rest(behind: Any, runner: Any) -> None:
    async def scene() -> tuple[int, Any, Any, int]:
        entered, release = asyncio.Event(), asyncio.Event()

        async def slow(scope: Any, receive: Any, send: Any) -> None:
            entered.set()
            await release.wait()
            await ok(scope, receive, send)

        edge = behind(slow)
        first = asyncio.create_task(edge._client.post("/v1/embed", content=b"..."))
        await entered.wait()
        gate = edge.parts.gate
        gate.is_closed = True
        in_flight = gate.in_flight
        refused = await edge._client.post("/v1/embed", content=b"...")
        release.set()
        return in_flight, refused, await first, gate.in_flight

    in_flight, refused, answered, left = runner.run(scene())
    assert (in_flight, left) == (1, 0)
    assert answered.json()["length"] == 3
    assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (503, "draining", "1")


class Serve:
    """Ray Serve's HTTP server in front of replicas, of which the first ones are lost."""

    def __init__(self, *losses: Any) -> None:
        self.losses = list(losses)
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        self.bodies.append(message["body"])
        if not self.losses:
            await _reply(send, 200, b'{"good": 1}')
            return
        lost = self.losses.pop(0)
        if lost == "head":
            await send({"type": "http.response.start", "status": 200, "headers": []})
        elif lost is not None:
            await _reply(send, lost, b"Traceback (most recent call last)", media_type="text/plain")


@pytest.mark.parametrize("losses", [(None,), (500,), ("head",), (None, 500)])
def test_a_request_whose_replica_is_lost_goes_to_another(behind: Any, losses: Any) -> None:
    serve = Serve(*losses)
    edge = behind(serve, retries=2)
    answer = edge.ask(content=b"cells")
    assert (answer.status_code, answer.json()) == (200, {"good": 1})
    assert serve.bodies == [b"cells"] * (len(losses) + 1)
    assert edge.metrics()['cytoray_retries_total{reason="replica_lost"}'] == len(losses)


@pytest.mark.parametrize(
    ("losses", "path", "status", "code"),
    [
        ((None, 500, None), "/v1/embed", 500, "poison_request"),
        ((500,), "/v1/jobs", 503, "replica_lost"),  # it might be done twice
        ((408,), "/v1/embed", 504, "deadline_exceeded"),
        ((503,), "/v1/embed", 503, "overloaded"),
        ((404,), "/v1/embed", 503, "model_not_ready"),
        ((400,), "/v1/embed", 400, "http_error"),
    ],
)
def test_plain_text_of_serve_becomes_a_problem(behind: Any, losses: Any, path: str, status: int, code: str) -> None:
    serve = Serve(*losses)
    answer = behind(serve, retries=2).ask(path)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert "Traceback" not in answer.text
    assert len(serve.bodies) == len(losses)


def test_problems_of_the_application_pass_unchanged(behind: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await _reply(send, 500, b'{"code": "internal"}', media_type="application/problem+json")

    edge = behind(app, retries=2)
    assert (edge.ask().status_code, edge.ask().json()) == (500, {"code": "internal"})
    assert edge.metrics()['cytoray_requests_total{route="/v1/embed",status="500"}'] == 2


def test_a_websocket_is_refused_with_a_problem(behind: Any, runner: Any) -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/v1/embed", "headers": [], "extensions": {"websocket.http.response": {}}}
    runner.run(behind(ok).app(scope, receive, send))
    assert [message["type"] for message in sent] == ["websocket.http.response.start", "websocket.http.response.body"]
    assert (sent[0]["status"], json.loads(sent[1]["body"])["code"]) == (400, "unsupported_protocol")
    sent.clear()
    runner.run(behind(ok).app(scope | {"extensions": {}}, receive, send))
    assert [message["type"] for message in sent] == ["websocket.close"]


def test_the_edge_of_the_replica_leaves_the_work_to_that_of_the_server(behind: Any) -> None:
    inner = behind(ok)
    outer = behind(inner.app)
    assert outer.ask(content=b"..").json()["length"] == 2
    assert 'cytoray_requests_total{route="/v1/embed",status="200"}' in outer.metrics()
    assert not [name for name in inner.metrics() if name.startswith("cytoray_requests_total")]


def test_a_client_that_leaves_is_no_lost_replica(behind: Any, runner: Any) -> None:
    async def waits(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        assert (await receive())["type"] == "http.disconnect"

    messages = [{"type": "http.request", "body": b""}, {"type": "http.disconnect"}]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: Any) -> None:
        raise AssertionError(message)

    edge = behind(waits, retries=2)
    scope = {"type": "http", "method": "POST", "path": "/v1/embed", "headers": []}
    runner.run(edge.app(scope, receive, send))
    assert edge.metrics()['cytoray_requests_total{route="/v1/embed",status="499"}'] == 1


def test_log_and_metrics_know_the_request_but_not_its_content(behind: Any, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "access.jsonl"
    edge = behind(ok, config=EdgeConfig(access_log=str(log)))
    edge.ask(content=b'{"genes": ["SECRET"]}', headers={"X-Request-Id": "abc"})
    edge.ask("/v1/patient-7/SECRET", content=b"")
    first, second = map(json.loads, log.read_text().splitlines())
    assert (first["request_id"], first["route"], first["status"], first["bytes_in"]) == ("abc", "/v1/embed", 200, 21)
    assert (second["route"], second["method"]) == ("other", "POST")
    assert "SECRET" not in log.read_text()
    assert "patient" not in log.read_text()
    metrics = edge.metrics()
    assert metrics['cytoray_requests_total{route="/v1/embed",status="200"}'] == 1
    assert metrics["cytoray_request_bytes_total"] == 21
    assert metrics["cytoray_requests_in_flight"] == 0
    log.rename(log.with_suffix(".1"))  # logrotate
    edge.ask()
    assert len(log.read_text().splitlines()) == 1


def test_a_probe_does_not_wait_for_a_replica(behind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve lets requests wait while no replica has loaded its model."""
    monkeypatch.setattr(middleware, "READY_S", 0.01)

    async def waits(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    answer = behind(waits).ask("/readyz", method="GET")
    assert (answer.status_code, answer.json()["code"]) == (503, "model_not_ready")
    assert answer.headers["retry-after"] == "1"


def test_metrics_can_be_read_while_no_replica_takes_requests(behind: Any) -> None:
    async def full(scope: Any, receive: Any, send: Any) -> None:
        await _reply(send, 503, b"", media_type="text/plain")

    async def gather() -> list[Any]:
        return [collect(edge.parts.metrics.registry, process="p")]

    edge = behind(full, gather=gather)
    assert edge.ask().json()["code"] == "overloaded"
    answer = edge.ask("/metrics", method="GET")
    assert (answer.status_code, answer.headers["content-type"]) == (200, CONTENT_TYPE)
    assert 'cytoray_rejections_total{code="overloaded",process="p"} 1.0' in answer.text
    assert edge.ask("/metrics").status_code == 503  # a POST is the application's to refuse
