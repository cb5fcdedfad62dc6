"""Commands of ``cytoray data`` for corpora: ingest, ls, show, diff, verify, gc, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from cytoray.cli.common import STORE, AsJson, Overrides, Store, folders_end_in_slash, place, print_answer
from cytoray.cli.common import size as _size
from cytoray.cli.data import app

__all__ = ["app"]
Corpus = Annotated[str, typer.Argument(help="NAME for the latest version, or NAME@VERSION.", show_default=False)]


@app.command()
def ingest(
    uris: Annotated[
        list[str] | None, typer.Argument(help="Files, folders, s3://… objects, or s3://…/ prefixes.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file; other options override it.")] = None,
    store: Annotated[
        str | None, typer.Option(help="Destination of the corpus: s3://bucket/prefix or a folder.")
    ] = None,
    corpus: Annotated[str | None, typer.Option(help="Name of the corpus.")] = None,
    append: Annotated[bool, typer.Option("--append", help="Add new cells as the next version of the corpus.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read headers only; print cells, bytes and time.")] = False,
    overrides: Overrides = [],  # noqa: B006 - typer reads the default, nothing mutates it
    as_json: AsJson = False,
    num_cpus: Annotated[int, typer.Option(help="Logical CPUs when Ray is started here.", min=1)] = 2,
) -> None:
    """Ingest files of cells into a committed, checked, globally shuffled corpus."""
    from cytoray.config import build_config, load_config
    from cytoray.corpus.config import IngestConfig

    given = {"store": place(store, STORE, config=config), "corpus": corpus, "append": append or None}
    sets = [f"{name}={json.dumps(value)}" for name, value in given.items() if value is not None]
    if uris:
        sets.append(f"sources={json.dumps([{'uri': uri} for uri in folders_end_in_slash(uris)])}")
    sets += overrides
    settings = (
        load_config(IngestConfig, config, overrides=sets) if config else build_config(IngestConfig, overrides=sets)
    )
    if dry_run:
        _show_dry_run(settings, as_json=as_json)
        return
    from cytoray.stages.job import print_result, run_configured

    print_result(run_configured("ingest", settings, num_cpus=num_cpus))


def _show_dry_run(settings: object, *, as_json: bool) -> None:
    """Print the plan of an ingest."""
    from cytoray.corpus.config import IngestConfig
    from cytoray.corpus.ingesting.planning import dry_run

    assert isinstance(settings, IngestConfig)
    run = dry_run(settings)
    bad = f" ({run.num_quarantined} bad)" if run.num_quarantined else ""
    lines = (
        f"sources      {run.num_sources:,}{bad}",
        f"cells        {run.num_cells:,}",
        f"reads        {_size(run.num_bytes_read)}",
        f"writes       about {_size(run.num_bytes_written)} in {run.num_shards:,} shards",
        f"takes        about {_duration(run.seconds)} with {settings.read_concurrency} tasks at a time",
    )
    print_answer(run, lines, as_json=as_json)


@app.command("ls")
def list_(store: Store, as_json: AsJson = False) -> None:
    """List the corpora of a store, every version of each."""
    from cytoray.corpus.manifest import load_manifest
    from cytoray.corpus.versions import list_corpora
    from cytoray.errors import CorpusError

    manifests = [
        load_manifest(store, f"{found.name}@{version}") for found in list_corpora(store) for version in found.versions
    ]
    if not manifests:
        raise CorpusError(
            f"{store}: this store does not exist or has no corpus.",
            remedy="Check --store (or CYTORAY_STORE, or cytoray.yaml), or ingest one with `cytoray data ingest`.",
            uri=store,
        )
    rows = [
        {
            "corpus": manifest.name,
            "version": manifest.version,
            "num_cells": manifest.num_cells,
            "num_bytes": manifest.num_bytes,
            "num_shards": len(manifest.shards),
            "digest": manifest.digest,
        }
        for manifest in manifests
    ]
    lines = (
        f"{manifest.name}@{manifest.version}  {manifest.num_cells:,} cells  {_size(manifest.num_bytes)}  "
        f"{len(manifest.shards):,} shards  {manifest.digest[:16]}"
        for manifest in manifests
    )
    print_answer({"corpora": rows}, lines, as_json=as_json)


@app.command()
def show(
    corpus: Corpus,
    store: Store,
    as_json: Annotated[bool, typer.Option("--json", help="The whole manifest as JSON.")] = False,
) -> None:
    """Show the contents of a corpus and the sources of its cells."""
    from cytoray.corpus.manifest import load_manifest
    from cytoray.corpus.version_text import describe_corpus

    manifest = load_manifest(store, corpus)
    if as_json:
        typer.echo(manifest.model_dump_json(indent=1))
        return
    for line in describe_corpus(store, manifest):
        typer.echo(line)


@app.command()
def diff(
    older: Corpus,
    newer: Annotated[str, typer.Argument(help="Version to compare it with.", show_default=False)],
    store: Store,
    as_json: AsJson = False,
) -> None:
    """Compare two versions: cells, sources, shards, settings."""
    from cytoray.corpus.manifest import load_manifest
    from cytoray.corpus.version_text import describe_diff
    from cytoray.corpus.versions import diff as compare

    found = compare(load_manifest(store, older), load_manifest(store, newer))
    print_answer(found, describe_diff(found), as_json=as_json)


@app.command()
def verify(corpus: Corpus, store: Store, as_json: AsJson = False) -> None:
    """Verify every byte of a corpus against its digests; exit code 2 if anything was changed."""
    from cytoray import progress
    from cytoray.corpus.manifest import load_manifest
    from cytoray.corpus.versions import verify as verify_corpus
    from cytoray.errors import CorpusError

    total = load_manifest(store, corpus).num_bytes
    with progress.stage("verify", total=total / 1e6, unit="MB") as advance:
        report = verify_corpus(
            store,
            corpus,
            advance=lambda amount, note="", *, already=False: advance(amount / 1e6, note, already=already),
        )
    if not as_json:
        for damage in report.damaged:
            typer.echo(f"damaged: {damage.uri}: {damage.problem}", err=True)
    good = "all good" if not report.damaged else f"{len(report.damaged)} damaged"
    line = f"{report.num_versions} versions, {report.num_files:,} files, {_size(report.num_bytes)}: {good}"
    print_answer(report, [line], as_json=as_json)
    if report.damaged:
        raise typer.Exit(CorpusError.exit_code)


@app.command()
def gc(
    store: Store,
    delete: Annotated[bool, typer.Option("--delete", help="Delete them; without it they are only listed.")] = False,
    grace_hours: Annotated[float, typer.Option(help="Keep younger objects: an ingest may be running.", min=0)] = 24,
    as_json: AsJson = False,
) -> None:
    """Find objects that belong to no committed version, left behind by killed ingests."""
    from cytoray.corpus.versions import gc as collect

    report = collect(store, dry_run=not delete, grace_s=grace_hours * 3600)
    lines = [("deleted " if report.deleted else "orphan  ") + uri for uri in report.orphans]
    done = "deleted" if report.deleted else "would be deleted (--delete does it)"
    lines.append(f"{len(report.orphans):,} {done}; {report.num_young:,} younger than {grace_hours:g} h are kept")
    print_answer(report, lines, as_json=as_json)


@app.command()
def export(
    corpus: Corpus,
    store: Store,
    to: Annotated[str, typer.Option(help="Local path of the file or folder to write.", show_default=False)],
    format: Annotated[Literal["h5ad", "zarr", "annbatch"], typer.Option(help="Format to write.")] = "h5ad",
    select: Annotated[str | None, typer.Option(help="Cells to write, as an expression over columns of obs.")] = None,
    as_json: AsJson = False,
) -> None:
    """Export a corpus, or selected cells of it, as AnnData."""
    from cytoray import progress
    from cytoray.corpus.export import ExportOptions
    from cytoray.corpus.export import export as write
    from cytoray.corpus.manifest import load_manifest

    with progress.stage("export", total=load_manifest(store, corpus).num_cells, unit="cells") as advance:
        result = write(store, corpus, ExportOptions(to, format, select), advance=advance)
    line = f"{result.num_cells:,} cells, {result.num_genes:,} genes: {', '.join(result.files)}"
    print_answer(result, [line], as_json=as_json)


def _duration(seconds: float) -> str:
    """Format a duration for reading."""
    if seconds < 120:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
