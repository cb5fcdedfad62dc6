"""`cytoray doctor` on planted faults: each is named with its remedy; nothing hangs, and nothing is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import boto3
import pytest
from fault_proxy import Fault, FaultProxy, run_fault_proxy

from cytoray.operations.doctor.clocks import check_clock
from cytoray.operations.doctor.collective import check_gpus, run_all_reduce
from cytoray.operations.doctor.findings import Check, Finding, ok
from cytoray.operations.doctor.kube_cluster import check_kubernetes
from cytoray.operations.doctor.machine import check_cpus, check_files, check_memory, find_limits
from cytoray.operations.doctor.mlflow_server import check_mlflow
from cytoray.operations.doctor.ray_cluster import check_auth, check_cluster, check_ports
from cytoray.operations.doctor.running import run_checks
from cytoray.operations.doctor.store import check_folder, check_store
from cytoray.operations.doctor.versions import check_packages, check_python, find_lock

CYTORAY = "from cytoray.cli import main; main()"


def outcomes(findings: Iterator[Finding] | list[Finding]) -> dict[str, str]:
    """The outcome of each check; a bad one always has a remedy."""
    found = list(findings)
    assert all(finding.remedy for finding in found if finding.outcome != "ok")
    return {finding.check: finding.outcome for finding in found}


def the(check: str, findings: Iterator[Finding]) -> Finding:
    """The finding of a check."""
    (found,) = [finding for finding in findings if finding.check == check]
    return found


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def proxy(s3_endpoint: str, s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy before the S3 server, which the environment names."""
    with run_fault_proxy(s3_endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@contextmanager
def answering(status: int, body: bytes = b"{}", kind: str = "application/json") -> Iterator[str]:
    """A server that gives every request one answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
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


def keys_left() -> int:
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    return sum(".cytoray-doctor" in item["Key"] for item in client.list_objects_v2(Bucket="cells").get("Contents", []))


def test_a_good_store_is_good_and_left_as_it_was(s3_uri: str):
    found = outcomes(check_store(s3_uri))
    assert found.pop("store.latency") in ("ok", "warn")  # by the load of this machine
    names = ("store.reach", "store.clock", "store.write", "store.conditional_write")
    assert found == dict.fromkeys(names, "ok")
    assert keys_left() == 0


def test_a_store_that_is_not_there(s3_uri: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed_port()}")
    found = the("store.reach", check_store(s3_uri))
    assert found.outcome == "fail"
    assert "AWS_ENDPOINT_URL" in found.remedy


def test_a_bucket_that_is_missing_is_not_made(s3_uri: str, proxy: FaultProxy):
    found = the("store.reach", check_store("s3://nobodys-bucket/store"))
    assert (found.outcome, "NoSuchBucket" in found.seen) == ("fail", True)
    assert "Create the bucket" in found.remedy
    assert proxy.requests("PUT") == []


@pytest.mark.parametrize(
    ("code", "status", "remedy"),
    [
        ("SignatureDoesNotMatch", 403, "AWS_SECRET_ACCESS_KEY"),
        ("AccessDenied", 403, "s3:PutObject"),
        ("SlowDown", 503, "overloaded"),
        ("RequestTimeTooSkewed", 403, "Synchronise the clock"),
    ],
)
def test_a_store_that_refuses(code: str, status: int, remedy: str, proxy: FaultProxy, s3_uri: str):
    proxy.set_plan(Fault("status", status=status, code=code))
    (found,) = check_store(s3_uri)
    assert found.outcome == "fail"
    assert code in found.seen
    assert remedy in found.remedy.replace("GetObject, PutObject", "s3:PutObject")
    assert proxy.fired() == 1


def test_a_store_that_may_only_be_read(proxy: FaultProxy, s3_uri: str):
    proxy.set_plan(Fault("status", method="PUT", status=403, code="AccessDenied"))
    found = outcomes(check_store(s3_uri))
    assert (found["store.reach"], found["store.write"]) == ("ok", "fail")


def test_a_store_that_ignores_conditions(proxy: FaultProxy, s3_uri: str):
    proxy.set_plan(Fault("drop_condition", method="PUT", n=9))
    found = the("store.conditional_write", check_store(s3_uri))
    assert found.outcome == "warn"
    assert "one writer" in found.remedy
    assert proxy.fired() == 2
    assert keys_left() == 0


@pytest.mark.parametrize(("seconds", "outcome"), [(3600.0, "fail"), (90.0, "warn"), (-90.0, "warn")])
def test_a_clock_that_is_off(seconds: float, outcome: str, proxy: FaultProxy, s3_uri: str):
    proxy.set_plan(Fault("old_date", seconds=seconds, n=9))
    found = the("store.clock", check_store(s3_uri))
    assert found.outcome == outcome
    assert ("ahead of" if seconds > 0 else "behind") in found.seen
    assert "timedatectl" in found.remedy


def test_a_date_that_is_none_is_no_finding():
    assert check_clock("x", "", whose="it") is None
    assert check_clock("x", "yesterday", whose="it") is None


def test_a_store_and_an_mlflow_that_hang_do_not_hang_the_doctor(proxy: FaultProxy, s3_uri: str, tmp_path: Path):
    """The whole command, with servers that accept connections and never answer."""
    proxy.set_plan(Fault("hang", method="", n=99))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        options = ["doctor", "--store", s3_uri, "--uri", uri, "--cluster", uri, "--time-limit", "6", "--json"]
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", CYTORAY, *options], capture_output=True, text=True, timeout=120, cwd=tmp_path
        )
        seconds = time.monotonic() - started
    assert done.returncode == 2, done.stderr
    found = {each["check"]: each for each in json.loads(done.stdout)["findings"]}
    for check in ("store.reach", "mlflow.reach", "cluster.reach"):
        assert found[check]["outcome"] == "fail", found[check]
        assert found[check]["remedy"]
    assert seconds < 60  # 6, and the start of Python on a busy machine
    assert found["python"]["outcome"] == "ok"


def test_a_check_that_hangs_keeps_what_it_found_and_others_are_not_held_up():
    release = threading.Event()

    def hang() -> Iterator[Finding]:
        yield ok("a", "first")
        release.wait(60)

    def broken() -> Iterator[Finding]:
        yield ok("b", "good")
        raise ZeroDivisionError("planted")

    found = run_checks(
        [Check("a", hang, remedy="wait"), Check("b", broken), Check("c", lambda: iter([ok("c", "c")]))], limit_s=0.5
    )
    release.set()
    assert [(each.check, each.outcome) for each in found] == [
        ("a", "ok"),
        ("a", "fail"),
        ("b", "ok"),
        ("b", "fail"),
        ("c", "ok"),
    ]
    assert "no answer within" in found[1].seen
    assert "ZeroDivisionError: planted" in found[3].seen


def test_an_mlflow_that_is_not_there():
    found = the("mlflow.reach", check_mlflow(f"http://127.0.0.1:{closed_port()}"))
    assert found.outcome == "fail"
    assert "runs" in found.remedy


@pytest.mark.parametrize(
    ("status", "check", "remedy"),
    [
        (401, "mlflow.auth", "MLFLOW_TRACKING_PASSWORD"),
        (403, "mlflow.auth", "MLFLOW_TRACKING_TOKEN"),
        (500, "mlflow.reach", "database"),
        (404, "mlflow.reach", "root of an MLflow"),
    ],
)
def test_an_mlflow_that_refuses(status: int, check: str, remedy: str):
    with answering(status) as url:
        found = the(check, check_mlflow(url.replace("//", "//ann:hunter2@")))
    assert found.outcome == "fail"
    assert remedy in found.remedy
    assert "hunter2" not in found.seen


def test_a_web_page_is_not_mlflow():
    with answering(200, b"<html>", "text/html") as url:
        assert "not MLflow" in the("mlflow.reach", check_mlflow(url)).seen


def test_a_database_that_is_locked_or_no_database(tmp_path: Path):
    path = tmp_path / "mlflow.db"
    assert outcomes(check_mlflow(f"sqlite:///{path}")) == {"mlflow.reach": "ok"}
    assert not path.exists()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (x)")
        connection.execute("BEGIN EXCLUSIVE")
        assert "locked" in the("mlflow.reach", check_mlflow(f"sqlite:///{path}")).seen
    path.write_bytes(b"not a database, but long enough to be looked at as one" * 20)
    assert outcomes(check_mlflow(f"sqlite:///{path}")) == {"mlflow.reach": "fail"}


def test_a_cluster_that_anybody_may_use(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 64)
    with answering(200, b'{"ray_version": "2.60.0"}') as url:
        found = the("cluster.auth", check_cluster(url))
    assert found.outcome == "fail"
    assert "RAY_AUTH_MODE=token" in found.remedy


def test_a_cluster_of_another_version(monkeypatch: pytest.MonkeyPatch):
    with answering(200, b'{"ray_version": "2.51.0"}') as url:
        found = the("cluster.version", check_cluster(url))
    assert (found.outcome, "ray==2.60" in found.remedy) == ("fail", True)


@pytest.mark.parametrize(
    ("script", "check", "remedy"),
    [
        ("echo 'error: context \"x\" does not exist' >&2; exit 1", "cluster.reach", "get-contexts"),
        ("case $* in *can-i*) echo no; exit 1;; esac", "cluster.kuberay", "right to create rayjobs"),
        (
            'case $* in *can-i*) echo "Warning: the server doesn\'t have a resource type" >&2; echo yes;; esac',
            "cluster.kuberay",
            "Install KubeRay",
        ),
    ],
)
def test_a_kubernetes_that_cannot_run_jobs(
    script: str, check: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    program = tmp_path / "kubectl"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = the(check, check_kubernetes("kuberay:x/cytoray"))
    assert (found.outcome, remedy in found.remedy) == ("fail", True)


def test_authentication_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for mode, expected in {"token": "ok", "disabled": "warn", "tokn": "fail"}.items():
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
        assert outcomes(check_auth())["auth.mode"] == expected
    monkeypatch.delenv("RAY_AUTH_MODE")
    assert outcomes(check_auth())["auth.mode"] == "warn"
    assert outcomes(check_auth())["auth.token"] == "ok"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "short")
    assert outcomes(check_auth())["auth.token"] == "warn"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    assert outcomes(check_auth())["auth.token"] == "warn"
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("a" * 64)
    assert outcomes(check_auth())["auth.token"] == "ok"


def test_a_port_that_is_in_use():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
        (found,) = check_ports({port: "the service"})
        assert (found.outcome, f"{port} (the service)" in found.seen) == ("warn", True)
    assert outcomes(check_ports({port: "the service"})) == {"ports": "ok"}


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB, filled."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        with (folder / "full").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full(full_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from cytoray.operations.doctor.machine import check_disks

    (found,) = check_store(str(full_disk / "store"))
    assert (found.check, found.outcome) == ("store.write", "fail")
    assert "Free space" in found.remedy
    monkeypatch.setenv("RAY_TMPDIR", str(full_disk))
    assert outcomes(check_disks(full_disk)) == {"disk.tmp": "fail", "disk.store": "fail"}
    assert sorted(path.name for path in full_disk.iterdir()) == ["full"]
    assert check_folder(tmp_path / "new" / "folder", "x").outcome == "ok"
    assert not (tmp_path / "new").exists()


def test_little_shared_memory(full_disk: Path):
    found = the("memory.shm", check_memory(shm=full_disk))
    assert (found.outcome, "--shm-size" in found.remedy) == ("warn", True)


def test_limits_of_a_control_group(tmp_path: Path):
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text(f"{512 * 2**20}\n")
    limits = find_limits(tmp_path)
    assert (limits.num_cpus, limits.memory_bytes) == (0.5, 512 * 2**20)
    assert "OMP_NUM_THREADS=1" in the("cpus", check_cpus(cgroup=tmp_path)).remedy
    assert outcomes(check_memory(cgroup=tmp_path))["memory"] == "fail"
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert find_limits(tmp_path) == find_limits(tmp_path / "nothing")


def test_few_open_files():
    code = "from cytoray.operations.doctor.machine import check_files; print([f.outcome for f in check_files()])"
    limit: Callable[[], None] = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))  # noqa: E731
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, preexec_fn=limit)
    assert done.stdout.strip() == "['fail']", done.stderr
    assert [outcomes(check_files(number))["files"] for number in (4096, 65536)] == ["warn", "ok"]


def test_packages_that_differ_from_the_lock(tmp_path: Path):
    lock = tmp_path / "constraints.txt"
    lock.write_text("torch==1.0.0\nnot-installed==3\n# a comment\nray==2.60.0\n")
    found = the("packages.lock", check_packages(lock))
    assert found.outcome == "warn"
    assert "torch" in found.seen
    assert "(locked 1.0.0)" in found.seen
    assert "not-installed" not in found.seen
    assert find_lock() == Path(__file__).parents[2] / "constraints.txt"
    assert outcomes(check_python((3, 10, 4))) == {"python": "fail"}


def test_a_driver_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho NVIDIA-SMI has failed: it cannot communicate with the driver\nexit 9\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (found,) = check_gpus()
    assert (found.outcome, "communicate" in found.seen) == ("fail", True)
    program.write_text("#!/bin/sh\necho NVIDIA H200, 570.1\necho NVIDIA H200, 570.1\n")
    assert [each.seen for each in check_gpus()] == ["2: NVIDIA H200, driver 570.1"]


@pytest.mark.slow
def test_processes_that_cannot_talk(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nonsense0")
    found = run_all_reduce("gloo", 2, limit_s=120)
    assert found.outcome == "fail"
    assert "nonsense0" in found.seen
    assert "GLOO_SOCKET_IFNAME" in found.remedy


def test_a_clean_machine_has_no_failure(s3_uri: str, tmp_path: Path):
    """The whole command against good servers; warnings depend on this machine."""
    options = ["doctor", "--store", s3_uri, "--uri", f"sqlite:///{tmp_path}/mlflow.db", "--time-limit", "120", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", CYTORAY, *options], capture_output=True, text=True, timeout=200, cwd=tmp_path
    )
    findings = json.loads(done.stdout)["findings"]
    assert [each for each in findings if each["outcome"] == "fail"] == []
    assert done.returncode == 0
    assert {"all_reduce": "ok", "store.conditional_write": "ok", "mlflow.reach": "ok"}.items() <= {
        each["check"]: each["outcome"] for each in findings
    }.items()
    assert keys_left() == 0
