"""Parts shared by all commands: common options, output as text or JSON, and exit codes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cytoray.errors import CytorayError

if TYPE_CHECKING:
    from cytoray.tracking import TrackingConfig

DEFAULTS_FILE = Path("cytoray.yaml")
STORE, TRACKING = "CYTORAY_STORE", "MLFLOW_TRACKING_URI"
EXIT_CODES = (
    "Exit codes: 0 done; 1 unexpected failure or interrupted; 2 a mistake in the command, the settings or the data, "
    "with its remedy; 3 the gate refused to promote a model; 75 training was asked to stop and can be continued."
)
Store = Annotated[
    str,
    typer.Option(envvar=STORE, help="Root of all data of cytoray: s3://bucket/prefix or a folder."),
]
TrackingUri = Annotated[str, typer.Option("--uri", envvar=TRACKING, help="MLflow: http(s)://… or sqlite:////…")]
AsJson = Annotated[bool, typer.Option("--json", help='Print one JSON object; an error is {"error": …} on stdout.')]
JsonAnyway = Annotated[
    bool, typer.Option("--json", help="The result is JSON in any case; with this an error is too, on stdout.")
]
Overrides = Annotated[list[str], typer.Option("--set", metavar="A.B=C", help="Override one key; repeatable.")]


def place(given: str | None, variable: str, *, config: Path | None) -> str | None:
    """Return the store or MLflow that a flag names, else the environment; a configuration file names its own."""
    return os.environ.get(variable) if given is None and config is None else given


def tracking_of(uri: str) -> TrackingConfig:
    """Return the MLflow configuration of ``--uri``; raises ConfigError if it is not valid."""
    from cytoray.config import build_config
    from cytoray.tracking import TrackingConfig

    return build_config(TrackingConfig, overrides=[f"uri={json.dumps(uri)}"])


def print_answer(value: Any, lines: Iterable[str], *, as_json: bool) -> None:
    """Print the result of a command: one JSON object, or lines of text."""
    if as_json:
        from pydantic_core import to_jsonable_python

        typer.echo(json.dumps(to_jsonable_python(value), indent=1))
        return
    for line in lines:
        typer.echo(line)


def print_error(kind: str, problem: str, *, remedy: str = "", details: dict[str, Any] | None = None) -> None:
    """Print an error as the JSON object that every command with ``--json`` prints, on stdout."""
    error = {"kind": kind, "message": problem, "remedy": remedy, "details": details or {}}
    typer.echo(json.dumps({"error": error}, indent=1, default=str))


def size(num_bytes: float) -> str:
    """Format a number of bytes for reading."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.2f} TB"


def folders_end_in_slash(uris: Iterable[str]) -> list[str]:
    """Return the URIs, with '/' appended to local folders, which means all files below them."""
    return [f"{uri}/" if not uri.endswith("/") and Path(uri).expanduser().is_dir() else uri for uri in uris]


def report_mistake(error: CytorayError, *, as_json: bool) -> None:
    """Print a user's mistake: a paragraph on stderr, or JSON on stdout."""
    if as_json:
        print_error(type(error).__name__, error.problem, remedy=error.remedy, details=error.details)
    else:
        typer.echo(f"error: {error}", err=True)
