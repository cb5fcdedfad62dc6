"""A Ray head of its own with token authentication, and a service that ``serve deploy`` puts on it, to be disturbed."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from processes import end_all, started

from cytoray.serving.config import AppArgs
from cytoray.serving.edge.proxy import prepare_environment

ROOT = Path(__file__).parents[2]
BINARIES = Path(sys.executable).parent
WAIT_S = 400.0  # for whatever comes in seconds on a quiet machine
POLL_S = 0.1
START_ATTEMPTS = 4
SCALE = float(os.environ.get("CHAOS_SCALE", "1"))
NUM_REPLICAS = 2  # of the service that the tests share
INGRESS = "ray::ServeReplica:cytoray:IngressDeployment"
REPLICA, PROXY, CONTROLLER = "ray::ServeReplica:cytoray:", "ray::ProxyActor", "ray::ServeController"


def scaled(number: int) -> int:
    """Return a number of faults or requests, multiplied by CHAOS_SCALE."""
    return max(1, round(number * SCALE))


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_until(is_so: Callable[[], Any], what: str, *, timeout_s: float = WAIT_S) -> Any:
    """Wait until ``is_so()`` is true and return what it returned; fails with ``what`` is missing."""
    deadline = time.monotonic() + timeout_s
    while not (found := is_so()):
        assert time.monotonic() < deadline, f"not after {timeout_s:g} s: {what}"
        time.sleep(POLL_S)
    return found


def run(words: list[str], **options: Any) -> str:
    """Run a command and return its output; fails with the output if the command does."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=WAIT_S, check=False, **options)
    assert done.returncode == 0, f"{words}: {done.stdout[-2000:]} {done.stderr[-2000:]}"
    return done.stdout + done.stderr


@dataclass
class Head:
    """A running Ray head; more nodes may join it."""

    gcs: str  # address
    dashboard: str  # URL
    environment: dict[str, str]
    process: subprocess.Popen[Any]
    nodes: list[subprocess.Popen[Any]] = field(default_factory=list)
    deployed: object = None  # the service that was deployed last

    @property
    def token(self) -> dict[str, str]:
        """Headers that the dashboard requires."""
        token = self.environment.get("RAY_AUTH_TOKEN") or Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        return {"Authorization": f"Bearer {token}"}

    def find(self, title: str) -> list[psutil.Process]:
        """Return the processes of all nodes with such a title, as Ray sets it."""
        found: dict[int, psutil.Process] = {}
        for node in [self.process, *self.nodes]:
            for child in _children(node):
                try:
                    if " ".join(child.cmdline()).startswith(title) and child.status() != psutil.STATUS_ZOMBIE:
                        found[child.pid] = child
                except psutil.NoSuchProcess:
                    continue
        return [found[pid] for pid in sorted(found)]

    def status(self) -> dict[str, Any]:
        """Return the status of Serve; empty while the controller does not answer."""
        try:
            answer = httpx.get(
                f"{self.dashboard}/api/serve/applications/", headers=self.token, timeout=10, trust_env=False
            )
        except httpx.TransportError:
            return {}
        found: dict[str, Any] = answer.json() if answer.status_code == 200 else {}
        return found

    def running_replicas(self) -> dict[int, str]:
        """Return the ids of the replicas that get requests, by process id."""
        deployments = self.status().get("applications", {}).get("cytoray", {}).get("deployments", {})
        replicas = [replica for each in deployments.values() for replica in each["replicas"]]
        return {int(each["pid"]): each["replica_id"] for each in replicas if each["state"] == "RUNNING"}

    def is_running(self) -> bool:
        """Return whether the application is up and has all its replicas."""
        found = self.status().get("applications", {}).get("cytoray", {})
        assert found.get("status") != "DEPLOY_FAILED", found.get("message")
        return found.get("status") == "RUNNING"

    def deploy(self, file: Path) -> None:
        """Run ``serve deploy`` and wait until the application is running."""
        words = [str(BINARIES / "serve"), "deploy", str(file), "-a", self.dashboard]
        done = subprocess.run(words, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S)
        if "ConnectionError" in done.stderr:  # a dashboard that is just starting may cut the first connection
            assert self.process.poll() is None, self.log()
            done = subprocess.run(words, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S)
        assert done.returncode == 0, done.stderr[-1000:] + self.log()
        wait_until(self.is_running, f"{file.name} is running")

    def log(self) -> str:
        """Return the end of what the head has written."""
        return (Path(self.environment["RAY_TMPDIR"]) / "nodes.log").read_text()[-1500:]

    def put(self, config: dict[str, Any]) -> None:
        """Send a configuration to the REST API, as ``serve deploy`` does."""
        answer = httpx.put(
            f"{self.dashboard}/api/serve/applications/", json=config, headers=self.token, timeout=60, trust_env=False
        )
        assert answer.status_code == 200, answer.text


