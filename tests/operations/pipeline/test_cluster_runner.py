"""Stages of a pipeline as jobs: what is submitted, what is followed, and what is submitted once more."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cytoray.operations.jobs.kube_config import KubeConfig
from cytoray.operations.jobs.rayjob import build_objects
from cytoray.operations.jobs.records import JobRecord
from cytoray.operations.jobs.request import JobRequest
from cytoray.operations.jobs.shipping import CONFIG_NAME, packed
from cytoray.operations.pipeline import stage_job
from cytoray.operations.pipeline.cluster_runner import ClusterRunner, job_config
from cytoray.operations.pipeline.records import StageKey, StageTask, find_record, scratch_folder


@dataclass
class Jobs:
    """A cluster that keeps what it gets; each job has succeeded when it is looked at again."""

    option: str = "here"
    records: list[JobRecord] = field(default_factory=list)
    requests: list[JobRequest] = field(default_factory=list)

    def list_jobs(self) -> list[JobRecord]:
        return list(self.records)

    def submit(self, request: JobRequest, *, attempt: int) -> None:
        self.requests.append(request)
        self.records.append(
            JobRecord(
                id=f"{request.name}-{attempt}", name=request.name, attempt=attempt, job=request.job,
                stage=request.stage, status="running", settings=request.settings,
            )
        )  # fmt: skip

    def read_logs(self, record: JobRecord) -> str:
        return "done\n"

    def tail_logs(self, record: JobRecord, write: Callable[[str], None]) -> None:
        self.records = [replace(each, status="succeeded") for each in self.records]

    def stop(self, record: JobRecord) -> None:
        raise AssertionError("nobody asked for it")


def build(tmp_path: Path, kind: str, config: dict[str, Any]) -> StageTask:
    """A task of a stage called ``own``."""
    folder = str(tmp_path / "stages" / "own")
    key = StageKey(kind=kind, settings={}, inputs={})
    return StageTask(
        stage="own", folder=folder, reports=f"{folder}/reports", key=key, config={"kind": kind} | config, num_cpus=1
    )


@pytest.fixture
def ingest(tmp_path: Path, sources: Path) -> StageTask:
    config = {"corpus": "cells", "store": str(tmp_path / "store"), "sources": [{"uri": f"{sources}/"}]}
    return build(tmp_path, "ingest", config)


def test_a_job_gets_its_task_and_one_that_has_ended_is_submitted_once_more(ingest: StageTask, tmp_path: Path):
    cluster = Jobs()
    runner = ClusterRunner(cluster)
    assert runner.run(ingest) == 0
    (request,) = cluster.requests
    assert request.program == f"cytoray.operations.pipeline.stage_job {ingest.uri}"
    assert yaml.safe_load(request.text) == ingest.config
    with packed(request, {}) as (entrypoint, _):
        assert entrypoint == f"python -m {request.program} --config {CONFIG_NAME}"
    _, rayjob = build_objects(request, KubeConfig(image="registry.example.org/cytoray:0.1.0"))
    assert rayjob["spec"]["entrypoint"] == f"python -m {request.program} --config /etc/cytoray/job.yaml"

    cluster.records = [replace(cluster.records[0], status="running")]
    assert runner.run(ingest) == 0
    assert len(cluster.records) == 1, "the one that runs is followed"
    elsewhere = ingest.model_copy(update={"config": ingest.config | {"store": str(tmp_path / "other")}})
    assert runner.run(elsewhere) == 0
    assert [record.attempt for record in cluster.records] == [1, 2], "its result is missing, or was to be elsewhere"


def test_the_job_of_a_task_records_its_stage(ingest: StageTask, tmp_path: Path):
    task, config = tmp_path / "task.json", tmp_path / "job.yaml"
    task.write_text(ingest.model_dump_json())
    config.write_text(yaml.safe_dump(job_config(ingest)))
    assert stage_job.main([str(task), "--config", str(config)]) == 0
    record = find_record(ingest.folder, ingest.key.digest)
    assert record is not None
    assert record.result["num_cells"] == 80


def test_reports_of_an_evaluation_lie_in_no_folder_that_the_user_named(tmp_path: Path):
    task = build(tmp_path, "evaluate", {"model": "run:x", "folder": str(tmp_path / "report")})
    assert json.loads(json.dumps(job_config(task)))["folder"] == scratch_folder(task)
    assert "folder" not in job_config(build(tmp_path, "ingest", {}))
