"""A small clean corpus to compare with, ways to run an ingest, and the table of what fired and what came of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from fault_proxy import FaultProxy, run_fault_proxy
from processes import end_all
from training_process import STEPS, Training, start_training

from cytoray.corpus import ingest as ingest_module
from cytoray.corpus.config import IngestConfig
from cytoray.corpus.ingest import IngestResult, ingest
from cytoray.corpus.synthetic import SynthConfig, synthesise
from cytoray.failpoints import ONCE_VARIABLE, VARIABLE

DRIVER = Path(__file__).parent.parent / "helpers" / "ingest_driver.py"
_TABLE: list[tuple[str, int, str]] = []


@pytest.fixture
def outcome(request: pytest.FixtureRequest) -> Iterator[Callable[[str, int, str], None]]:
    """A function that says which fault fired how often, and what came of it; a test that does not call it fails."""
    rows, failures = len(_TABLE), request.session.testsfailed

    def say(fault: str, fired: int, result: str) -> None:
        assert fired > 0, f"{fault}: the fault did not fire, so this test proves nothing"
        _TABLE.append((fault, fired, result))

    yield say
    assert len(_TABLE) > rows or request.session.testsfailed > failures, "this test did not say that its fault fired"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table of faults."""
    if not _TABLE:
        return
    terminalreporter.section("faults")
    width = max(len(fault) for fault, _, _ in _TABLE)
    terminalreporter.write_line(f"{'fault':{width}}  fired  outcome")
    for fault, fired, result in sorted(_TABLE, key=lambda row: (row[0][0], int(row[0].split()[0][1:]), row)):
        terminalreporter.write_line(f"{fault:{width}}  {fired:>5}  {result}")


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three h5ad files of 200 cells."""
    folder = tmp_path_factory.mktemp("sources")
    synthesise(folder, SynthConfig(num_cells=600, num_files=3, num_genes=300, mean_genes=60.0, num_donors=6))
    return folder


def make_config(store: Path | str, sources: Path | str, **changes: Any) -> IngestConfig:
    """An ingest of several tasks and shards."""
    config = {
        "store": str(store), "corpus": "cells", "sources": [{"uri": f"{sources}/"}], "cells_per_shard": 256,
        "rows_per_task": 100,
    }  # fmt: skip
    return IngestConfig.model_validate_json(json.dumps({**config, **changes}))


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tasks of an ingest one after another in this process: what they leave behind is the same, in seconds."""
    monkeypatch.setattr(ingest_module, "_map_tasks", lambda items, work, concurrency: map(work, items))


@pytest.fixture
def ingest_here(without_ray: None) -> Callable[[IngestConfig], IngestResult]:
    """``ingest`` without Ray."""
    return ingest


@pytest.fixture(scope="session")
def clean(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> IngestResult:
    """The ingest of ``sources`` that nothing disturbs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest_module, "_map_tasks", lambda items, work, concurrency: map(work, items))
        return ingest(make_config(tmp_path_factory.mktemp("clean"), sources))


@dataclass
class Driver:
    """An ingest in another process."""

    process: subprocess.Popen[str]
    result: Path

    def wait(self) -> int:
        """Its exit code."""
        return self.process.wait(240)

    def was_killed(self) -> bool:
        """Whether SIGKILL ended it; what it said otherwise is in the error."""
        code = self.wait()
        assert code <= 0, (self.result.parent / "stderr").read_text()[-3000:]
        return code == -signal.SIGKILL

    def outcome(self) -> dict[str, Any]:
        """What it wrote at its end."""
        assert self.wait() == 0, (self.result.parent / "stderr").read_text()[-3000:]
        found: dict[str, Any] = json.loads(self.result.read_text())
        return found


@pytest.fixture
def start_driver(tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    """A function that starts an ingest in a process of its own, with failpoints, its tasks run by Ray or not."""
    started: list[Driver] = []

    def start(config: IngestConfig, *, failpoints: str = "", once: Path | None = None, ray: bool = False) -> Driver:
        folder = tmp_path / f"driver-{len(started)}"
        folder.mkdir()
        (folder / "config.json").write_text(config.model_dump_json())
        environment = {**os.environ, VARIABLE: failpoints}
        if once is not None:
            once.mkdir(exist_ok=True)
            environment[ONCE_VARIABLE] = str(once)
        command = [sys.executable, str(DRIVER), str(folder / "config.json"), str(folder / "result.json")]
        with (folder / "stderr").open("w") as stderr:
            process = subprocess.Popen(
                [*command, *(["--without-ray"] if not ray else [])], env=environment, stdout=subprocess.DEVNULL,
                stderr=stderr, text=True, start_new_session=True,
            )  # fmt: skip
        started.append(Driver(process, folder / "result.json"))
        return started[-1]

    yield start
    end_all(*(driver.process for driver in started))


@pytest.fixture(scope="session")
def proxy_before_s3(s3_endpoint: str) -> Iterator[FaultProxy]:
    """The fault proxy before moto, one for the session: storage's client to it is slow to build."""
    with run_fault_proxy(s3_endpoint) as proxy:
        yield proxy


@pytest.fixture
def faults(proxy_before_s3: FaultProxy, s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> FaultProxy:
    """The proxy, to which the environment points from here on; a hanging store is given up fast."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy_before_s3.endpoint)
    monkeypatch.setenv("CYTORAY_S3_TIMEOUT_S", "1")
    proxy_before_s3.set_plan()
    return proxy_before_s3


@pytest.fixture
def sources_on_s3(faults: FaultProxy, s3_endpoint: str, s3_uri: str, sources: Path) -> str:
    """The clean sources below a fresh prefix, put there past the proxy."""
    client = boto3.client("s3", endpoint_url=s3_endpoint)
    bucket, _, prefix = s3_uri.removeprefix("s3://").partition("/")
    for path in sorted(sources.glob("*.h5ad")):
        client.put_object(Bucket=bucket, Key=f"{prefix}/sources/{path.name}", Body=path.read_bytes())
    return f"{s3_uri}/sources"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Training]]:
    """A function that starts the run of a store in a process of its own, which is not left behind."""
    started: list[Training] = []

    def begin(
        store: Path | str, *, plan: str = "", once: Path | None = None, changes: Mapping[str, Any] = {}, nodes: int = 0
    ) -> Training:
        folder = tmp_path / f"driver-{len(started)}"
        started.append(start_training(store, folder, plan=plan, once=once, changes=changes, nodes=nodes))
        return started[-1]

    yield begin
    for training in started:
        training.stop_at_once()


@pytest.fixture(scope="session")
def trainable(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a corpus and no run."""
    folder = tmp_path_factory.mktemp("trainable")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest_module, "_map_tasks", lambda items, work, concurrency: map(work, items))
        ingest(make_config(folder, sources))
    return folder


@pytest.fixture(scope="session")
def unbroken(trainable: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of that store with a run which nothing disturbed; MLflow was away all the time."""
    folder = tmp_path_factory.mktemp("unbroken")
    store = Path(shutil.copytree(trainable, folder / "store"))
    training = start_training(store, folder / "driver", changes={}, nodes=0)
    try:
        assert training.result()["step"] == STEPS
    finally:
        training.stop_at_once()
    return store


@pytest.fixture
def store(trainable: Path, tmp_path: Path) -> Path:
    """A store of this test alone, with a corpus and no run."""
    return Path(shutil.copytree(trainable, tmp_path / "store"))
