"""``cytoray genes``: embeddings of a model's genes as a file, and the genes nearest to one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cytoray.cli.common import STORE, TRACKING, AsJson, print_answer


def genes(
    model: Annotated[str, typer.Argument(help="Bundle, public checkpoint, models:/NAME@ALIAS, or run:NAME.")],
    data: Annotated[
        str | None, typer.Option(help="File of cells: embed genes as these cells express them, by the mean over cells.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Parquet or h5ad file to write.")] = None,
    nearest: Annotated[str | None, typer.Option(help="Gene whose nearest genes are printed.")] = None,
    num: Annotated[int, typer.Option(help="Number of nearest genes.", min=1)] = 10,
    store: Annotated[str | None, typer.Option(envvar=STORE, help="Root of all data of cytoray, for run:NAME.")] = None,
    uri: Annotated[str | None, typer.Option("--uri", envvar=TRACKING, help="MLflow, for models:/NAME@ALIAS.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the gene embeddings of a model, or print the genes nearest to one."""
    from cytoray.errors import ConfigError

    if out is not None and out.suffix not in (".parquet", ".h5ad"):
        raise ConfigError(f"{out} is neither .parquet nor .h5ad.", remedy="Name a file of one of these kinds.")
    if out is None and nearest is None:
        raise ConfigError("Nothing is asked for.", remedy="Give --out, --nearest, or both.")
    from cytoray.api.config import scGPTConfig
    from cytoray.api.genes import as_rows, nearest_genes, write_embeddings
    from cytoray.api.model import scGPT

    opened = scGPT(scGPTConfig(model=model, store=store, tracking_uri=uri, empty_cells="nan"))
    table = opened.get_gene_embeddings(None if data is None else opened.process_data(data, use_raw_counts=False))
    found = None if nearest is None else nearest_genes(table, nearest, num=num)
    if out is not None:
        write_embeddings(table, out)
    rows = None if found is None else as_rows(found)
    answer = {"num_genes": len(table), "width": table.shape[1], "out": out and str(out), "nearest": rows}
    lines = [f"{len(table):,} genes of width {table.shape[1]}" + (f": {out}" if out is not None else "")]
    lines += [f"{row['gene']:<16}{row['cosine']:.3f}" for row in rows or ()]
    print_answer(answer, lines, as_json=as_json)
