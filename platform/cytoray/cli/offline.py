"""Commands that answer the cells of files offline, as the service does: ``cytoray embed`` and its siblings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from cytoray.cli.common import STORE, TRACKING, JsonAnyway, Overrides, place


def offline_command(kind: str, help_text: str) -> Callable[..., None]:
    """Build the command of one kind of offline answers; its options are the same for all."""

    def command(
        uris: Annotated[
            list[str] | None,
            typer.Argument(help="Files, s3://… objects, prefixes ending in '/', or corpus:NAME of the store."),
        ] = None,
        out: Annotated[str | None, typer.Option(help="Folder or s3:// prefix for the parquet files.")] = None,
        model: Annotated[
            str | None,
            typer.Option(help="Bundle or public checkpoint (folder or s3://), models:/NAME@ALIAS, or run:NAME."),
        ] = None,
        store: Annotated[
            str | None, typer.Option(help="Root of everything cytoray keeps, for run:NAME and corpus:NAME.")
        ] = None,
        uri: Annotated[
            str | None, typer.Option("--uri", help="MLflow, for models:/…: http(s)://… or sqlite:///…")
        ] = None,
        h5ad: Annotated[bool, typer.Option("--h5ad", help="Also write one h5ad per source, arrays in obsm.")] = False,
        config: Annotated[Path | None, typer.Option(help="YAML file; other options override it.")] = None,
        overrides: Overrides = [],  # noqa: B006 - typer reads the default, nothing mutates it
        num_cpus: Annotated[int, typer.Option(help="Logical CPUs when Ray is started here.", min=1)] = 2,
        as_json: JsonAnyway = False,
    ) -> None:
        """Answer the cells; the docstring is replaced below."""
        given = {
            "out": out,
            "model": model,
            "store": place(store, STORE, config=config),
            "tracking.uri": place(uri, TRACKING, config=config),
            "h5ad": h5ad or None,
            "data": [{"uri": source} for source in uris or ()] or None,
        }
        sets = [f"{name}={json.dumps(value)}" for name, value in given.items() if value is not None] + overrides
        _run(kind, config, sets, num_cpus)

    command.__doc__ = help_text
    return command


def _run(kind: str, config: Path | None, sets: list[str], num_cpus: int) -> None:
    from cytoray.config import build_config, load_config
    from cytoray.stages.config import offline_config
    from cytoray.stages.job import print_result, run_configured

    schema = offline_config(kind)
    settings = load_config(schema, config, overrides=sets) if config else build_config(schema, overrides=sets)
    print_result(run_configured(kind, settings, num_cpus=num_cpus))
