"""``cytoray assess TASK``: train and evaluate a task on one's own files, beside the simple method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from cytoray.cli.common import print_answer
from cytoray.cli.options import command_of
from cytoray.tasks import task_assessments

app = typer.Typer(help="Assess a task on your own cells, beside the simple method.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Assess a task on your own cells, beside the simple method."""


def _runner(task: str) -> Callable[[Any, bool], None]:
    def run(config: Any, as_json: bool) -> None:
        """Assess the task and print its figures, its warnings and the path of the page."""
        from cytoray.stages.assess import run_assessment

        assessed = run_assessment(task, config)
        found = assessed.assessment
        lines = [
            f"{name}: {row.product:.3f}, simple method {row.baseline:.3f}"
            + (f" ({row.verdict})" if row.verdict else "")
            for name, row in found.metrics.items()
            if row.product is not None and row.baseline is not None
        ]
        if found.model_note:
            lines.append(found.model_note)
        if assessed.recorded is not None:
            lines.append(f"recorded on models:/{assessed.recorded.name}/{assessed.recorded.version}")
        print_answer(found.as_dict(), [*lines, *found.warnings, assessed.files["report.html"]], as_json=as_json)

    return run


for _task, _assessment in task_assessments().items():
    app.command(_task)(command_of(_assessment.config.load(), _assessment.help, _runner(_task)))
