"""Run the stages of a pipeline as jobs on a cluster, by ``operations.jobs``; a rollout runs here."""

from __future__ import annotations

import logging
import re
import shlex
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from cytoray.operations.jobs.following import follow
from cytoray.operations.jobs.names import MAX_NAME
from cytoray.operations.jobs.records import Cluster
from cytoray.operations.jobs.request import build_request
from cytoray.operations.jobs.submitting import submit
from cytoray.operations.pipeline.records import StageTask, scratch_folder
from cytoray.operations.pipeline.runners import MODULE, LocalRunner
from cytoray.stages.config import stage_configs

HERE = ("rollout",)  # asks a service by an address and with a secret of this machine
logger = logging.getLogger(__name__)
KEY_LENGTH = 8  # characters of a key in the name of a job


class ClusterRunner:
    """Submits a stage as a job, which puts its record into the store itself, and follows its logs.

    A job that this stage has started before and that still runs is followed, not started twice.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._local = LocalRunner()

    @property
    def is_stopping(self) -> bool:
        """Whether this process was asked to stop while a stage ran here; Ctrl-C leaves a job running."""
        return self._local.is_stopping

    def run(self, task: StageTask) -> int:
        """Run the job; returns its exit code."""
        if task.key.kind in HERE:
            return self._local.run(task)
        program = f"{MODULE} {shlex.quote(task.uri)}"
        with tempfile.TemporaryDirectory(prefix="cytoray-pipeline-") as folder:
            file = Path(folder) / "stage.yaml"
            file.write_text(yaml.safe_dump(job_config(task), sort_keys=False), encoding="utf-8")
            request = replace(build_request(file, name=job_name(task)), program=program)
        # One that has ended did not record the stage, or its result was lost: another attempt finds what there is.
        submitted = submit(self._cluster, request, repeats=True)
        verb = "is" if submitted.is_new else "follows"
        logger.info("%s %s job %s on %s", task.stage, verb, submitted.record.id, self._cluster.option)
        return follow(self._cluster, submitted.record, _show).exit_code or 0


def _show(text: str) -> None:
    """Pass on what a job has printed."""
    sys.stderr.write(text)
    sys.stderr.flush()


def job_config(task: StageTask) -> dict[str, Any]:
    """Return the configuration of a stage's job: reports that would lie in a local folder are only in the store."""
    has_folder = "folder" in stage_configs()[task.key.kind].model_fields
    return task.config | ({"folder": scratch_folder(task)} if has_folder else {})


def job_name(task: StageTask) -> str:
    """Return the name of a stage's job: the same for the same settings and inputs."""
    ending = f"-{task.key.digest[:KEY_LENGTH]}"
    words = re.sub(r"[^a-z0-9]+", "-", f"{task.key.kind}-{task.stage}".lower()).strip("-")
    return words[: MAX_NAME - len(ending)].rstrip("-") + ending
