"""The same over HTTP: a real MLflow server that starts late, with its artifacts served by itself or kept in S3."""

from __future__ import annotations

import math
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer
from processes import started

from cytoray.model.bundle import load_bundle
from cytoray.registry.models import Lineage, register, resolve
from cytoray.tracking import RunLog, TrackingConfig, prepare_environment, shipping
from cytoray.tracking.server import connect

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
    # botocore still asks for naive UTC times
    pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning"),
]
NAME = "annotator"


@contextmanager
def running_server(folder: Path, database: Path, port: int) -> Iterator[None]:
    """``mlflow server`` inside the block, with its workers."""
    environment = dict(os.environ, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")  # its job workers take ten seconds
    prepare_environment(environment)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", str(folder / "artifacts")]
    with (
        (folder / "server.log").open("wb") as log,
        started(command, ask_s=30, env=environment, cwd=folder, stdout=log, stderr=log),
    ):
        yield


@pytest.mark.slow  # the server alone takes six seconds of CPU to start
def test_a_run_begun_before_its_server_arrives_and_its_bundle_is_served(
    migrated_database, make_bundle, tmp_path, monkeypatch
):
    monkeypatch.setattr(shipping, "LONGEST_PAUSE_S", 1.0)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tracking = TrackingConfig(uri=f"http://127.0.0.1:{port}", journal_folder=str(tmp_path / "runs"))
    log = RunLog.start(tracking, run_name="early", params={"seed": 1})
    log.log_metrics({"loss": 1.0, "grad_norm": math.nan, "scale": math.inf}, step=1)
    database = tmp_path / "mlflow.db"
    database.write_bytes(migrated_database.read_bytes())
    with running_server(tmp_path, database, port):
        deadline = time.monotonic() + 60
        while log.mlflow_run_id is None and time.monotonic() < deadline:
            time.sleep(0.1)
        log.log_metrics({"loss": 0.5}, step=2)
        assert log.finish(wait_s=30), (tmp_path / "server.log").read_text()
        client = connect(tracking.uri)
        run = client.get_run(log.mlflow_run_id)
        assert (run.info.status, run.data.params) == ("FINISHED", {"seed": "1"})
        assert [row.value for row in client.get_metric_history(run.info.run_id, "loss")] == [1.0, 0.5]
        assert math.isnan(run.data.metrics["grad_norm"])
        assert run.data.metrics["scale"] > 1e308

        folder = make_bundle(1)
        lineage = Lineage(run_id=log.mlflow_run_id)
        version = register(folder, name=NAME, tracking=tracking, lineage=lineage, alias="champion")
        assert version.source_uri.startswith("mlflow-artifacts:/")
        bundle, found = resolve(f"models:/{NAME}@champion", tracking=tracking, cache_folder=tmp_path / "cache")
        assert (found, bundle.digest) == (version, load_bundle(folder).digest)


def test_a_bundle_goes_to_s3_and_back(tracking, make_bundle, tmp_path, monkeypatch):
    s3 = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    s3.start()
    try:
        host, port = s3.get_host_and_port()
        for key, value in {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x", "DEFAULT_REGION": "us-east-1"}.items():
            monkeypatch.setenv(f"AWS_{key}", value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        boto3.client("s3").create_bucket(Bucket="models")
        config = tracking.model_copy(update={"artifact_location": "s3://models/mlflow", "experiment": "in-s3"})
        version = register(make_bundle(1), name=NAME, tracking=config, alias="champion")
        assert version.source_uri.startswith("s3://models/mlflow/")
        bundle, _ = resolve(f"models:/{NAME}@champion", tracking=config, cache_folder=tmp_path / "cache")
        assert bundle.digest == version.digest
    finally:
        s3.stop()
