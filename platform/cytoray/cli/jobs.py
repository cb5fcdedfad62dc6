"""Commands of ``cytoray jobs``: stages as jobs on a cluster, submitted once, followed, stopped and continued."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cytoray.cli.common import AsJson, Overrides, print_answer

if TYPE_CHECKING:
    from cytoray.operations.jobs.records import Cluster, JobRecord

app = typer.Typer(
    help="Stages as jobs on a cluster: submit, follow, stop, continue. A command that waits for a job ends with its "
    "exit code.",
    no_args_is_help=True,
)
ClusterOption = Annotated[
    str,
    typer.Option(
        envvar="CYTORAY_CLUSTER",
        help="local, http(s)://HOST:8265 (a dashboard), ray://HOST:10001 or kuberay:CONTEXT/NAMESPACE.",
    ),
]
JobName = Annotated[str, typer.Argument(help="Name of a job, or the id of one of its attempts.", show_default=False)]
RuntimeEnv = Annotated[
    Path | None, typer.Option(help="What ships with the job (default: configs/runtime_env.yaml).", show_default=False)
]
Kube = Annotated[
    Path | None,
    typer.Option(help="Image and resources of a RayJob (default: configs/kuberay.yaml).", show_default=False),
]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Return when it is submitted, without following its logs.")]


@app.command()
def submit(
    job: Annotated[str, typer.Argument(help="A file of jobs/: ingest, pretrain, finetune, ….", show_default=False)],
    config: Annotated[Path, typer.Option(help="YAML file of this stage.", show_default=False)],
    overrides: Overrides = [],  # noqa: B006 - typer reads the default, nothing mutates it
    cluster: ClusterOption = "local",
    name: Annotated[
        str | None,
        typer.Option(help="Name of the job (default: from its run or corpus and settings).", show_default=False),
    ] = None,
    env: Annotated[
        list[str],
        typer.Option(help="Variable for the job: NAME (as it is here) or NAME=VALUE; repeatable. No secrets."),
    ] = [],  # noqa: B006
    runtime_env: RuntimeEnv = None,
    kube: Kube = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the request with memory, hours and cost; nothing is submitted.")
    ] = False,
    no_wait: NoWait = False,
    as_json: AsJson = False,
) -> None:
    """Submit a stage as a job and follow it; Ctrl-C leaves it running.

    The same name and settings lead to the job that runs or is done. A failed job is continued by another attempt.
    """
    from cytoray.operations.jobs.clusters import open_cluster
    from cytoray.operations.jobs.request import build_request

    request = build_request(config, job=job, overrides=overrides, name=name, environment=_variables(env))
    if dry_run:
        from cytoray.operations.jobs.preview import preview

        shown = preview(request, cluster, runtime_env=runtime_env, kube=kube)
        print_answer(shown.as_dict(), shown.lines(), as_json=as_json)
        return
    from cytoray.operations.jobs.submitting import submit as submit_job

    place = open_cluster(cluster, runtime_env=runtime_env, kube=kube)
    done = submit_job(place, request)
    _finish(place, done.record, _how(done.record, is_new=done.is_new), no_wait=no_wait, as_json=as_json)


@app.command()
def retry(
    name: JobName,
    overrides: Overrides = [],  # noqa: B006
    cluster: ClusterOption = "local",
    runtime_env: RuntimeEnv = None,
    kube: Kube = None,
    no_wait: NoWait = False,
    as_json: AsJson = False,
) -> None:
    """Start another attempt of a job that has failed or was stopped; its stage continues where it was."""
    from cytoray.operations.jobs.clusters import open_cluster
    from cytoray.operations.jobs.submitting import retry as retry_job

    place = open_cluster(cluster, runtime_env=runtime_env, kube=kube)
    done = retry_job(place, name, overrides=overrides)
    _finish(place, done.record, _how(done.record, is_new=done.is_new), no_wait=no_wait, as_json=as_json)


@app.command()
def attach(name: JobName, cluster: ClusterOption = "local", as_json: AsJson = False) -> None:
    """Follow what a job prints until it has ended; the exit code is the job's."""
    place, record = _find(cluster, name)
    _finish(place, record, "", no_wait=False, as_json=as_json)


