"""``cytoray data …``, the half that makes and keeps corpora: ingest, ls, show, diff, verify, gc, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from cytoray.cli.data import app

__all__ = ["app"]
Store = Annotated[str, typer.Option(help="Root of the corpora: s3://bucket/prefix or a folder.", show_default=False)]
Corpus = Annotated[str, typer.Argument(help="NAME for the latest version, or NAME@VERSION.", show_default=False)]
Overrides = Annotated[list[str], typer.Option("--set", metavar="A.B=C", help="Override one key; repeatable.")]


@app.command()
def ingest(
    uris: Annotated[list[str] | None, typer.Argument(help="Files, s3://… objects, or prefixes ending in '/'.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file; what else is given here overrides it.")] = None,
    store: Annotated[str | None, typer.Option(help="Where the corpus goes: s3://bucket/prefix or a folder.")] = None,
    corpus: Annotated[str | None, typer.Option(help="Name of the corpus.")] = None,
    append: Annotated[bool, typer.Option("--append", help="Add what is new as the corpus's next version.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read headers only; tell cells, bytes, time.")] = False,
    overrides: Overrides = [],  # noqa: B006 - typer reads the default, nothing mutates it
    num_cpus: Annotated[int, typer.Option(help="Logical CPUs when Ray is started here.", min=1)] = 2,
) -> None:
    """Ingest files of cells into a committed, checked, globally shuffled corpus."""
    from cytoray.config import build_config, load_config
    from cytoray.corpus.config import IngestConfig

    given = {"store": store, "corpus": corpus, "append": append or None}
    sets = [f"{name}={json.dumps(value)}" for name, value in given.items() if value is not None]
    if uris:
        sets.append(f"sources={json.dumps([{'uri': uri} for uri in uris])}")
    sets += overrides
    settings = (
        load_config(IngestConfig, config, overrides=sets) if config else build_config(IngestConfig, overrides=sets)
    )
    if dry_run:
        _show_dry_run(settings)
        return
    from cytoray.cluster import connected

    with connected(num_cpus=num_cpus):
        from cytoray.stages.job import print_result
        from cytoray.stages.run import SUMMARIES

        print_result(SUMMARIES["ingest"](settings))


def _show_dry_run(settings: object) -> None:
    """Print what an ingest would do."""
    from cytoray.corpus.config import IngestConfig
    from cytoray.corpus.ingesting.planning import dry_run

    assert isinstance(settings, IngestConfig)
    run = dry_run(settings)
    typer.echo(f"sources      {run.num_sources:,}" + (f" ({run.num_quarantined} bad)" if run.num_quarantined else ""))
    typer.echo(f"cells        {run.num_cells:,}")
    typer.echo(f"reads        {_size(run.num_bytes_read)}")
    typer.echo(f"writes       about {_size(run.num_bytes_written)} in {run.num_shards:,} shards")
    typer.echo(f"takes        about {_duration(run.seconds)} with {settings.read_concurrency} tasks at a time")


@app.command("ls")
def list_(store: Store) -> None:
    """List the corpora of a store and their versions."""
    from cytoray.corpus.versions import list_corpora

    for found in list_corpora(store):
        latest = found.latest
        typer.echo(
            f"{found.name}@{latest.version}  {latest.num_cells:,} cells  {_size(latest.num_bytes)}  "
            f"{len(latest.shards):,} shards  {latest.digest[:16]}"
        )


@app.command()
def show(
    corpus: Corpus,
    store: Store,
    as_json: Annotated[bool, typer.Option("--json", help="The whole manifest as JSON.")] = False,
) -> None:
    """Show what a corpus holds and where its cells came from."""
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
    newer: Annotated[str, typer.Argument(help="What to compare it with.", show_default=False)],
    store: Store,
) -> None:
    """Compare two versions: cells, sources, shards, settings."""
    from cytoray.corpus.manifest import load_manifest
    from cytoray.corpus.version_text import describe_diff
    from cytoray.corpus.versions import diff as compare

    for line in describe_diff(compare(load_manifest(store, older), load_manifest(store, newer))):
        typer.echo(line)


@app.command()
def verify(corpus: Corpus, store: Store) -> None:
    """Read every byte of a corpus again against its digest; exit code 2 if one is not as it was written."""
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
    for damage in report.damaged:
        typer.echo(f"damaged: {damage.uri}: {damage.problem}", err=True)
    good = "all good" if not report.damaged else f"{len(report.damaged)} damaged"
    typer.echo(f"{report.num_versions} versions, {report.num_files:,} files, {_size(report.num_bytes)}: {good}")
    if report.damaged:
        raise typer.Exit(CorpusError.exit_code)


@app.command()
def gc(
    store: Store,
    delete: Annotated[bool, typer.Option("--delete", help="Delete them; without it they are only listed.")] = False,
    grace_hours: Annotated[float, typer.Option(help="Leave younger objects: an ingest may be under way.", min=0)] = 24,
) -> None:
    """Find objects that no committed version names: left by ingests that were killed."""
    from cytoray.corpus.versions import gc as collect

    report = collect(store, dry_run=not delete, grace_s=grace_hours * 3600)
    for uri in report.orphans:
        typer.echo(("deleted " if report.deleted else "orphan  ") + uri)
    done = "deleted" if report.deleted else "would be deleted (--delete does it)"
    typer.echo(f"{len(report.orphans):,} {done}; {report.num_young:,} younger than {grace_hours:g} h are left alone")


@app.command()
def export(
    corpus: Corpus,
    store: Store,
    to: Annotated[str, typer.Option(help="Local path of the file or folder to write.", show_default=False)],
    format: Annotated[Literal["h5ad", "zarr", "annbatch"], typer.Option(help="What to write.")] = "h5ad",
    select: Annotated[str | None, typer.Option(help="Cells to write, as an expression over obs.")] = None,
) -> None:
    """Write a corpus, or the cells of a selection, as AnnData again."""
    from cytoray import progress
    from cytoray.corpus.export import ExportOptions
    from cytoray.corpus.export import export as write
    from cytoray.corpus.manifest import load_manifest

    with progress.stage("export", total=load_manifest(store, corpus).num_cells, unit="cells") as advance:
        result = write(store, corpus, ExportOptions(to, format, select), advance=advance)
    typer.echo(f"{result.num_cells:,} cells, {result.num_genes:,} genes: {', '.join(result.files)}")


def _size(num_bytes: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.2f} TB"


def _duration(seconds: float) -> str:
    """A time for people."""
    if seconds < 120:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
