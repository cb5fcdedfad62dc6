"""A store, a disk or an MLflow that fails while a training needs it: it still ends, or reports a remedy."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest
from fault_proxy import Fault, FaultProxy
from mlflow import MlflowClient
from training_process import EVERY, RUN, STEPS, Training, assert_equal

from cytoray.tracking import sync
from cytoray.training.checkpoint import latest_checkpoint

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.timeout(1500)]
Start = Callable[..., Training]
Outcome = Callable[[str, int, str], None]
STORE_FAULTS = {
    "503 x 20": Fault("status", method="PUT", key="checkpoints", n=20),
    "resets x 5": Fault("reset", method="PUT", key="checkpoints", n=5),
    "resets x 5 after it took effect": Fault("reset_after_apply", method="PUT", key="checkpoints", n=5),
    "hangs x 3": Fault("hang", method="PUT", key="checkpoints", n=3),
}


@pytest.fixture
def store_on_s3(faults: FaultProxy, s3_endpoint: str, s3_uri: str, trainable: Path) -> str:
    """The store with a corpus and no run, put on S3 past the proxy."""
    client = boto3.client("s3", endpoint_url=s3_endpoint)
    bucket, _, prefix = s3_uri.removeprefix("s3://").partition("/")
    for path in sorted(path for path in trainable.rglob("*") if path.is_file()):
        client.put_object(Bucket=bucket, Key=f"{prefix}/{path.relative_to(trainable)}", Body=path.read_bytes())
    return s3_uri


@pytest.mark.parametrize("name", STORE_FAULTS)
def test_checkpoints_get_through_to_a_failing_store(
    name: str, faults: FaultProxy, store_on_s3: str, start: Start, unbroken: Path, outcome: Outcome
) -> None:
    fault = STORE_FAULTS[name]
    faults.set_plan(fault)
    events = start(store_on_s3).result()["events"]
    assert_equal(store_on_s3, unbroken)
    outcome(f"T6 store: {name}", fault.fired, f"{len(events)} start(s): equal")


def test_a_run_without_mlflow_is_shipped_later(unbroken: Path, tmp_path: Path, outcome: Outcome) -> None:
    """The undisturbed run had no MLflow at all."""
    journal = Path(shutil.copytree(unbroken.parent / "journal", tmp_path / "journal"))
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    report = sync(journal, uri=uri)
    assert (report.journals, report.refused, report.failed) == (1, 0, {})
    client = MlflowClient(uri)
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert run.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "loss")] == list(range(1, STEPS + 1))
    assert sync(journal, uri=uri).sent == 0
    outcome("T7 MLflow away for a whole run", report.sent, "the run ended; one sync shipped all steps, once")


def test_a_full_disk_is_reported_and_the_run_continues_with_room(
    start: Start, trainable: Path, unbroken: Path, tmp_path: Path, outcome: Outcome
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    size = sum(path.stat().st_size for path in trainable.rglob("*") if path.is_file())
    checkpoint = sum(path.stat().st_size for path in unbroken.glob(f"runs/{RUN}/checkpoints/step-{STEPS:09d}/*"))
    room = f"size={(size + 3 * checkpoint // 2) // 1024}k"  # for one checkpoint and no second
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", room, "tmpfs", str(disk)], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("a small tmpfs cannot be mounted here")
    try:
        store = Path(shutil.copytree(trainable, disk / "store"))
        failed = start(store, changes={"workers": {"max_failures": 0}})
        error = failed.result(2)
        assert error["error"] == "StorageError"
        assert "No space left" in error["text"]
        saved = latest_checkpoint(str(store), RUN)
        assert saved is not None
        assert saved.state.step == EVERY
        subprocess.run(["mount", "-o", "remount,size=500m", str(disk)], check=True)
        start(store, changes={"workers": {"max_failures": 0}}).result()
        assert_equal(store, unbroken)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    outcome("T10 disk full", 1, "reported; the previous checkpoint is intact; with room and run again: equal")
