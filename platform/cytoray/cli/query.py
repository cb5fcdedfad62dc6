"""``cytoray query``: ask a service about the cells of a file, and write the answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cytoray.cli.common import AsJson, print_answer


def query(
    file: Annotated[str, typer.Argument(help="File of cells in any known format: a path or s3://…")],
    out: Annotated[
        Path, typer.Option(help="File to write: .h5ad (a copy with the answers), .parquet or .csv; must not exist.")
    ],
    url: Annotated[str, typer.Option(help="The service.", envvar="CYTORAY_URL")] = "http://127.0.0.1:8000",
    task: Annotated[str, typer.Option(help="embed, annotate, map, proteins or integrate.")] = "annotate",
    api_key_file: Annotated[
        Path | None, typer.Option(help="File with the API key; default: the environment variable CYTORAY_API_KEY.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="One of several models of the service.")] = None,
    matrix: Annotated[str, typer.Option(help="auto (prefer counts), X, raw.X or layers/NAME.")] = "auto",
    members: Annotated[
        list[str], typer.Option("--set", metavar="NAME=VALUE", help="Further members of the request; repeatable.")
    ] = [],  # noqa: B006 - typer reads the default, nothing mutates it
    parallel: Annotated[int, typer.Option(help="Requests in flight at most.", min=1, max=64)] = 4,
    deadline: Annotated[
        float, typer.Option(help="Seconds for which a request is sent again after failures that may pass.", min=0)
    ] = 300.0,
    as_json: AsJson = False,
) -> None:
    """Ask a running service about all cells of a file.

    A query that was interrupted, or failed, continues with the same command: answers are kept beside --out until it is
    complete.
    """
    import asyncio

    from cytoray.config import build_config
    from cytoray.corpus.config import SourceConfig
    from cytoray.progress import stage
    from cytoray.serving.client.files import FileQuery, query_file
    from cytoray.serving.client.settings import Settings

    source = build_config(SourceConfig, overrides=[f"uri={file}", f"matrix={matrix}"])
    asked = FileQuery(source, task, out, _members(members))
    settings = Settings(
        url.rstrip("/"), 60.0, parallel=parallel, deadline=deadline, key=_key(api_key_file), model=model
    )
    try:
        found = asyncio.run(
            query_file(asked, settings, display=lambda num: stage(task, total=num, unit="cells", brief=True))
        )
    except KeyboardInterrupt:
        typer.echo("interrupted: the same command again asks about the remaining cells.", err=True)
        raise typer.Exit(1) from None
    kept = f", {found.num_kept:,} of them before" if found.num_kept else ""
    lines = [*(f"warning: {text}" for text in found.warnings)]
    if found.num_empty:
        lines.append(f"warning: {found.num_empty:,} cells have no gene that the model knows; they have no answer.")
    version = f"{found.model.name} version {found.model.version}"
    lines.append(f"{found.num_cells:,} cells answered by {version}{kept}: {found.out}")
    answer = {"out": str(found.out), "num_cells": found.num_cells, "num_empty": found.num_empty}
    answer |= {"num_kept": found.num_kept, "model": found.model, "warnings": found.warnings}
    print_answer(answer, lines, as_json=as_json)


def _key(file: Path | None) -> str | None:
    """Return the API key in a file; ConfigError if the file is missing or empty."""
    from cytoray.errors import ConfigError

    if file is None:
        return None
    key = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
    if not key:
        raise ConfigError(f"{file} is missing or empty.", remedy="Name a file that contains the API key.")
    return key


def _members(sets: list[str]) -> dict[str, object]:
    """Return further members of the requests; values are JSON, or else texts."""
    import json

    from cytoray.errors import ConfigError

    found: dict[str, object] = {}
    for one in sets:
        name, equals, text = one.partition("=")
        if not equals or not name:
            raise ConfigError(f"{one!r} is not NAME=VALUE.", remedy="Write --set batch=b1.")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found
