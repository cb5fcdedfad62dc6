"""The command line: each command is a thin call into the library; errors are one paragraph and exit code 2."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from cytoray.cli import (
    assess,
    config,
    corpora,
    doctor,
    genes,
    init,
    integrate,
    jobs,
    keys,
    models,
    networks,
    perturb,
    pipeline,
    proteins,
    query,
    reference,
    reproduce,
    runs,
    serve,
    train,
)
from cytoray.cli.common import (
    EXIT_CODES,
    AsJson,
    JsonAnyway,
    Overrides,
    TrackingUri,
    load_defaults,
    print_answer,
    print_error,
    report_mistake,
)
from cytoray.cli.offline import offline_command
from cytoray.errors import CytorayError
from cytoray.tasks import task_offline, task_stages

app = typer.Typer(
    name="cytoray",
    help=f"Single-cell foundation models: from a bucket of count matrices to a served answer.\n\n{EXIT_CODES}",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
tracking_app = typer.Typer(help="The run journals and MLflow.", no_args_is_help=True)
_GROUPS = {
    "data": corpora.app,
    "train": train.app,
    "models": models.app,
    "runs": runs.app,
    "pipeline": pipeline.app,
    "keys": keys.app,
    "assess": assess.app,
    "perturbations": perturb.app,
    "proteins": proteins.app,
    "reference": reference.app,
    "networks": networks.app,
    "jobs": jobs.app,
    "config": config.app,
    "tracking": tracking_app,
}
for name, group in _GROUPS.items():
    app.add_typer(group, name=name)


def main() -> None:
    """Run the command line; a user's mistake prints a paragraph on stderr (JSON on stdout with --json), exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("cytoray").setLevel(logging.INFO)
    as_json = "--json" in sys.argv[1:]
    try:
        load_defaults()
        sys.exit(app(standalone_mode=not as_json))
    except CytorayError as error:
        report_mistake(error, as_json=as_json)
        sys.exit(error.exit_code)
    except TyperException as error:  # with --json only: a wrong option is printed in the same form as other errors
        print_error(type(error).__name__, error.format_message(), remedy="See --help.")
        sys.exit(error.exit_code)


@app.command()
def quickstart(
    folder: Annotated[Path, typer.Option(help="Local folder for all results.")] = Path("cytoray-quickstart"),
    store: Annotated[
        str | None, typer.Option(help="Store: s3://bucket/prefix or a folder; default: in FOLDER.")
    ] = None,
    endpoint_url: Annotated[str | None, typer.Option(help="S3 endpoint, if not Amazon's.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Your own .h5ad (path or s3://); default: cells shipped with scanpy.")
    ] = None,
    label_key: Annotated[str | None, typer.Option(help="Column of obs with the cell types of --data.")] = None,
    port: Annotated[int, typer.Option(help="Port of the service.", min=1, max=65535)] = 8000,
    num_cpus: Annotated[int, typer.Option(help="Logical CPUs of the Ray that is started here.", min=2)] = 2,
    max_cells: Annotated[int, typer.Option(help="Use at most this many cells of --data.", min=10)] = 10_000,
    steps: Annotated[
        int, typer.Option(help="Optimiser steps of pretraining; fine-tuning takes 5 to 8 times as many.", min=2)
    ] = 60,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete the results of an earlier quickstart and start again.")
    ] = False,
) -> None:
    """Run all stages on real cells, from ingest to a served cell-type model, in a few minutes."""
    if endpoint_url is not None:
        os.environ["AWS_ENDPOINT_URL"] = endpoint_url
    from cytoray.cluster import prepare_auth

    prepare_auth()  # before anything imports ray
    from cytoray.quickstart.flow import QuickstartOptions, run_quickstart

    run_quickstart(QuickstartOptions(folder, store, data, label_key, port, num_cpus, max_cells, steps, fresh))


def _stage_command(name: str, help_text: str) -> Callable[..., None]:
    """Build the command that runs the same stage as ``jobs/NAME.py``."""

    def command(
        config: Annotated[Path, typer.Option("--config", help="YAML file of this stage.", show_default=False)],
        overrides: Overrides = [],  # noqa: B006 - typer reads the default, nothing mutates it
        num_cpus: Annotated[int, typer.Option(help="Logical CPUs when Ray is started here.", min=1)] = 2,
        as_json: JsonAnyway = False,
    ) -> None:
        """Run this stage; the docstring is replaced below."""
        from cytoray.stages.job import print_result, run_stage

        print_result(run_stage(name, config, overrides=overrides, num_cpus=num_cpus))

    command.__doc__ = help_text
    return command


for _name, _help in {
    "ingest": "Ingest files of cells into a committed corpus.",
    **{_kind: _stage.help for _kind, _stage in task_stages().items()},
    "promote": "Register a run's bundle in MLflow and move an alias to it.",
}.items():
    app.command(_name)(_stage_command(_name, _help))


for _kind, _task in task_offline().items():
    assert _task.offline is not None
    app.command(_kind)(offline_command(_kind, _task.offline.help))

app.command()(integrate.integrate)
app.command()(genes.genes)
app.command()(perturb.perturb)


app.command()(doctor.doctor)
app.command()(serve.serve)
app.command()(reproduce.reproduce)
app.command()(init.init)
app.command()(query.query)


@tracking_app.command("sync")
def tracking_sync(
    folder: Annotated[Path, typer.Argument(help="Folder of run journals.")],
    uri: TrackingUri,
    as_json: AsJson = False,
) -> None:
    """Send MLflow the events that it missed while unreachable; nothing is sent twice."""
    from cytoray.tracking import sync

    report = sync(folder, uri=uri)
    line = f"{report.journals} journals: {report.sent} events sent, {report.refused} refused, {report.busy} busy"
    print_answer(report, [line], as_json=as_json)
    for journal, why in report.failed.items():
        typer.echo(f"error: {journal}: {why}", err=True)
    if report.failed:
        raise typer.Exit(CytorayError.exit_code)


@app.command()
def version(as_json: AsJson = False) -> None:
    """Print the version of cytoray and the revision of its code."""
    from cytoray import __version__
    from cytoray.provenance import git_revision

    found = {"version": __version__, "revision": git_revision()}
    print_answer(found, [f"cytoray {__version__} ({git_revision()})"], as_json=as_json)
