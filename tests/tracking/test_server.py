"""An MLflow that is away, hangs, refuses or is something else is told within seconds, without secrets."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from cytoray.errors import RegistryError
from cytoray.tracking import prepare_environment, server
from cytoray.tracking.server import connect, experiment_id

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
    [(401, "MLFLOW_TRACKING_TOKEN"), (404, "is not MLflow"), (500, "Check that it runs"), (503, "Check that it runs")],
)
def test_an_answer_that_is_none_is_explained_at_once(status, message):
    before = time.monotonic()
    with answering(status) as uri, pytest.raises(RegistryError, match=message):
        connect(uri)
    assert time.monotonic() - before < 30  # retries would take minutes


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
