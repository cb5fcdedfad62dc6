"""The stages as Ray jobs: submitted from a clean folder to a token-protected head, from s3:// to s3://."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
import yaml
from planted_proteins import build
from processes import started

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
BUCKET = "cells"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """An S3 server with one bucket; the variables that lead to it, also set in this process."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    yield variables
    server.stop()


@dataclass(frozen=True)
class Head:
    """A running Ray head with token authentication."""

    url: str
    environment: dict[str, str]


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    """``ray start --head`` of two CPUs, stopped at the end."""
    port, dashboard = _free_port(), _free_port()
    binaries = Path(sys.executable).parent
    scratch = tempfile.mkdtemp(prefix="ray-")  # short: the path of a socket has at most 107 characters
    path = f"{binaries}:{os.environ['PATH']}"  # as in an activated environment: a job's `python` is looked up there
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_TMPDIR": scratch, "PATH": path}
    ray = str(binaries / "ray")
    command = [ray, "start", "--head", "--block", f"--port={port}", "--num-cpus=2", "--disable-usage-stats"]
    # The session's own Ray may hold the agents' usual ports.
    command += [f"--dashboard-agent-{kind}-port={_free_port()}" for kind in ("listen", "grpc")]
    command += [f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", "--object-store-memory=500000000"]
    url = f"http://127.0.0.1:{dashboard}"
    try:
        # Killed without being asked: it would take half a minute to leave.
        with (tmp_path / "head.log").open("wb") as log, started(command, env=environment, stdout=log, stderr=log):
            _wait_for(url)
            yield Head(url, environment)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/api/version", trust_env=False).status_code < 500:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    pytest.fail("the dashboard did not come up")


@pytest.fixture
def clean_folder(tmp_path: Path) -> Path:
    """A copy of what git knows or would take: what a fresh clone holds."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    folder = tmp_path / "clone"
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def _submit(head: Head, folder: Path, variables: dict[str, str], entrypoint: str) -> dict[str, Any]:
    """Submit one job through the Jobs API, wait, and return what it printed as JSON."""
    from ray.job_submission import JobStatus, JobSubmissionClient

    runtime_env = yaml.safe_load((folder / "configs" / "runtime_env.yaml").read_text())
    runtime_env["working_dir"] = str(folder)
    runtime_env["py_modules"] = [str(folder / module) for module in runtime_env["py_modules"]]
    runtime_env["env_vars"] |= variables
    client = JobSubmissionClient(head.url)
    job = client.submit_job(entrypoint=entrypoint, runtime_env=runtime_env)
    deadline = time.monotonic() + 400
    while (status := client.get_job_status(job)) not in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED):
        assert time.monotonic() < deadline, client.get_job_logs(job)[-3000:]
        time.sleep(1)
    logs = client.get_job_logs(job)
    assert status == JobStatus.SUCCEEDED, logs[-4000:]
    result: dict[str, Any] = json.loads(logs[logs.index("\n{\n") :])
    return result


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("last", ["ingest", pytest.param("pretrain", marks=pytest.mark.slow)])
def test_jobs_go_from_s3_to_s3_and_nothing_goes_without_the_token(
    last: str, *, s3: dict[str, str], head: Head, clean_folder: Path, tmp_path: Path
) -> None:
    from cytoray import storage
    from cytoray.config import load_config
    from cytoray.corpus.config import IngestConfig
    from cytoray.corpus.manifest import load_manifest

    refused = httpx.post(f"{head.url}/api/jobs/", json={"entrypoint": "true"}, trust_env=False)
    assert refused.status_code == 401

    config = load_config(IngestConfig, clean_folder / "configs/corpus/quickstart.yaml")
    source, store = f"s3://{BUCKET}/raw/blood.h5ad", f"s3://{BUCKET}/store"
    storage.write_bytes(source, Path(config.sources[0].uri).read_bytes())

    ingest = f"python -m jobs.ingest --config configs/corpus/quickstart.yaml --set store={store}"
    ingested = _submit(head, clean_folder, s3, f"{ingest} --set 'sources=[{{uri: {source}, rows: train}}]'")
    manifest = load_manifest(store, "pbmc68k")
    assert ingested["manifest_digest"] == manifest.digest
    assert 500 < ingested["num_cells"] == manifest.num_cells < 600

    cells, report = f"s3://{BUCKET}/raw/cite.h5ad", f"s3://{BUCKET}/report"
    build().write_h5ad(tmp_path / "cite.h5ad")
    storage.write_bytes(cells, (tmp_path / "cite.h5ad").read_bytes())
    assess = f"python -m jobs.assess --config configs/assess/multiomic.yaml --set data={cells} --set out={report}"
    assessed = _submit(head, clean_folder, s3, assess)
    assert assessed["metrics"]["pearson"]["verdict"] in ("win", "tie", "loss")
    assert json.loads(storage.read_bytes(f"{report}/report.json")) == assessed
    assert sorted(storage.list_files(report)) == [f"{report}/report.html", f"{report}/report.json"]
    if last == "ingest":
        return

    database = f"sqlite:///{tmp_path}/mlflow.db"
    overrides = (
        f"--set store={store} --set train.num_steps=4 --set train.checkpoint_every=2 --set tracking.uri={database}"
    )
    overrides += f" --set tracking.journal_folder={tmp_path}/journal --set tracking.artifact_location={store}/mlflow"
    trained = _submit(
        head, clean_folder, s3, f"python -m jobs.pretrain --config configs/pretrain/quickstart.yaml {overrides}"
    )
    assert trained["step"] == 4
    assert trained["last_loss"] < trained["first_loss"]
    assert trained["corpus_manifest_digest"] == manifest.digest
    assert trained["mlflow_run_id"]
    assert storage.exists(f"{trained['checkpoint']}/COMMIT.json")
    assert storage.exists(f"{trained['bundle']}/model.safetensors")
