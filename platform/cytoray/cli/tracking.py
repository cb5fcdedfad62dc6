"""``cytoray tracking``: the run journals and MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cytoray.cli.common import AsJson, TrackingUri, print_answer
from cytoray.errors import CytorayError

app = typer.Typer(help="The run journals and MLflow.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """The run journals and MLflow."""


@app.command("sync")
def sync(
    folder: Annotated[Path, typer.Argument(help="Folder of run journals.")],
    uri: TrackingUri,
    as_json: AsJson = False,
) -> None:
    """Send MLflow the events that it missed while unreachable; nothing is sent twice."""
    from cytoray.tracking import sync as send

    report = send(folder, uri=uri)
    line = f"{report.journals} journals: {report.sent} events sent, {report.refused} refused, {report.busy} busy"
    print_answer(report, [line], as_json=as_json)
    for journal, why in report.failed.items():
        typer.echo(f"error: {journal}: {why}", err=True)
    if report.failed:
        raise typer.Exit(CytorayError.exit_code)
