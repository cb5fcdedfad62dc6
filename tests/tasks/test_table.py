"""The table of tasks: every part that it names exists and fits, and answering imports nothing of training."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cytoray.tasks import TASKS, task_endpoints, task_stages
from cytoray.tasks.messages import Response
from cytoray.training.config import RunConfig


@pytest.mark.parametrize("name", TASKS)
def test_the_parts_of_a_task_fit(name: str):
    task = TASKS[name]
    assert task.name == name
    for stage in task.stages:
        config = stage.config.load()
        assert config.model_fields["kind"].default == stage.kind
        assert callable(stage.run.load())
    if task.learning is not None:
        assert issubclass(task.learning.config.load(), RunConfig)
    if task.endpoint is not None:
        endpoint = task.endpoint.load()
        assert issubclass(endpoint.response, Response)
        assert endpoint.description.endswith(".")


def test_no_two_tasks_share_a_name():
    assert len(task_stages()) == sum(len(task.stages) for task in TASKS.values())
    assert len(task_endpoints()) == sum(task.endpoint is not None for task in TASKS.values())


def test_answering_needs_no_training():
    code = (
        "import sys, cytoray.serving.service\nfrom cytoray.tasks import task_endpoints\n"
        "assert len(task_endpoints()) >= 2\n"
        "unwanted = ('cytoray.training', 'cytoray.corpus', 'cytoray.evaluation', 'deepspeed', 'ray', 'torch')\n"
        "print(*(name for name in sys.modules if name.startswith(unwanted)))\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split() == []
