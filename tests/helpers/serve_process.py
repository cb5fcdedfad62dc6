"""`cytoray serve` as a user starts it: a process, without RAY_AUTH_MODE, with keys."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cytoray.serving.edge.keys import Allowance, create_key

CLI = [sys.executable, "-c", "from cytoray.cli import main; main()"]
START_S = 240  # on a busy machine


@dataclass(frozen=True)
class Served:
    """A service that runs."""

    url: str
    key: str
    process: subprocess.Popen[Any]
    log: Path

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a request with the key."""
        return {"Authorization": f"Bearer {self.key}"}


def free_port() -> int:
    """Return a port of this machine that nobody uses."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def serve(folder: Path, **config: Any) -> Iterator[Served]:
    """Start `cytoray serve` with its files below ``folder``; stop it at the end, which must succeed."""
    key, _ = create_key(folder / "keys.json", owner="lab", allowance=Allowance(), days=None)
    port = free_port()
    settings: dict[str, Any] = {"kind": "serve", "port": port, "num_cpus": 0.5, "max_replicas": 1}
    settings["edge"] = {"keys_file": str(folder / "keys.json"), "access_log": str(folder / "access.jsonl")}
    settings["jobs"] = {"folder": str(folder / "jobs")}
    (folder / "serve.yaml").write_text(yaml.safe_dump(settings | config))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    log = folder / "serve.log"
    with log.open("w") as output:
        command = [*CLI, "serve", "--config", str(folder / "serve.yaml")]
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment | {"OMP_NUM_THREADS": "1"})
        try:
            deadline = time.monotonic() + START_S
            while "Serving" not in log.read_text():
                assert process.poll() is None, log.read_text()[-3_000:]
                assert time.monotonic() < deadline, "it takes too long"
                time.sleep(0.1)
            yield Served(f"http://127.0.0.1:{port}", key, process, log)
            process.terminate()
            assert process.wait(90) == 0
        finally:
            if process.poll() is None:  # twice: at once, but not without stopping its Ray
                process.terminate()
                process.terminate()
                process.wait(60)
