"""The table of tasks: every part that it names exists and fits, and answering imports nothing of training."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

import cytoray
from cytoray.cli.main import app
from cytoray.errors import ConfigError
from cytoray.stages.config import stage_configs
from cytoray.tasks import TASKS, task_assessments, task_endpoints, task_stages
from cytoray.tasks.assessing import AssessConfig
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
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split() == []


@pytest.mark.parametrize("name", task_assessments())
def test_an_assessment_is_a_command_a_job_and_a_function(name: str):
    parts = task_assessments()[name]
    config = parts.config.load()
    assert issubclass(config, AssessConfig)
    assert config.model_fields["kind"].default == f"assess-{name}"
    assert stage_configs()[f"assess-{name}"] is config
    assert callable(parts.run.load())
    shown = CliRunner().invoke(app, ["assess", name, "--help"], env={"COLUMNS": "200"}).output
    for field, info in config.model_fields.items():
        option = "--uri" if field == "tracking" else "--" + field.replace("_", "-")
        assert field == "kind" or (option in shown and info.description), field
    with pytest.raises(ConfigError, match=r"data: this key is required"):
        cytoray.assess(name)


def test_an_unknown_assessment_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="Known are annotation"):
        cytoray.assess("annotatoin", data="cells.h5ad")
