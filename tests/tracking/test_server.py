"""An MLflow that is unreachable, hangs, rejects us or is something else is reported in seconds, without secrets."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from cytoray.errors import RegistryError, RegistryUnavailableError
from cytoray.tracking import TrackingConfig, prepare_environment, server
from cytoray.tracking.server import connect, experiment_id
from cytoray.training.config import PretrainConfig, TrainConfig

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")


@contextlib.contextmanager
def answering(status: int) -> Iterator[str]:
    """A server that gives every request the same status."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    answerer = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=answerer.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{answerer.server_port}"
    finally:
        answerer.shutdown()
        answerer.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "MLFLOW_TRACKING_TOKEN"), (404, "is not MLflow"), (400, "is not MLflow")],
)
def test_an_answer_that_is_none_is_explained_at_once(status, message):
    before = time.monotonic()
    with answering(status) as uri, pytest.raises(RegistryError, match=message):
        connect(uri)
    assert time.monotonic() - before < 30  # retries would take minutes


@pytest.mark.parametrize("status", [500, 503, 507])
def test_errors_of_the_server_are_those_of_an_mlflow_without_its_database(status):
    with answering(status) as uri, pytest.raises(RegistryUnavailableError, match=rf"HTTP {status}\).*its database"):
        connect(uri)


def test_a_closed_port_is_told_in_seconds_and_without_the_password(closed_port):
    before = time.monotonic()
    with pytest.raises(RegistryError, match=r"Connection refused\. Check that it runs") as error:
        connect(f"http://user:hunter2@127.0.0.1:{closed_port}")
    assert time.monotonic() - before < 10
    assert "hunter2" not in str(error.value) + repr(error.value.details)


def test_a_server_that_never_answers_is_given_up(monkeypatch):
    assert server.PROBE_TIMEOUT_S < 10
    monkeypatch.setattr(server, "PROBE_TIMEOUT_S", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        before = time.monotonic()
        with pytest.raises(RegistryError, match="timed out"):
            connect(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - before < 10


def test_a_file_that_is_no_database_is_told_in_seconds(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"certainly not sqlite" * 100)
    with pytest.raises(RegistryError, match="not a database"):
        connect(f"sqlite:///{tmp_path}/mlflow.db")


def test_a_deleted_experiment_is_named_with_the_remedy(config):
    client = connect(config.uri)
    client.delete_experiment(experiment_id(client, "old", artifact_location=None, uri=config.uri))
    with pytest.raises(RegistryError, match=r"'old' is deleted.*Restore"):
        experiment_id(client, "old", artifact_location=None, uri=config.uri)


def test_safe_defaults_are_set_where_the_user_set_nothing():
    environment = {"MLFLOW_DISABLE_TELEMETRY": "false", "AWS_ENDPOINT_URL": "http://s3"}
    prepare_environment(environment)
    assert environment["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "false"
    assert environment["MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE"] == "path"


@pytest.fixture
def job_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of a submitted job, as Ray unpacks it."""
    folder = tmp_path / "session_1" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"uri": "sqlite:///.cytoray/mlflow.db"},
        {"journal_folder": ".cytoray/journal"},
        {"journal_folder": None},
        {"artifact_location": "artifacts"},
    ],
)
def test_a_submitted_job_refuses_paths_that_vanish_with_it(job_folder: Path, changes: dict[str, str | None]) -> None:
    lasting = {"uri": f"sqlite:////{job_folder.parents[3]}/mlflow.db", "journal_folder": str(job_folder.parents[3])}
    TrackingConfig(**lasting)
    given = {name: value for name, value in (lasting | changes).items() if value is not None}
    with pytest.raises(ValidationError, match="outlives the job"):
        TrackingConfig(**given)


@pytest.mark.usefixtures("job_folder")
def test_a_submitted_job_refuses_a_store_that_vanishes_with_it(tmp_path: Path) -> None:
    tracking = TrackingConfig(uri="http://127.0.0.1:9", journal_folder=str(tmp_path))
    run = {"run": "run", "corpus": "cells", "train": TrainConfig(num_steps=1), "tracking": tracking}
    assert PretrainConfig(store=str(tmp_path), **run).store == str(tmp_path)
    assert PretrainConfig(store="s3://bucket/prefix", **run).store == "s3://bucket/prefix"
    with pytest.raises(ValidationError, match="outlives the job"):
        PretrainConfig(store=".cytoray/store", **run)
