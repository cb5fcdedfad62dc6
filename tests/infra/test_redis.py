"""The command of the StatefulSet redis, run with Debian's Redis: it asks for a password, and keeps what was written."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kube_checks import of_kind
from kube_render import documents

pytestmark = pytest.mark.infra
PASSWORD = "0123abcd" * 8


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def redis(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Redis by the container's own command, its two folders below ``folder``; only the port is another."""
    container = of_kind(documents("eks-cpu"), "StatefulSet")["redis"]["spec"]["template"]["spec"]["containers"][0]
    shell, option, script = container["command"]
    for place in [mount["mountPath"] for mount in container["volumeMounts"]]:
        (folder / place.strip("/")).mkdir(parents=True, exist_ok=True)
        script = script.replace(f" {place}", f" {folder}{place}")
    script = script.replace("exec redis-server", f"exec {shutil.which('redis-server')}").rstrip()
    command = [shell, option, f"{script} --port {port} --bind 127.0.0.1"]
    with subprocess.Popen(
        command, env={**os.environ, "REDIS_PASSWORD": PASSWORD}, stdout=subprocess.DEVNULL
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ask(port: int, *words: str, password: str | None = PASSWORD) -> str:
    environment = {**os.environ, **({"REDISCLI_AUTH": password} if password else {})}
    command = [shutil.which("redis-cli") or "redis-cli", "-p", str(port), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20).stdout.strip()


def wait_until_up(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while ask(port, "ping") != "PONG":
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_redis_asks_for_the_password_and_keeps_what_was_written(tmp_path: Path):
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed (Debian: apt-get install redis-server)")
    port = _free_port()
    with redis(tmp_path, port) as process:
        wait_until_up(port, process)
        assert "NOAUTH" in ask(port, "get", "head", password=None)
        assert PASSWORD not in Path(f"/proc/{process.pid}/cmdline").read_text()
        assert (tmp_path / "run/redis/redis.conf").stat().st_mode & 0o077 == 0
        assert ask(port, "set", "head", "state") == "OK"
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    with redis(tmp_path, port) as process:
        wait_until_up(port, process)
        assert ask(port, "get", "head") == "state"
