"""``cytoray runs``: training runs of a store, listed, shown and compared."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from cytoray.cli.common import AsJson, Store, print_answer, tracking_of

if TYPE_CHECKING:
    from cytoray.operations.describing.runs import RunSummary

app = typer.Typer(help="Training runs: list, show, compare.", no_args_is_help=True)
Mlflow = Annotated[str | None, typer.Option("--uri", help="Also ask this MLflow for the status of each run.")]


@app.command("ls")
def list_(store: Store, uri: Mlflow = None, as_json: AsJson = False) -> None:
    """List the runs of a store: status, steps, best validation error, speed, last sign of life."""
    from cytoray.operations.describing.runs import explain_missing, list_summaries, run_lines

    found = list_summaries(store, tracking=None if uri is None else tracking_of(uri))
    if not found:
        raise explain_missing(store)
    print_answer({"runs": [run.as_dict() for run in found]}, run_lines(found, now_s=time.time()), as_json=as_json)


@app.command()
def show(
    run: Annotated[str, typer.Argument(help="Name of the run.", show_default=False)],
    store: Store,
    uri: Mlflow = None,
    as_json: AsJson = False,
) -> None:
    """Show a run: its state, its journal on this machine, digests, settings and environment."""
    from cytoray.operations.describing.runs import read_journal, summarise_run

    found = summarise_run(store, run, tracking=None if uri is None else tracking_of(uri))
    journal = read_journal(found)
    record = found.record
    answer = {
        **found.as_dict(),
        "corpus_manifest_digest": record.manifest_digest,
        "initial_digest": record.initial_digest or None,
        "validation": found.state.get("validation", []),
        "elapsed_s": found.state.get("elapsed_s"),
        "environment": record.environment or found.state.get("versions", {}),
        "journal": journal,
        "config": record.config,
    }
    print_answer(answer, _lines(found, journal), as_json=as_json)


def _lines(found: RunSummary, journal: dict[str, object] | None) -> list[str]:
    """Describe a run in lines for people."""
    from cytoray.operations.describing.runs import ago

    record = found.record
    sign = "none" if found.heartbeat_s is None else f"{ago(time.time() - found.heartbeat_s)} ago"
    lines = [
        f"run          {found.name} ({found.kind}), {found.status}",
        f"steps        {found.step:,} of {found.num_steps:,}"
        + ("" if found.steps_per_s is None else f", {found.steps_per_s:.3g} per second"),
        f"last sign    {sign}",
        f"corpus       {found.corpus} ({record.manifest_digest[:16]})",
    ]
    if found.loss is not None:
        lines.append(f"loss         {found.loss:.5g}")
    lines += [
        "validation   " + ", ".join(f"{name} {value:.5g}" for name, value in point.items())
        for point in found.state.get("validation", [])[-5:]
    ]
    if found.best is not None:
        lines.append(f"best         {found.best_name} {found.best:.5g}")
    if record.config.get("initial"):
        lines.append(f"started from {record.config['initial']} ({record.initial_digest[:16]})")
    if found.bundle_digest is not None:
        lines.append(f"bundle       {found.bundle_digest}")
    if found.mlflow is not None:
        lines.append(f"MLflow       {found.mlflow}")
    if journal is not None:
        lines.append(f"journal      {journal['journal']}, step {journal['step']}")
    return lines


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="Names of two or more runs.", show_default=False)],
    store: Store,
    as_json: AsJson = False,
) -> None:
    """Compare runs: the settings that differ, and their figures side by side."""
    from cytoray.errors import ConfigError
    from cytoray.operations.describing.runs import compare_lines, compare_runs, summarise_run

    if len(runs) < 2:
        raise ConfigError("There is only one run to compare.", remedy="Name two or more; see `cytoray runs ls`.")
    found = compare_runs([summarise_run(store, run) for run in runs])
    print_answer(found, compare_lines(found), as_json=as_json)
