"""``cytoray reproduce``: a model rebuilt from its lineage, and compared bit by bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cytoray.cli.common import STORE, TRACKING, AsJson, print_answer, size, tracking_of

if TYPE_CHECKING:
    from cytoray.operations.reproducing.plan import Plan

DIFFERENT = 2  # as of `data verify`


def reproduce(
    model: Annotated[
        str,
        typer.Argument(
            help="models:/NAME@ALIAS, models:/NAME/VERSION, run:NAME, or a bundle's URI.", show_default=False
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="New local folder for results; default: reproduced-DIGEST in the working folder."),
    ] = None,
    into: Annotated[
        str | None, typer.Option(help="New store for the corpora and runs, such as s3://bucket/again; default: in OUT.")
    ] = None,
    ingest: Annotated[
        list[Path], typer.Option(help="YAML file of an ingest, for a corpus that does not record it; repeatable.")
    ] = [],  # noqa: B006 - typer reads the default, nothing mutates it
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the sources and print the steps.")] = False,
    store: Annotated[
        str | None, typer.Option(envvar=STORE, help="Store of the original run, if its lineage names another place.")
    ] = None,
    uri: Annotated[str | None, typer.Option("--uri", envvar=TRACKING, help="MLflow, for models:/….")] = None,
    num_cpus: Annotated[int, typer.Option(help="Logical CPUs when Ray is started here.", min=1)] = 2,
    as_json: AsJson = False,
) -> None:
    """Rebuild a model from its lineage (sources, corpus, runs) in a new place, and compare every digest.

    On a CPU with the same versions of packages the weights are equal bit by bit; what may differ is reported before
    the start. A rebuild that was killed continues. Exit code 2 if a source has changed or is gone, or if a corpus or
    the weights come out different.
    """
    from cytoray.cluster import available, prepare_auth
    from cytoray.operations.reproducing.lineage import Places, trace_model
    from cytoray.operations.reproducing.plan import plan_reproduction

    prepare_auth()  # before anything imports ray
    places = Places(store, None if uri is None else tracking_of(uri))
    plan = plan_reproduction(trace_model(model, places=places), ingests=ingest)
    if dry_run:
        print_answer(_described(plan), _lines(plan), as_json=as_json)
        raise typer.Exit(DIFFERENT if plan.bad_sources else 0)
    for warning in plan.warnings:
        typer.echo(f"warning: {warning}", err=True)
    from cytoray.operations.reproducing.rebuild import open_target, rebuild, report, report_lines

    target = open_target(plan, out or Path(f"reproduced-{plan.trace.model.digest[:12]}"), store=into)
    with available(num_cpus=num_cpus):
        result = rebuild(plan, target)
    print_answer(report(result), report_lines(result), as_json=as_json)
    if not result.equal:
        raise typer.Exit(DIFFERENT)


def _described(plan: Plan) -> dict[str, Any]:
    """Return a plan as JSON data."""
    from cytoray.operations.reproducing.plan import CorpusStep

    steps = []
    for step in plan.steps:
        if isinstance(step, CorpusStep):
            manifest = step.manifest
            steps.append(
                {
                    "step": "ingest",
                    "corpus": step.title,
                    "store": step.store,
                    "digest": manifest.digest,
                    "content_digest": manifest.content_digest,
                    "num_cells": manifest.num_cells,
                    "sources": list(step.sources),
                }
            )
        else:
            config = step.run.record.config
            steps.append(
                {
                    "step": step.run.kind,
                    "run": step.run.name,
                    "corpus": step.corpus,
                    "initial": step.run.initial,
                    "num_steps": config["train"]["num_steps"],
                    "bundle_digest": step.run.bundle.digest,
                }
            )
    model = plan.trace.model
    return {"model": model.uri, "digest": model.digest, "steps": steps, "warnings": list(plan.warnings)}


def _lines(plan: Plan) -> Iterator[str]:
    """Describe a plan in lines for people."""
    from cytoray.operations.reproducing.plan import CorpusStep

    yield f"model       {plan.trace.model.uri}  {plan.trace.model.digest[:16]}"
    for step in plan.steps:
        if isinstance(step, CorpusStep):
            manifest = step.manifest
            total = size(sum(source.num_bytes for source in step.sources))
            yield f"ingest      {step.title}: {manifest.num_cells:,} cells, {len(step.sources):,} sources, {total}"
            for source in step.sources:
                yield f"  {source.state:<10}{source.uri}" + (f" ({source.reason})" if source.reason else "")
        else:
            steps = step.run.record.config["train"]["num_steps"]
            start = "" if step.run.initial is None else f", from {step.run.initial}"
            yield f"{step.run.kind:<11} {step.run.name}: {steps:,} steps on {step.corpus}{start}"
    yield from (f"warning     {warning}" for warning in plan.warnings)
