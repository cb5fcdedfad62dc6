"""``serve deploy`` and ``serve build`` on a token-protected head, and calls without the token, which are refused."""

from __future__ import annotations

from typing import Any

import grpc
import httpx
import psutil
import pytest
import yaml
from chaos_head import BINARIES, INGRESS, NUM_REPLICAS, REPLICA, ROOT, Service, fill_in, run, wait_until

FILES = sorted((ROOT / "serve").glob("*.yaml"))
HANDLE = "/ray.serve.ASGIService/HandleRequest"  # unpickles what it is sent


def _ports(process: psutil.Process) -> list[int]:
    """Return the ports on which a process listens."""
    return [each.laddr.port for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN]


def _call(port: int, metadata: tuple[tuple[str, str], ...] = ()) -> grpc.StatusCode:
    """Call what the handles of other deployments call, with an empty message; returns how that is answered."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            channel.unary_unary(HANDLE)(b"", metadata=metadata, timeout=20)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK


def test_without_the_token_nothing_of_ray_answers(healthy: Service, outcome: Any) -> None:
    head = healthy.head
    job = {"entrypoint": "touch /tmp/should-not-be-there"}
    asked = [
        httpx.post(f"{head.dashboard}/api/jobs/", json=job, trust_env=False),
        httpx.get(f"{head.dashboard}/api/jobs/", trust_env=False),
        httpx.get(f"{head.dashboard}/api/serve/applications/", trust_env=False),
        httpx.put(f"{head.dashboard}/api/serve/applications/", json=healthy.config, trust_env=False),
        httpx.post(f"{head.dashboard}/api/jobs/", json=job, headers={"Authorization": "Bearer no"}, trust_env=False),
    ]
    assert [answer.status_code for answer in asked[:4]] == [401] * 4
    assert asked[4].status_code in (401, 403)
    assert httpx.get(f"{head.dashboard}/api/jobs/", headers=head.token, trust_env=False).json() == []

    token = tuple((name.lower(), value) for name, value in head.token.items())
    replicas = head.find(REPLICA)
    assert len(replicas) == NUM_REPLICAS
    refused = 0
    for replica in replicas:
        codes = {port: _call(port) for port in _ports(replica)}
        assert grpc.StatusCode.OK not in codes.values()
        # Those that know the method refuse it without the token, and take it with it.
        guarded = [port for port, code in codes.items() if code == grpc.StatusCode.UNAUTHENTICATED]
        assert any(_call(port, token) != grpc.StatusCode.UNAUTHENTICATED for port in guarded), codes
        refused += len(guarded)
    outcome("S22 calls without the token of Ray", len(asked) + refused)


def test_the_dashboard_listens_on_loopback_only(healthy: Service) -> None:
    port = int(healthy.head.dashboard.rpartition(":")[2])
    listening = [
        each.laddr.ip
        for each in psutil.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN and each.laddr.port == port
    ]
    assert listening == ["127.0.0.1"]


def test_serve_build_is_deployed_under_load(healthy: Service, load: Any, outcome: Any) -> None:
    """The head's environment has CYTORAY_SERVE, which names the YAML that was built."""
    built = healthy.folder / "built.yaml"
    words = [str(BINARIES / "serve"), "build", "serve.application:app", "--app-dir", str(ROOT), "-o", str(built)]
    run(words, env=healthy.head.environment, cwd=ROOT)
    config = yaml.safe_load(built.read_text())
    config["http_options"] = healthy.config["http_options"]
    config["proxy_location"] = healthy.config["proxy_location"]
    config["applications"][0]["name"] = "cytoray"  # it takes the place of the other
    built.write_text(yaml.safe_dump(config))
    with load(healthy) as traffic:
        traffic.wait_for(50)
        healthy.head.deploy(built)
        traffic.wait_for(50)
        healthy.deploy()
        traffic.wait_for(50)
    outcome("S12 `serve deploy` of the output of `serve build`", 2, traffic)
    assert traffic.failures == []


@pytest.mark.parametrize("file", [file.name for file in FILES if file.name != "embed.yaml"])
def test_s3_every_other_file_is_deployed_in_its_place(healthy: Service, load: Any, outcome: Any, file: str) -> None:
    """`serve/embed.yaml` is that of the shared service. In two tiers, replicas of both die under load."""
    config = fill_in({"model_uri": healthy.args["model_uri"]}, healthy.folder, file=file)
    config |= {key: healthy.config[key] for key in ("http_options", "proxy_location")}  # a running Serve keeps its own
    other = Service(healthy.head, config, healthy.folder / file)
    other.folder.mkdir()
    kinds = [INGRESS, f"{REPLICA}Model-"] if other.args.get("layout") == "tiered" else [REPLICA]
    recovery: list[float] = []
    with load(healthy, concurrency=4) as traffic:
        traffic.wait_for(20)
        other.deploy()
        wait_until(lambda: all(other.head.find(kind) for kind in kinds), "its replicas are there")
        traffic.wait_for(20)
        for kind in kinds:
            victim = other.head.find(kind)[0]
            number = len(other.head.running_replicas())
            victim.kill()
            recovery.append(other.wait_for_replicas(number, without={victim.pid}))
            traffic.wait_for(20)
        healthy.deploy()
        traffic.wait_for(20)
    outcome(f"S3 serve/{file}: SIGKILL of {len(kinds)} replicas", len(recovery), traffic, recovery_s=recovery)
    assert traffic.failures == []
