"""Who may ask: keys, scopes, quotas, and addresses beyond loopback; no key appears where it does not belong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cytoray.errors import ConfigError, ConflictError, NotFoundError
from cytoray.serving.edge.config import EdgeConfig
from cytoray.serving.edge.keys import Allowance, create_key, read_keys, revoke_key


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with what an application sees of a request; one cell for each byte of the body."""
    body = (await receive())["body"]
    seen = {
        "headers": sorted(name.decode() for name, _ in scope["headers"]),
        "state": {key: value for key, value in scope["state"].items() if key.startswith(("key", "caller"))},
    }
    headers = [(b"content-type", b"application/json"), (b"x-cells", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(seen).encode()})


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def _new(keys: Path, owner: str = "lab", days: int | None = None, **allowance: Any) -> str:
    return create_key(keys, owner=owner, allowance=Allowance(**allowance), days=days)[0]


def _config(keys: Path) -> EdgeConfig:
    return EdgeConfig(keys_file=str(keys))


def test_only_valid_keys_with_the_scope_get_an_answer(behind: Any, keys: Path, capfd: Any) -> None:
    key, other = _new(keys, scopes=("embed",), kind="bulk"), _new(keys, "metrics", scopes=("metrics",))
    edge = behind(echo, config=_config(keys))
    answer = edge.ask(key=key)
    assert answer.status_code == 200
    assert answer.json()["state"] == {"key_id": key.split("_")[1], "key_owner": "lab", "caller_class": "bulk"}
    assert "authorization" not in answer.json()["headers"]
    wrong = key[:-1] + ("A" if key[-1] != "A" else "B")
    for refused in (None, wrong, "x", "cyt__", f"cyt_{'0' * 12}_secret"):
        answer = edge.ask(key=refused)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.headers["content-type"] == "application/problem+json"
    assert edge.ask(headers={"Authorization": f"Basic {key}"}).status_code == 401
    for path, given in (("/v1/annotate", key), ("/v1/embed", other), ("/metrics", key), ("/nothing", key)):
        answer = edge.ask(path, key=given)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), path
    assert edge.ask("/metrics", key=other).status_code == 200
    for probe in ("/healthz", "/readyz"):
        assert edge.ask(probe, method="GET").status_code == 200
    assert edge.metrics()['cytoray_rejections_total{code="unauthenticated"}'] == 6
    assert key.split("_")[2] not in capfd.readouterr().err + keys.read_text()


def test_a_key_is_replaced_without_an_outage_and_revoked_at_once(behind: Any, keys: Path, clock: Any) -> None:
    first = _new(keys)
    edge = behind(echo, config=_config(keys))
    second = _new(keys)
    with pytest.raises(ConflictError, match="lab has 2 valid keys"):
        _new(keys)
    clock.now += 2
    assert {edge.ask(key=key).status_code for key in (first, second)} == {200}
    revoke_key(keys, first.split("_")[1])
    clock.now += 2
    assert [edge.ask(key=key).status_code for key in (first, second)] == [401, 200]
    with pytest.raises(NotFoundError, match=r"unknown key .*\(lab\)"):
        revoke_key(keys, first.split("_")[1])
    keys.write_text("{")  # a file that is damaged later does not lock everybody out
    clock.now += 2
    assert edge.ask(key=second).status_code == 200


def test_keys_expire_and_their_file_is_private(behind: Any, keys: Path) -> None:
    key = _new(keys, days=1)
    assert keys.stat().st_mode & 0o777 == 0o600
    content = json.loads(keys.read_text())
    assert behind(echo, config=_config(keys)).ask(key=key).status_code == 200
    content["keys"][0]["expires"] = "2020-01-01T00:00:00Z"
    keys.write_text(json.dumps(content))
    assert behind(echo, config=_config(keys)).ask(key=key).status_code == 401
    content["keys"][0]["sha256"] = "secret"
    keys.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"keys\.json: not a file of API keys: keys\.0\.sha256") as caught:
        read_keys(keys)
    assert "secret" not in str(caught.value)
    with pytest.raises(NotFoundError, match="cytoray keys new"):
        behind(echo, config=EdgeConfig(keys_file=str(keys) + "x"))


def test_an_owner_pays_for_cells_and_earns_them_back(behind: Any, keys: Path, clock: Any) -> None:
    first, second, other = _new(keys, cells_per_minute=60), _new(keys, cells_per_minute=60), _new(keys, "other")
    edge = behind(echo, config=_config(keys))
    answer = edge.ask(key=first, content=b"." * 90)
    limits = {name: answer.headers[f"ratelimit-{name}"] for name in ("limit", "remaining", "reset")}
    assert limits == {"limit": "60", "remaining": "0", "reset": "90"}
    refused = edge.ask(key=second, content=b".")  # the quota is the owner's
    assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (429, "rate_limited", "31")
    assert refused.headers["ratelimit-remaining"] == "0"
    assert "ratelimit-limit" not in edge.ask(key=other, content=b"." * 1000).headers
    clock.now += 31
    assert edge.ask(key=second, content=b".").status_code == 200
    assert edge.metrics()['cytoray_cells_total{model="",route="/v1/embed"}'] == 1091


def test_requests_in_flight_are_limited_per_owner(behind: Any, keys: Path, runner: Any) -> None:
    key = _new(keys, concurrency=1)
    inner: list[int] = []

    async def asks_again(scope: Any, receive: Any, send: Any) -> None:
        if not inner:
            inner.append(0)
            request = {"Authorization": f"Bearer {key}"}
            inner[0] = (await edge._client.post("/v1/embed", headers=request)).status_code
        await echo(scope, receive, send)

    edge = behind(asks_again, config=_config(keys))
    assert edge.ask(key=key).status_code == 200
    assert inner == [429]
    assert edge.ask(key=key).status_code == 200


@pytest.mark.parametrize(
    ("host", "auth", "status"), [("10.0.0.7", None, 403), ("10.0.0.7", False, 200), ("::1", None, 200)]
)
def test_beyond_loopback_somebody_has_to_decide(
    behind: Any, runner: Any, host: str, auth: bool | None, status: int
) -> None:
    edge = behind(echo, config=EdgeConfig(auth=auth))
    scope = {"type": "http", "method": "POST", "path": "/v1/embed", "headers": [], "server": (host, 8000)}
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    runner.run(edge.app(scope, receive, send))
    assert sent[0]["status"] == status
    if status == 403:
        assert b"edge.auth: off" in sent[1]["body"]