def _children(process: subprocess.Popen[Any]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def head_environment(args: AppArgs, **more: str) -> dict[str, str]:
    """Return the environment of a head whose HTTP server has the edge; RAY_TMPDIR is still to be set."""
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {"PATH": f"{BINARIES}:{os.environ['PATH']}"}
    environment["PYTHONPATH"] = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")  # for serve.application
    environment.pop("RAY_ADDRESS", None)
    prepare_environment(args, environment)
    return environment | more


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder with a short path, because that of a Unix socket has at most 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir=os.environ.get("RAY_TMPDIR", "/tmp")))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def started_head(
    environment: dict[str, str], *, num_cpus: int, port: int | None = None, more: Sequence[str] = ()
) -> Iterator[Head]:
    """``ray start --head`` with a dashboard on loopback; everything has ended when the block is left.

    With the port of a head that has ended, nodes that are left try to join it. ``more`` are options of ``ray start``.
    """
    port, dashboard = port or free_port(), free_port()
    words = ["--head", f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
    words += [f"--ray-client-server-port={free_port()}", *more]
    with _started_node(words, environment, num_cpus=num_cpus) as process:
        head = Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", environment, process)
        wait_until(lambda: _answers(f"{head.dashboard}/api/version", head.token), "the dashboard answers")
        yield head


@contextmanager
def joined_node(head: Head, *, num_cpus: int) -> Iterator[subprocess.Popen[Any]]:
    """A further node of the cluster on this machine, while the block runs or until the node is killed."""
    with _started_node([f"--address={head.gcs}"], head.environment, num_cpus=num_cpus) as process:
        head.nodes.append(process)
        yield process
        head.nodes.remove(process)


@contextmanager
def _started_node(words: list[str], environment: dict[str, str], *, num_cpus: int) -> Iterator[subprocess.Popen[Any]]:
    """A node that is up; Ray gives its processes 30 s to start, so on a busy machine it is tried again."""
    path = Path(environment["RAY_TMPDIR"]) / "nodes.log"
    with ExitStack() as stack:
        for _ in range(START_ATTEMPTS):
            log = stack.enter_context(path.open("ab"))
            begin = log.tell()
            command = [str(BINARIES / "ray"), "start", *words, *_node_words(num_cpus)]
            process = stack.enter_context(started(command, env=environment, cwd=ROOT, stdout=log, stderr=log))

            def written(begin: int = begin) -> str:
                return path.read_bytes()[begin:].decode()

            wait_until(lambda: "Ray runtime started" in written() or process.poll() is not None, "Ray has started")  # noqa: B023
            if process.poll() is None:
                yield process
                return
            end_all(process)
        raise AssertionError(written()[-1500:])


def live_nodes(head: Head) -> set[str]:
    """Return the ids of the nodes that are alive."""
    answer = httpx.get(f"{head.dashboard}/api/v0/nodes", headers=head.token, timeout=30, trust_env=False).json()
    return {node["node_id"] for node in answer["data"]["result"]["result"] if node["state"] == "ALIVE"}


def _node_words(num_cpus: int) -> list[str]:
    # Ports of workers are drawn by the system: Ray's own range may be in use by other clusters of this machine.
    words = ["--block", f"--num-cpus={num_cpus}", "--disable-usage-stats", "--object-store-memory=100000000"]
    words += ["--min-worker-port=0", "--max-worker-port=0"]
    return [*words, *(f"--dashboard-agent-{kind}-port={free_port()}" for kind in ("listen", "grpc"))]


def _text(url: str) -> str:
    """Return the answer; empty if there is none, or a problem."""
    try:
        answer = httpx.get(url, timeout=30, trust_env=False)
    except httpx.TransportError:
        return ""
    return answer.text if answer.status_code == 200 else ""


def _answers(url: str, headers: dict[str, str]) -> bool:
    try:
        return httpx.get(url, headers=headers, timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def fill_in(args: dict[str, Any], folder: Path, *, file: str = "embed.yaml") -> dict[str, Any]:
    """Return a file of serve/ with another port, little CPU and ``args``, filled in as by hand."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "serve" / file).read_text())
    config["http_options"]["port"] = free_port()
    given = config["applications"][0]["args"]
    given |= {"num_cpus": 0.5, "min_replicas": NUM_REPLICAS, "max_replicas": NUM_REPLICAS, "tracking": None}
    given |= {"cache_folder": str(folder / "cache")}
    given["explorer"]["folder"] = str(folder / "explorer")
    given["edge"]["body_timeout_s"] = 10.0
    given["batching"]["max_backlog_s"] = 10.0
    given |= args
    if given.get("models"):
        uri = given.pop("model_uri")
        for model in given["models"]:
            model |= {"model_uri": uri, "num_cpus": 0.25, "max_replicas": model["min_replicas"]}
    return config


@dataclass
class Service:
    """A deployed service."""

    head: Head
    config: dict[str, Any]  # the YAML file's content
    folder: Path  # of the file

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.config['http_options']['port']}"

    @property
    def args(self) -> dict[str, Any]:
        """Arguments of the application."""
        args: dict[str, Any] = self.config["applications"][0]["args"]
        return args

    def deploy(self) -> None:
        """Deploy it as it is configured, and wait until it answers."""
        file = self.folder / "deploy.yaml"
        file.write_text(yaml.safe_dump(self.config, sort_keys=False))
        self.head.deployed = self
        self.head.deploy(file)
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Wait until it answers."""
        wait_until(lambda: _answers(f"{self.url}/readyz", {}), "the service is ready")

    def wait_for_replicas(self, number: int, *, without: set[int] = frozenset()) -> float:  # type: ignore[assignment]
        """Wait until exactly ``number`` replicas run, none of them in ``without``; returns the seconds that it took."""
        start = time.monotonic()

        def is_complete() -> bool:
            running = set(self.head.running_replicas())
            return len(running) == number and not running & without

        wait_until(is_complete, f"{number} replicas run")
        return time.monotonic() - start

    def figures(self, name: str) -> dict[str, float]:
        """Return a figure of /metrics by the labels in braces, summed over processes."""
        # A service with too many requests refuses this one as well.
        text = wait_until(lambda: _text(f"{self.url}/metrics"), "metrics can be read")
        found: dict[str, float] = {}
        for labels, value in re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", text, re.MULTILINE):
            kept = ",".join(sorted(part for part in labels.split(",") if not part.startswith("process=")))
            found[kept] = found.get(kept, 0.0) + float(value)
        return found

    def figure(self, name: str) -> float:
        """Return the sum of a figure."""
        return sum(self.figures(name).values())
