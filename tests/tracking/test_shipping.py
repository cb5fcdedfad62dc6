"""Shipping twice is as good as once; what MLflow will never take holds nothing else up."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from cytoray.errors import NotFoundError, RegistryError
from cytoray.failpoints import VARIABLE, FailpointError
from cytoray.tracking import RunLog, TrackingConfig, sync
from cytoray.tracking.journal import shipping_lock
from cytoray.tracking.server import connect
from cytoray.tracking.shipping import RUN_UUID_TAG

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")


@pytest.fixture
def journal(down) -> Path:
    """A finished run of three hundred steps that MLflow has not heard of."""
    log = RunLog.start(down, run_name="offline", tags={"a": "b"}, params={"seed": 1})
    for step in range(300):
        log.log_metrics({"loss": 1 / (step + 1), "grad_norm": math.nan if step % 2 else math.inf}, step=step)
    log.finish("FINISHED", wait_s=0)
    return log.folder / f"{log.run_uuid}.jsonl"


def only_run(config):
    client = connect(config.uri)
    experiment = client.get_experiment_by_name(config.experiment)
    (run,) = client.search_runs([experiment.experiment_id])
    return run


@pytest.mark.faults
@pytest.mark.parametrize("point", ["tracking.after_log_batch=raise@2", "tracking.after_create_run=raise"])
def test_a_crash_between_sending_and_noting_it_duplicates_nothing(journal, config, monkeypatch, history, point):
    monkeypatch.setattr("cytoray.failpoints._hits", Counter())
    monkeypatch.setenv(VARIABLE, point)
    with pytest.raises(FailpointError):
        sync(journal.parent, uri=config.uri)
    monkeypatch.delenv(VARIABLE)
    assert sync(journal.parent, uri=config.uri).failed == {}
    run_id = only_run(config).info.run_id
    assert history(run_id, "loss") == [(step, 1 / (step + 1)) for step in range(300)]
    assert [step for step, _ in history(run_id, "grad_norm")] == list(range(300))


def test_a_lost_cursor_resends_everything_without_duplicates(journal, config, history):
    first = sync(journal.parent, uri=config.uri)
    journal.with_suffix(".cursor.json").unlink()
    second = sync(journal.parent, uri=config.uri)
    assert second == first
    assert len(history(only_run(config).info.run_id, "loss")) == 300


def test_another_store_gets_the_whole_run(journal, config, migrated_database, tmp_path):
    sync(journal.parent, uri=config.uri)
    (tmp_path / "second").mkdir()
    shutil.copy(migrated_database, tmp_path / "second" / "mlflow.db")
    second = config.model_copy(update={"uri": f"sqlite:///{tmp_path}/second/mlflow.db"})
    assert sync(journal.parent, uri=second.uri).sent == 304
    assert only_run(second).data.tags[RUN_UUID_TAG] == only_run(config).data.tags[RUN_UUID_TAG]


def test_what_mlflow_refuses_is_counted_and_does_not_hold_up_the_rest(down, config, history):
    log = RunLog.start(down, run_name="odd", params={"width": 1})
    log.log_metrics({"loss": 1.0}, step=1)
    log.log_metrics({"no $ allowed": 1.0}, step=2)
    log._write("params", values={"width": "2"})  # a parameter never changes in MLflow
    log.log_artifact("/nonexistent/plot.png")
    log.log_metrics({"loss": 3.0}, step=3)
    log.finish(wait_s=0)
    report = sync(log.folder, uri=config.uri)
    assert (report.refused, report.failed) == (3, {})
    run = only_run(config)
    assert history(run.info.run_id, "loss") == [(1, 1.0), (3, 3.0)]
    assert run.data.params == {"width": "1"}
    assert run.info.status == "FINISHED"


def test_more_values_than_mlflow_takes_in_one_call_arrive(down, config):
    log = RunLog.start(down, run_name="wide", params={f"p{n}": n for n in range(150)})
    log.set_tags({f"t{n}": str(n) for n in range(150)})
    log.log_metrics({f"m{n}": float(n) for n in range(1500)}, step=0)
    log.finish(wait_s=0)
    assert sync(log.folder, uri=config.uri).refused == 0
    data = only_run(config).data
    assert data.params == {f"p{n}": str(n) for n in range(150)}
    assert data.metrics == {f"m{n}": float(n) for n in range(1500)}
    assert data.tags.items() >= {f"t{n}": str(n) for n in range(150)}.items()


def test_a_line_torn_by_a_crash_is_skipped(journal, down, config, history):
    with journal.open("ab") as file:
        file.write(b'{"seq":304,"kind":"metr')
    assert sync(journal.parent, uri=config.uri).refused == 0  # it may still be being written
    log = RunLog.resume(down, journal.stem)
    log.log_metrics({"loss": 7.0}, step=300)
    log.finish(wait_s=0)
    report = sync(journal.parent, uri=config.uri)
    assert (report.sent, report.refused) == (3, 1)  # resume, metrics and finish; the torn line
    assert history(only_run(config).info.run_id, "loss")[-1] == (300, 7.0)


def test_sync_leaves_a_journal_to_the_run_that_is_shipping_it(journal, config):
    with shipping_lock(journal) as ours:
        assert ours
        report = sync(journal.parent, uri=config.uri)
    assert (report.busy, report.sent) == (1, 0)
    assert sync(journal.parent, uri=config.uri).sent == 304


def test_a_run_deleted_in_mlflow_stays_deleted(journal, config):
    sync(journal.parent, uri=config.uri)
    client = connect(config.uri)
    client.delete_run(only_run(config).info.run_id)
    RunLog.resume(config, journal.stem).finish(wait_s=0)
    for _ in range(2):
        report = sync(journal.parent, uri=config.uri)
        assert "is deleted" in report.failed[journal.stem]
        journal.with_suffix(".cursor.json").unlink(missing_ok=True)  # second time: found by its tag
    assert client.search_runs([client.get_experiment_by_name(config.experiment).experiment_id]) == []


def test_of_runs_created_twice_by_a_repeated_request_one_stays(journal, config, history):
    client = connect(config.uri)
    experiment = client.create_experiment(config.experiment)
    for _ in range(2):
        client.create_run(experiment, start_time=1, tags={RUN_UUID_TAG: journal.stem})
    sync(journal.parent, uri=config.uri)
    assert len(history(only_run(config).info.run_id, "loss")) == 300


def test_sync_names_a_missing_folder_and_a_dead_mlflow(down, config, tmp_path):
    with pytest.raises(NotFoundError, match=r"journal folder .* is missing"):
        sync(tmp_path / "typo", uri=config.uri)
    (tmp_path / "runs").mkdir()
    with pytest.raises(RegistryError, match="Check that it runs"):
        sync(tmp_path / "runs", uri=down.uri)


def test_importing_tracking_is_cheap_and_changes_nothing():
    code = (
        "import os; before = dict(os.environ); import sys, cytoray.tracking;"
        "assert 'mlflow' not in sys.modules; assert dict(os.environ) == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=280)


def test_relative_paths_are_made_absolute_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = TrackingConfig(uri="sqlite:///store/mlflow.db", artifact_location="files", journal_folder="runs")
    monkeypatch.chdir("/")
    assert config.uri == f"sqlite:///{tmp_path}/store/mlflow.db"
    assert (config.artifact_location, config.journal_folder) == (f"{tmp_path}/files", f"{tmp_path}/runs")
    assert TrackingConfig(uri=config.uri, artifact_location="s3://bucket/x").artifact_location == "s3://bucket/x"
