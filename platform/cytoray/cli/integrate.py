"""``cytoray integrate``: one embedding for the cells of several batches, and further cells beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cytoray.cli.common import STORE, AsJson, print_answer


def integrate(
    data: Annotated[str, typer.Argument(help="File of cells: a path or s3://…")],
    out: Annotated[Path, typer.Option(help="h5ad file to write, with the embedding in obsm X_cytoray.")],
    batch_key: Annotated[
        str, typer.Option(help="Column of obs with the batches; cells without one get no embedding.")
    ] = "batch",
    model_out: Annotated[Path | None, typer.Option(help="Folder to keep the fitted integration in.")] = None,
    fitted: Annotated[
        Path | None, typer.Option("--with", help="Folder of a kept integration: embed the cells beside its own.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Bundle, run:NAME or models:/…: its embeddings are one more candidate.")
    ] = None,
    store: Annotated[str | None, typer.Option(envvar=STORE, help="Root of everything, for run:NAME.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of samples.", min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """Integrate the batches of a file without cell types, or embed its cells by an integration that was kept."""
    from cytoray.errors import ConfigError
    from cytoray.stages.integrate import OBSM_KEY, Using, integrate_file, open_embedder
    from cytoray.tasks.integration.model import IntegrationModel

    if fitted is not None and model_out is not None:
        raise ConfigError("--with uses a kept integration and --model-out keeps a new one.", remedy="Give one of them.")
    using = Using(None if fitted is None else IntegrationModel.load(fitted), open_embedder(model, store=store))
    found = integrate_file(data, out, batch_key=batch_key, using=using, seed=seed)
    digest = found.model.save(model_out) if model_out is not None else None
    answer = {
        "out": str(out),
        "obsm": OBSM_KEY,
        "num_cells": len(found.embedding),
        "num_embedded": found.num_embedded,
        "num_dimensions": found.embedding.shape[1],
        "recipe": found.model.recipe.as_dict(),
        "why": found.model.why,
        "model_out": None if model_out is None else str(model_out),
        "digest": digest,
    }
    how = found.model.why or found.model.recipe.name
    lines = [
        f"{found.num_embedded:,} of {len(found.embedding):,} cells embedded by {how}",
        f"{out}, obsm {OBSM_KEY}",
        *([f"{model_out} (embed further cells with --with {model_out})"] if model_out is not None else []),
    ]
    print_answer(answer, lines, as_json=as_json)