@app.command()
def logs(
    name: JobName,
    cluster: ClusterOption = "local",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until it has ended, as `attach` does.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print what a job has printed so far."""
    place, record = _find(cluster, name)
    if follow:
        _finish(place, record, "", no_wait=False, as_json=as_json)
        return
    text = place.read_logs(record)
    print_answer(record.as_dict() | {"logs": text}, text.splitlines(), as_json=as_json)


@app.command()
def status(name: JobName, cluster: ClusterOption = "local", as_json: AsJson = False) -> None:
    """Print the status of a job."""
    _, record = _find(cluster, name)
    print_answer(record.as_dict(), _describe(record), as_json=as_json)


@app.command()
def stop(name: JobName, cluster: ClusterOption = "local", as_json: AsJson = False) -> None:
    """Ask a job to end; training commits a checkpoint first, and `jobs retry` continues it."""
    from cytoray.operations.jobs.stopping import stop_and_wait

    place, record = _find(cluster, name)
    record = stop_and_wait(place, record)
    print_answer(record.as_dict(), _describe(record), as_json=as_json)


@app.command("ls")
def ls(
    cluster: ClusterOption = "local",
    attempts: Annotated[bool, typer.Option("--attempts", help="Every attempt, not the newest of each job.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the jobs of a cluster, the newest first."""
    from cytoray.operations.jobs.clusters import open_cluster
    from cytoray.operations.jobs.records import latest_jobs

    place = open_cluster(cluster)
    records = latest_jobs(place)
    if attempts:
        order = [record.name for record in records]
        records = sorted(place.list_jobs(), key=lambda record: (order.index(record.name), -record.attempt))
    print_answer({"jobs": [record.as_dict() for record in records]}, _table(records), as_json=as_json)


def _variables(given: list[str]) -> dict[str, str]:
    """Return the variables of --env; JobError for one that is not set here."""
    from cytoray.errors import JobError

    found: dict[str, str] = {}
    for entry in given:
        name, is_assigned, value = entry.partition("=")
        if not is_assigned and name not in os.environ:
            raise JobError(f"--env {name}: this variable is not set here.", remedy=f"Write --env {name}=VALUE.")
        found[name] = value if is_assigned else os.environ[name]
    return found


def _find(option: str, name: str) -> tuple[Cluster, JobRecord]:
    """Connect to a cluster and find a job on it."""
    from cytoray.operations.jobs.clusters import open_cluster
    from cytoray.operations.jobs.records import find_job_record

    place = open_cluster(option)
    return place, find_job_record(place, name)


def _how(record: JobRecord, *, is_new: bool) -> str:
    """Describe what a submission led to."""
    if is_new:
        return f"job {record.name}: attempt {record.attempt} submitted"
    return f"job {record.name}: attempt {record.attempt} is there already, with the same settings ({record.status})"


def _finish(place: Cluster, record: JobRecord, how: str, *, no_wait: bool, as_json: bool) -> None:
    """Follow an attempt, print its record, and exit with its code; with ``no_wait`` only print its record."""
    from cytoray.operations.jobs.following import follow

    if how:
        typer.echo(how, err=True)
    if not no_wait:
        write: Callable[[str], None] = lambda text: typer.echo(text, nl=False, err=as_json)  # noqa: E731
        attach_line = f"cytoray jobs attach {record.name} --cluster {place.option}"
        try:
            record = follow(place, record, write)
        except KeyboardInterrupt:
            typer.echo(f"\njob {record.name} continues; to see it again: {attach_line}", err=True)
            raise typer.Exit(1) from None
    if as_json or no_wait:
        print_answer(record.as_dict(), _describe(record), as_json=as_json)
    else:
        typer.echo("\n".join(_describe(record)), err=True)
    if not no_wait:
        raise typer.Exit(record.exit_code or 0)


def _describe(record: JobRecord) -> Iterator[str]:
    """Describe an attempt in lines of text."""
    duration = "" if record.duration_s is None else f", {_span(record.duration_s)}"
    code = "" if record.exit_code in (None, 0) else f", exit code {record.exit_code}"
    yield f"{record.name}  {record.stage}  {record.status}  attempt {record.attempt}{duration}{code}"
    if record.message and record.status in ("failed", "pending"):
        yield f"  {record.message.strip().splitlines()[0]}"
    if record.status in ("failed", "stopped"):
        yield f"  to continue: cytoray jobs retry {record.name}"


def _table(records: list[JobRecord]) -> Iterator[str]:
    """Format attempts as a table."""
    rows = [("NAME", "STAGE", "STATUS", "ATTEMPT", "STARTED", "DURATION")]
    for record in records:
        started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.started_s)) if record.started_s else "-"
        duration = "-" if record.duration_s is None else _span(record.duration_s)
        rows.append((record.name, record.stage, record.status, str(record.attempt), started, duration))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _span(seconds: float) -> str:
    """Format a duration."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
