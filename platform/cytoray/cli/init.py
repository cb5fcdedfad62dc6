"""``cytoray init``: a project folder with commented configurations for one's own bucket."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cytoray.cli.common import STORE, TRACKING, AsJson, print_answer

DEFAULT_STORE, DEFAULT_TRACKING = "store", "sqlite:///mlflow.db"
DEFAULT_DATA, DEFAULT_LABELS = "data/", "cell_type"


def init(
    folder: Annotated[Path, typer.Argument(help="New or empty folder.")] = Path(),
    name: Annotated[str | None, typer.Option(help="Name of corpus and model; default: the folder's.")] = None,
    store: Annotated[
        str | None, typer.Option(envvar=STORE, help="Root of all data: s3://bucket/prefix or a folder.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Your cells: a file, or a prefix that ends in '/'.")] = None,
    label_key: Annotated[str | None, typer.Option(help="Column of obs with the cell types.")] = None,
    uri: Annotated[
        str | None, typer.Option("--uri", envvar=TRACKING, help="MLflow: http(s)://… or sqlite:///…")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a project folder: a commented YAML file for each stage, cytoray.yaml, .gitignore and README.md.

    On a terminal it asks for what no option gives; else there are defaults. A folder with anything in it is refused.
    """
    from cytoray.operations.starting.project import Project, check_name, make_project

    asks = sys.stdin.isatty() and sys.stdout.isatty() and not as_json

    def ask(given: str | None, question: str, default: str) -> str:
        """Return what was given, or the answer on a terminal, or the default."""
        if given is not None:
            return given
        return str(typer.prompt(question, default=default)) if asks else default

    called = check_name(name or folder.expanduser().absolute().name)
    project = Project(
        name=called,
        store=ask(store, "Store (s3://bucket/prefix or a folder)", DEFAULT_STORE),
        tracking_uri=ask(uri, "MLflow", DEFAULT_TRACKING),
        data=ask(data, "Cells (a file, or a prefix that ends in '/')", DEFAULT_DATA),
        label_key=ask(label_key, "Column of cell types", DEFAULT_LABELS),
    )
    files = make_project(folder, project)
    lines = [*map(str, files), f"Next: read {folder / 'README.md'}"]
    print_answer({"folder": str(folder), "files": [str(file) for file in files]}, lines, as_json=as_json)
