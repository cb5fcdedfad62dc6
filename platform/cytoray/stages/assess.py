"""Assess a task: train and evaluate it on anyone's files, and write the report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cytoray.config import build_from
from cytoray.errors import ConfigError
from cytoray.evaluation.assessment import Assessment, write_report
from cytoray.evaluation.assessment_page import render_page
from cytoray.tasks import task_assessments
from cytoray.tasks.assessing import AssessConfig

PREFIX = "assess-"  # of the kind of a configuration


def assess(task: str, **settings: Any) -> dict[str, Any]:
    """Assess a task with the keys of its configuration, and return the report as JSON data.

    ``cytoray.assess("annotation", data="cells.h5ad", label_key="cell_type", out="report")`` writes report.html and
    report.json into ``out``. Raises ConfigError for an unknown task or key, CorpusError for cells that cannot be used.
    """
    known = task_assessments()
    if task not in known:
        raise ConfigError(f"Unknown task {task!r}.", remedy=f"Known are {', '.join(known)}.")
    config = build_from(known[task].config.load(), settings, source=f"assess({task!r})")
    return run_assessment(task, config)[0].as_dict()


def run_assessment(task: str, config: AssessConfig) -> tuple[Assessment, dict[str, Path]]:
    """Assess a task and write its report; returns it, and the paths of its files by name."""
    folder = Path(config.out)
    _make_folder(folder)  # before anything is read
    found = task_assessments()[task].run.load()(config)
    page = render_page(found.assessment, found.sections)
    return found.assessment, write_report(found.assessment, folder, page=page, others=found.files)


def _make_folder(folder: Path) -> None:
    """Make a folder for results; raises ConfigError if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made: {error.strerror}.", remedy="Name another folder.") from error
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{folder} cannot be written.", remedy="Name another folder, or change its permissions.")
