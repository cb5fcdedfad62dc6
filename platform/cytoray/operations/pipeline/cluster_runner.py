"""Run the heavy stages of a pipeline as jobs on a cluster, by ``operations.jobs``; the others run here."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import yaml

from cytoray.operations.jobs.following import follow
from cytoray.operations.jobs.names import MAX_NAME
from cytoray.operations.jobs.records import Cluster
from cytoray.operations.jobs.request import build_request
from cytoray.operations.jobs.submitting import submit
from cytoray.operations.pipeline.reading import is_evaluation
from cytoray.operations.pipeline.records import StageTask
from cytoray.operations.pipeline.runners import LocalRunner

LIGHT = ("promote", "rollout")  # they ask MLflow or a service, and compute nothing
KEY_LENGTH = 8  # characters of a key in the name of a job


class ClusterRunner:
    """Submits a stage as a job, follows its logs, and collects its result.

    A job that this stage has started before is followed, not started twice. Its result is in the store when it has
    ended, so that doing the stage here as well only finds and records it.
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
        if task.key.kind not in LIGHT and not is_evaluation(task.key.kind):
            with tempfile.TemporaryDirectory(prefix="cytoray-pipeline-") as folder:
                file = Path(folder) / "stage.yaml"
                file.write_text(yaml.safe_dump(task.config, sort_keys=False), encoding="utf-8")
                request = build_request(file, name=job_name(task))
            ended = follow(self._cluster, submit(self._cluster, request).record, _show)
            if ended.exit_code:
                return ended.exit_code
        return self._local.run(task)


def _show(text: str) -> None:
    """Pass on what a job has printed."""
    sys.stderr.write(text)
    sys.stderr.flush()


def job_name(task: StageTask) -> str:
    """Return the name of a stage's job: the same for the same settings and inputs."""
    ending = f"-{task.key.digest[:KEY_LENGTH]}"
    words = re.sub(r"[^a-z0-9]+", "-", f"{task.key.kind}-{task.stage}".lower()).strip("-")
    return words[: MAX_NAME - len(ending)].rstrip("-") + ending
