"""``cytoray config``: check, show and compare configuration files, and their JSON Schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cytoray.cli.common import AsJson, Overrides, print_answer
from cytoray.errors import CytorayError

app = typer.Typer(help="Check, show and compare configuration files.", no_args_is_help=True)
ConfigFile = Annotated[Path, typer.Argument(help="A YAML file of one stage.", show_default=False)]


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(help="YAML files.")],
    overrides: Overrides = [],  # noqa: B006 - typer reads the default, nothing mutates it
    as_json: AsJson = False,
) -> None:
    """Check configuration files; report each mistake with file, line, key path and the nearest valid key."""
    from cytoray.stages.config import load_stage_config

    rows: list[dict[str, Any]] = []
    for file in files:
        row: dict[str, Any] = {"file": str(file), "kind": None, "fingerprint": None, "problem": None}
        try:
            config: Any = load_stage_config(file, overrides=overrides)
            if config.kind == "pipeline":
                from cytoray.operations.pipeline.reading import read_pipeline

                read_pipeline(file, overrides=overrides)  # with the configurations of its stages
        except CytorayError as error:
            row["problem"] = str(error)
            if not as_json:
                typer.echo(f"error: {error}", err=True)
        else:
            row |= {"kind": config.kind, "fingerprint": config.fingerprint()}
        rows.append(row)
    good = [row for row in rows if row["problem"] is None]
    lines = (f"{row['file']}: good ({row['kind']}, {row['fingerprint'][:12]})" for row in good)
    print_answer({"files": rows}, lines, as_json=as_json)
    if len(good) < len(rows):
        raise typer.Exit(CytorayError.exit_code)


@app.command()
def show(
    file: ConfigFile,
    overrides: Overrides = [],  # noqa: B006
    origin: Annotated[bool, typer.Option("--origin", help="Print each key with where its value was given.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the resolved configuration, defaults included, as YAML; with --origin, where each value comes from.

    Origins are file:line, --set KEY, or default. No key of a stage is taken from the environment.
    """
    if origin:
        from cytoray.stages.settings import trace_settings

        settings = trace_settings(file, overrides=overrides)
        width = max(len(f"{each.key}: {json.dumps(each.value)}") for each in settings)
        lines = [f"{f'{each.key}: {json.dumps(each.value)}':<{min(width, 70)}}  # {each.origin}" for each in settings]
        print_answer({"file": str(file), "settings": settings}, lines, as_json=as_json)
        return
    from cytoray.stages.config import load_stage_config

    config = load_stage_config(file, overrides=overrides)
    print_answer(config, config.to_yaml().splitlines(), as_json=as_json)


@app.command()
def diff(
    first: ConfigFile,
    second: Annotated[Path, typer.Argument(help="The file to compare it with.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Compare two files by what they mean: defaults applied, order and comments ignored."""
    from cytoray.stages.config import load_stage_config
    from cytoray.stages.settings import describe_diff, diff_configs

    found = diff_configs(load_stage_config(first), load_stage_config(second))
    print_answer({**vars(found), "same_results": found.same_results}, describe_diff(found), as_json=as_json)


@app.command()
def schema(
    kind: Annotated[
        str | None, typer.Argument(help="Kind of file, such as pretrain; default: all kinds.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the JSON Schema of configuration files, for completion and checks in editors; it is JSON in any case."""
    from cytoray.stages.settings import schema_of

    found = schema_of(kind)
    print_answer(found, json.dumps(found, indent=1).splitlines(), as_json=as_json)
