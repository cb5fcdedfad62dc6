"""Configurations that point at an MLflow or at nothing."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from cytoray.tracking import TrackingConfig
from cytoray.tracking.server import connect


@pytest.fixture
def config(mlflow_uri, tmp_path) -> TrackingConfig:
    """A store of its own for one test; no server needed."""
    return TrackingConfig(uri=mlflow_uri, journal_folder=str(tmp_path / "runs"))


@pytest.fixture
def closed_port() -> int:
    """A port of this machine on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def down(closed_port, tmp_path) -> TrackingConfig:
    """The same journals, with an MLflow that is away."""
    return TrackingConfig(uri=f"http://127.0.0.1:{closed_port}", journal_folder=str(tmp_path / "runs"))


@pytest.fixture
def history(config) -> Callable[[str, str], list[tuple[int, float]]]:
    """(step, value) rows of one metric of one run, as MLflow's own client reads them back."""
    client = connect(config.uri)
    return lambda run_id, key: sorted((row.step, row.value) for row in client.get_metric_history(run_id, key))
