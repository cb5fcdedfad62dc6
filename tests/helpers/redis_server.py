"""Redis as infra/kuberay starts it: the command of its StatefulSet, with Debian's programs, below a folder."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kube_checks import of_kind
from kube_render import documents

PASSWORD = "0123abcd" * 8


def program(name: str) -> str:
    """Return the path of a program of Redis, in ``REDIS_BIN`` or on the PATH; skips the test without it."""
    found = shutil.which(name, path=os.environ.get("REDIS_BIN") or None)
    if found is None:
        pytest.skip(f"{name} is not installed: `make check-infra` fetches it (scripts/fetch_redis.sh)")
    return found


def free_port() -> int:
    """Return a port that was free a moment ago."""
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
    script = script.replace("exec redis-server", f"exec {program('redis-server')}").rstrip()
    command = [shell, option, f"{script} --port {port} --bind 127.0.0.1"]
    with subprocess.Popen(
        command, env={**os.environ, "REDIS_PASSWORD": PASSWORD}, stdout=subprocess.DEVNULL
    ) as process:
        try:
            _wait_until_up(port, process)
            yield process
        finally:
            process.kill()


def ask(port: int, *words: str, password: str | None = PASSWORD) -> str:
    """Return the answer to a command of Redis."""
    environment = {**os.environ, **({"REDISCLI_AUTH": password} if password else {})}
    command = [program("redis-cli"), "-p", str(port), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20).stdout.strip()


def _wait_until_up(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while ask(port, "ping") != "PONG":
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
