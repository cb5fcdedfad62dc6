"""Commands of ``cytoray pipeline``: run all stages by one file, and look at their state."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cytoray.cli.common import AsJson, Overrides, print_answer
from cytoray.cli.jobs import Kube, RuntimeEnv

if TYPE_CHECKING:
    from cytoray.operations.pipeline.planning import StagePlan
    from cytoray.operations.pipeline.runners import Runner

app = typer.Typer(help="All stages by one file: from cells to a served model.", no_args_is_help=True)
PipelineFile = Annotated[Path, typer.Argument(help="A YAML file of `kind: pipeline`.", show_default=False)]


@app.command()
def run(
    file: PipelineFile,
    overrides: Overrides = [],  # noqa: B006 - typer reads the default, nothing mutates it
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            envvar="CYTORAY_CLUSTER",
            help="Run the stages as jobs there, see `cytoray jobs submit`; default: here.",
        ),
    ] = None,
    runtime_env: RuntimeEnv = None,
    kube: Kube = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would run, and why.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run the stages that are not done: new cells, changed settings and killed runs are found, the rest is skipped.

    `--set STAGE.a.b=c` changes a key of a stage. Exit codes: 0 all done; 2 a stage has a mistake; 3 the gate refused
    the model, which was not promoted; 75 stopped, run it again to continue.
    """
    from cytoray.operations.pipeline.planning import plan
    from cytoray.operations.pipeline.reading import read_pipeline

    pipeline = read_pipeline(file, overrides=overrides)
    if dry_run:
        plans = plan(pipeline)
        print_answer({"stages": [one.as_dict() for one in plans]}, map(_line, plans), as_json=as_json)
        return
    from cytoray.operations.pipeline.running import run_pipeline

    done = run_pipeline(pipeline, _runner(cluster, runtime_env, kube), until=until)
    found: dict[str, Any] = {"stages": [one.as_dict() for one in done.plans], "ran": done.ran, "page": done.page}
    print_answer(found, [*map(_line, done.plans), f"page   {done.page}"], as_json=as_json)


def _runner(cluster: str | None, runtime_env: Path | None, kube: Path | None) -> Runner:
    """Return where stages run."""
    from cytoray.operations.pipeline.runners import LocalRunner

    if cluster is None:
        return LocalRunner()
    from cytoray.operations.jobs.clusters import open_cluster
    from cytoray.operations.pipeline.cluster_runner import ClusterRunner

    return ClusterRunner(open_cluster(cluster, runtime_env=runtime_env, kube=kube))


@app.command()
def status(file: PipelineFile, overrides: Overrides = [], as_json: AsJson = False) -> None:  # noqa: B006
    """Show what each stage has done, or why it is not done; nothing is started."""
    from cytoray.operations.pipeline.planning import plan
    from cytoray.operations.pipeline.reading import read_pipeline

    pipeline = read_pipeline(file, overrides=overrides)
    plans = plan(pipeline)
    print_answer(
        {"stages": [one.as_dict() for one in plans], "folder": pipeline.folder},
        [line for one in plans for line in _lines(one)],
        as_json=as_json,
    )


def _line(planned: StagePlan) -> str:
    """Format the state of a stage in a line."""
    return f"{planned.state:5}  {planned.stage.name}" + ("" if planned.state == "done" else f": {planned.reason}")


def _lines(planned: StagePlan) -> Iterator[str]:
    """Format the state of a stage, with when it was done or why it failed."""
    if planned.record is None:
        yield _line(planned)
    else:
        yield f"{_line(planned)}  {planned.record.started}, {planned.record.seconds:g} s"
    if planned.failure is not None:
        yield f"       last attempt, {planned.failure.at}: {planned.failure.problem}"
        yield f"       {planned.failure.remedy}"
