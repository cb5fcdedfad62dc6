"""A run log never waits for MLflow, and MLflow ends up with every event exactly once, in one run."""

from __future__ import annotations

import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cytoray.errors import StorageError
from cytoray.tracking import RunLog, sync
from cytoray.tracking.server import connect
from cytoray.tracking.shipping import RUN_UUID_TAG

pytestmark = pytest.mark.filterwarnings(
    # MLflow 3.17 still uses this loader of SQLAlchemy 2.1; nothing of ours does.
    "ignore:The ``noload`` loader strategy is deprecated"
)


def runs_of(config):
    client = connect(config.uri)
    experiment = client.get_experiment_by_name(config.experiment)
    return client.search_runs([experiment.experiment_id]) if experiment else []


def test_everything_logged_arrives_in_one_finished_run(config, history, tmp_path):
    plot = tmp_path / "loss.png"
    plot.write_bytes(b"picture")
    log = RunLog.start(config, run_name="pretrain", tags={"git": "abc"}, params={"width": 64, "amp": None})
    for step in range(20):
        log.log_metrics({"loss": 1 / (step + 1), "lr": 0.1}, step=step)
    log.log_artifact(plot, folder="plots")
    log.set_tags({"phase": "done"})
    assert log.finish("FINISHED")

    (run,) = runs_of(config)
    assert run.info.run_id == log.mlflow_run_id
    assert (run.info.run_name, run.info.status) == ("pretrain", "FINISHED")
    assert run.data.params == {"width": "64", "amp": "None"}
    assert run.data.tags.items() >= {"git": "abc", "phase": "done", RUN_UUID_TAG: log.run_uuid}.items()
    assert history(run.info.run_id, "loss") == [(step, 1 / (step + 1)) for step in range(20)]
    artifact = Path(run.info.artifact_uri.removeprefix("file://")) / "plots" / "loss.png"
    assert artifact.read_bytes() == b"picture"
    assert tmp_path in artifact.parents  # beside the database, not in the current folder


def test_non_finite_metrics_are_journalled_and_shipped(config, history):
    log = RunLog.start(config, run_name="diverged")
    log.log_metrics({"loss": math.nan, "up": math.inf, "down": -math.inf}, step=1)
    assert log.finish("FAILED")
    run_id = log.mlflow_run_id
    assert math.isnan(history(run_id, "loss")[0][1])
    assert history(run_id, "up")[0][1] > 1e308
    assert history(run_id, "down")[0][1] < -1e308
    lines = (log.folder / f"{log.run_uuid}.jsonl").read_text().splitlines()
    strict = [json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) for line in lines]
    assert [event["seq"] for event in strict] == list(range(len(lines)))


def test_a_dead_mlflow_neither_slows_nor_stops_a_step_and_sync_brings_it_all_later(down, config, history):
    log = RunLog.start(down, run_name="offline", params={"seed": 1})
    seconds = []
    deadline = time.monotonic() + 2.5  # long enough for the background thread to try and fail
    step = 0
    while time.monotonic() < deadline:
        before = time.perf_counter()
        log.log_metrics({"loss": float(step), "lr": 0.1}, step=step)
        seconds.append(time.perf_counter() - before)
        step += 1
        time.sleep(0.001)
    assert statistics.median(seconds) < 1e-3
    before = time.monotonic()
    assert not log.finish("FINISHED", wait_s=1.0)
    assert time.monotonic() - before < 10  # it does not wait for the server
    assert log.mlflow_run_id is None

    report = sync(log.folder, uri=config.uri)
    assert (report.journals, report.refused, report.failed) == (1, 0, {})
    assert report.sent == step + 3  # start, params, finish
    (run,) = runs_of(config)
    assert run.info.status == "FINISHED"
    assert history(run.info.run_id, "loss") == [(n, float(n)) for n in range(step)]
    assert sync(log.folder, uri=config.uri).sent == 0


def test_a_context_manager_marks_a_run_that_raised_as_failed(config):
    with pytest.raises(ZeroDivisionError), RunLog.start(config, run_name="boom"):
        _ = 1 / 0
    (run,) = runs_of(config)
    assert run.info.status == "FAILED"


KILLED = """
import os, signal, sys
from cytoray.tracking import RunLog, TrackingConfig
log = RunLog.start(TrackingConfig(uri=sys.argv[1], journal_folder=sys.argv[2]), run_name="killed")
for step in range(50):
    log.log_metrics({"loss": float(step)}, step=step)
print(log.run_uuid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.faults
def test_a_killed_process_loses_nothing_and_resumes_into_the_same_run(down, config, history):
    command = [sys.executable, "-c", KILLED, down.uri, down.journal_folder]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert killed.returncode == -signal.SIGKILL
    run_uuid = killed.stdout.strip()
    sync(config.journal_folder, uri=config.uri)  # one MLflow run exists before the restart

    log = RunLog.resume(config, run_uuid)
    for step in range(50, 60):
        log.log_metrics({"loss": float(step)}, step=step)
    assert log.finish()
    (run,) = runs_of(config)
    assert (run.info.run_name, run.info.status) == ("killed", "FINISHED")
    assert history(run.info.run_id, "loss") == [(step, float(step)) for step in range(60)]


def test_a_resume_on_another_node_finds_the_run_without_the_journal(config, history, tmp_path):
    first = RunLog.start(config, run_name="moved")
    first.log_metrics({"loss": 1.0}, step=1)
    assert first.finish("KILLED")
    elsewhere = config.model_copy(update={"journal_folder": str(tmp_path / "other-node")})
    second = RunLog.resume(elsewhere, first.run_uuid)
    second.log_metrics({"loss": 2.0}, step=2)
    assert second.finish()
    assert second.mlflow_run_id == first.mlflow_run_id
    assert history(first.mlflow_run_id, "loss") == [(1, 1.0), (2, 2.0)]
    assert [run.info.status for run in runs_of(config)] == ["FINISHED"]


def test_two_processes_on_one_journal_share_one_run(config, history):
    driver = RunLog.start(config, run_name="shared")
    worker = RunLog.resume(config, driver.run_uuid)
    for step in range(10):
        worker.log_metrics({"loss": float(step)}, step=step)
        driver.log_metrics({"lr": float(step)}, step=step)
    assert worker.finish()
    assert driver.finish()
    (run,) = runs_of(config)
    assert history(run.info.run_id, "loss") == history(run.info.run_id, "lr") == [(n, float(n)) for n in range(10)]


def test_an_unwritable_journal_folder_is_told_at_the_start(config, tmp_path):
    (tmp_path / "file").write_text("")
    broken = config.model_copy(update={"journal_folder": str(tmp_path / "file" / "runs")})
    with pytest.raises(StorageError, match=r"cannot be written.*journal_folder"):
        RunLog.start(broken, run_name="x")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is absent: a full disk is then not tried")
def test_a_full_disk_costs_events_but_no_step(down, caplog):
    log = RunLog.start(down, run_name="full")
    real, log._journal._file = log._journal._file, open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    log.log_metrics({"loss": 1.0}, step=1)
    log.log_metrics({"loss": 2.0}, step=2)
    log._journal._file.close()
    log._journal._file = real
    assert caplog.text.count("events are being lost") == 1
    log.finish(wait_s=0)
