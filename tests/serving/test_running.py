"""`cytoray serve` as a process: beside another Ray on the machine, with keys, and stopped while it answers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from cytoray.model.bundle import save_bundle
from cytoray.serving.edge.keys import Allowance, create_key

pytestmark = pytest.mark.ray
CLI = [sys.executable, "-c", "from cytoray.cli import main; main()"]
START_S = 120


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def other_ray(tmp_path: Path) -> Iterator[None]:
    """A Ray that somebody has started on this machine, which commands without RAY_ADDRESS would join."""
    words = ["ray", "start", "--head", "--block", f"--port={_free_port()}", "--num-cpus=1", "--include-dashboard=false"]
    log = tmp_path / "ray.log"
    command = [str(Path(sys.executable).parent / "ray"), *words[1:]]
    with log.open("w") as output:
        other = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    _wait_for(lambda: "Ray runtime started" in log.read_text(), other)
    yield
    other.terminate()
    other.wait(60)


def _wait_for(is_so: Any, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + START_S
    while not is_so():
        assert process.poll() is None, "it has ended"
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.05)


def test_stopping_answers_what_is_in_flight_and_ends_in_peace(
    build_bundle: Any, make_counts: Any, as_request: Any, tmp_path: Path, other_ray: None
) -> None:
    save_bundle(build_bundle(), tmp_path / "tiny")
    key, _ = create_key(tmp_path / "keys.json", owner="lab", allowance=Allowance(), days=None)
    port = _free_port()
    config = {"kind": "serve", "model_uri": str(tmp_path / "tiny"), "port": port, "num_cpus": 0.5}
    config["edge"] = {"keys_file": str(tmp_path / "keys.json"), "access_log": str(tmp_path / "access.jsonl")}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    output = (tmp_path / "out").open("w")
    command = [*CLI, "serve", "--config", str(tmp_path / "serve.yaml")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}  # a user's
    environment |= {"OMP_NUM_THREADS": "1"}
    service = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {key}"}, timeout=30)
    try:
        _wait_for(lambda: "Serving" in (tmp_path / "out").read_text(), service)
        assert httpx.post(f"http://127.0.0.1:{port}/v1/embed", content=b"{}").status_code == 401
        body = json.dumps(as_request(make_counts(3))).encode()
        head = f"POST /v1/embed HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=60) as slow:
            slow.sendall(head.encode() + body[:50])
            _wait_for(lambda: _figure(client, "cytoray_requests_in_flight") == 2, service)  # and the scrape itself
            service.send_signal(signal.SIGTERM)
            _wait_for(lambda: client.post("/v1/embed", content=body).status_code == 503, service)
            assert client.post("/v1/embed", content=body).json()["code"] == "draining"
            slow.sendall(body[50:])
            answer = slow.makefile("rb").readline()
        assert answer.startswith(b"HTTP/1.1 200")
        assert service.wait(60) == 0
    finally:
        client.close()
        if service.poll() is None:  # twice: at once, but not without stopping its Ray
            service.terminate()
            service.terminate()
        service.wait(60)
        output.close()
    written = (tmp_path / "out").read_text()
    assert "Traceback" not in written
    assert "SIGTERM" not in written
    lines = [json.loads(line) for line in (tmp_path / "access.jsonl").read_text().splitlines()]
    answered = [line for line in lines if (line["route"], line["status"]) == ("/v1/embed", 200)]
    assert [(line["cells"], line["key"]) for line in answered] == [(3, key.split("_")[1])]
    assert key not in written + (tmp_path / "access.jsonl").read_text()


def _figure(client: httpx.Client, name: str) -> float:
    """The sum of a figure over the processes of the service."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)
