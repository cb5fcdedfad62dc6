"""``cytoray quickstart``: all stages on real cells."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


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
