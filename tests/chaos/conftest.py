"""One token-protected Ray head with one service, shared by the tests that disturb it, and the table of what came of it.

``CHAOS_SCALE`` multiplies the number of faults and of requests; ``CHAOS_RESULTS`` names a JSON file for the table.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from chaos_cells import Oracle, write_model
from chaos_head import (
    NUM_REPLICAS,
    SCALE,
    Head,
    Service,
    fill_in,
    head_environment,
    scratch_folder,
    started_head,
)
from chaos_load import Load, Summary
from fault_proxy import FaultProxy, run_fault_proxy

from cytoray.serving.config import AppArgs

_ROWS: list[dict[str, Any]] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.chaos)
            item.add_marker(pytest.mark.timeout(1800 * max(1.0, SCALE)))


@dataclasses.dataclass
class Outcome:
    """Takes down what a test found; a test that does not, or whose fault did not fire, fails."""

    rows: int = 0

    def __call__(
        self,
        fault: str,
        fired: int,
        load: Load | Summary | None = None,
        *,
        recovery_s: Sequence[float] = (),
        **more: Any,
    ) -> None:
        """Add a row to the table."""
        assert fired > 0, f"{fault}: the fault did not fire, so this test proves nothing"
        row: dict[str, Any] = {"fault": fault, "fired": fired}
        if load is not None:
            row |= dataclasses.asdict(load.summary if isinstance(load, Load) else load)
        if recovery_s:
            row["recovery_s"] = max(recovery_s)
        _ROWS.append(row | more)
        self.rows += 1


@pytest.fixture
def outcome(request: pytest.FixtureRequest) -> Iterator[Outcome]:
    """A function that records which fault fired how often, under which load, and how long recovery took."""
    failures, found = request.session.testsfailed, Outcome()
    yield found
    assert found.rows or request.session.testsfailed > failures, "this test did not say that its fault fired"


COLUMNS = ("fired", "requests", "failed", "wrong", "p50_ms", "p99_ms", "worst_ms", "recovery_s")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table, and write it as JSON."""
    if not _ROWS:
        return
    rows = sorted(_ROWS, key=lambda row: (int(row["fault"].split()[0][1:]), row["fault"]))
    terminalreporter.section("chaos")
    width = max(len(row["fault"]) for row in rows)
    terminalreporter.write_line(f"{'fault':{width}}" + "".join(f"{name:>11}" for name in COLUMNS))
    for row in rows:
        known = set(COLUMNS) | {"fault", "versions"}
        more = {key: value for key, value in row.items() if key not in known and value not in ({}, None)}
        cells = "".join(f"{_short(row.get(name)):>11}" for name in COLUMNS)
        terminalreporter.write_line(f"{row['fault']:{width}}{cells}  {more or ''}")
    if path := os.environ.get("CHAOS_RESULTS"):
        Path(path).write_text(json.dumps(rows, indent=1) + "\n")


def _short(value: Any) -> str:
    return "" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bundles ``1`` and ``2`` of a small model."""
    folder = tmp_path_factory.mktemp("models")
    for seed in (1, 2):
        write_model(folder / str(seed), seed=seed)
    return folder


@pytest.fixture(scope="session")
def oracle(models: Path) -> Oracle:
    """The offline answers; a bundle in a folder is the version ``unregistered``."""
    found = Oracle()
    found.learn("unregistered", models / "1")
    return found


@pytest.fixture(scope="session")
def store(s3_endpoint: str) -> Iterator[FaultProxy]:
    """An S3 server behind the fault proxy, which the environment names for this session, the head and MLflow."""
    with run_fault_proxy(s3_endpoint) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield proxy


@dataclasses.dataclass(frozen=True)
class Shared:
    """The head of the session, and the service that most tests disturb."""

    head: Head
    service: Service


@pytest.fixture(scope="session")
def shared(models: Path, store: FaultProxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """A head of four logical CPUs, and two replicas of the model ``1`` on it once a test has asked for ``healthy``."""
    folder = tmp_path_factory.mktemp("service")
    config = fill_in({"model_uri": str(models / "1")}, folder)
    args = AppArgs.model_validate(config["applications"][0]["args"])
    environment = head_environment(args, CYTORAY_SERVE=str(folder / "deploy.yaml"))
    with scratch_folder() as scratch, started_head(environment | {"RAY_TMPDIR": str(scratch)}, num_cpus=4) as head:
        yield Shared(head, Service(head, config, folder))


@pytest.fixture
def healthy(shared: Shared) -> Service:
    """The shared service with all its replicas, whatever the tests before have done to it."""
    service = shared.service
    if shared.head.deployed is not service:
        service.deploy()
    service.wait_until_ready()
    service.wait_for_replicas(NUM_REPLICAS)
    return service


@pytest.fixture
def load(oracle: Oracle) -> Callable[..., Load]:
    """A function that makes a load on a service."""

    def make(service: Service, **options: Any) -> Load:
        return Load(service.url, oracle, **options)

    return make
