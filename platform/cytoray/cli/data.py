"""Commands of ``cytoray data``: check files, and ingest, inspect and maintain corpora."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cytoray.cli.common import AsJson, folders_end_in_slash, print_answer

app = typer.Typer(help="Corpora: check files, ingest, inspect, verify, export.", no_args_is_help=True)


@app.command()
def synth(
    out: Annotated[Path, typer.Option(help="Local folder for the files.", show_default=False)],
    cells: Annotated[int, typer.Option(help="Number of cells in all files.", min=1)] = 10_000,
    genes: Annotated[int, typer.Option(help="Number of genes in each file.", min=50, max=30_000)] = 20_000,
    mean_genes: Annotated[
        float, typer.Option(help="Mean number of expressed genes per cell.", min=1, max=6_000)
    ] = 1_500,
    files: Annotated[int, typer.Option(help="Number of h5ad files.", min=1)] = 8,
    seed: Annotated[int, typer.Option(help="Equal seeds make equal files.", min=0)] = 0,
    compression: Annotated[
        Literal["fast", "gzip", "none"], typer.Option(help="Compression: fast deflate, gzip as in anndata, or none.")
    ] = "fast",
    as_json: AsJson = False,
) -> None:
    """Write synthetic h5ad files: sparse, realistic counts with planted cell types and donors."""
    from cytoray import progress
    from cytoray.corpus.synthetic import SynthConfig, synthesise

    config = SynthConfig(
        num_cells=cells, num_genes=genes, mean_genes=mean_genes, num_files=files, seed=seed, compression=compression
    )
    with progress.stage("synth", total=cells, unit="cells") as advance:
        paths = synthesise(out, config, advance=advance)
    size = sum(path.stat().st_size for path in paths)
    line = f"{cells:,} cells in {len(paths)} files below {out}, {size / 1e9:.2f} GB, {size / cells:,.0f} bytes per cell"
    answer = {"out": str(out), "files": [str(path) for path in paths], "num_cells": cells, "num_bytes": size}
    print_answer(answer, [line], as_json=as_json)


@app.command()
def validate(
    uris: Annotated[list[str], typer.Argument(help="Files, folders, s3://… objects, or s3://…/ prefixes.")],
    label: Annotated[list[str], typer.Option(help="A required column of obs; repeatable.")] = [],  # noqa: B006
    report: Annotated[str | None, typer.Option(help="Folder or prefix for report.html and report.json.")] = None,
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="A.B=C", help="checks.min_genes=200, matrix=raw.X, …; repeatable.")
    ] = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Check files of cells without ingesting them: their contents, and what an ingest would skip and why."""
    from cytoray import progress
    from cytoray.config import build_config
    from cytoray.corpus.reporting.report_text import report_lines
    from cytoray.corpus.validate import ValidateConfig
    from cytoray.corpus.validate import validate as validate_sources
    from cytoray.errors import CorpusError

    options = build_config(ValidateConfig, overrides=overrides)
    options = options.model_copy(update={"labels": (*options.labels, *label)})
    with progress.stage("validate", total=0, unit="cells") as advance:
        found = validate_sources(options.sources(folders_end_in_slash(uris)), options=options, advance=advance)
    lines = list(report_lines(found))
    if report is not None:
        from cytoray.corpus.reporting.report_page import write_report  # imports matplotlib

        write_report(report, found)
        lines.append(f"report: {report.rstrip('/')}/report.html")
    print_answer(found.to_json(), lines, as_json=as_json)
    if found.quarantined:
        raise typer.Exit(CorpusError.exit_code)
