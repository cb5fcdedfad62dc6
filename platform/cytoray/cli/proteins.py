"""``cytoray proteins``: fit a model that predicts proteins from RNA, use it, and embed RNA and proteins jointly."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cytoray.cli.common import AsJson, print_answer
from cytoray.tasks.multiomic.assess_config import PROTEIN_KEY

app = typer.Typer(help="Proteins: predict them from RNA; joint embeddings of CITE-seq.", no_args_is_help=True)
Data = Annotated[str, typer.Option(help="File of cells: a path or s3://…", show_default=False)]
ProteinKey = Annotated[str | None, typer.Option(help=PROTEIN_KEY)]
Seed = Annotated[int, typer.Option(help="Seed of folds and fits.", min=0)]


@app.command()
def fit(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the model; must not exist.", show_default=False)],
    protein_key: ProteinKey = None,
    batch_key: Annotated[
        str | None, typer.Option(help="Column of obs with the batches: choices must hold for batches not seen.")
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Fit a model of proteins on CITE-seq cells; each protein's held-out correlation is stored with it."""
    from cytoray.errors import ConflictError
    from cytoray.tasks.multiomic.protein_model import fit_model
    from cytoray.tasks.multiomic.reading import read_paired

    if out.exists():
        raise ConflictError(f"{out} already exists.", remedy="Choose another folder.")
    cells = read_paired(data, protein_key=protein_key, batch_key=batch_key)
    model = fit_model(cells, seed=seed)
    digest = model.save(out)
    confidence = dict(zip(model.proteins, map(float, model.confidence), strict=True))
    lines = [f"{name}: held-out correlation {value:.3f}" for name, value in confidence.items()]
    answer = {"model": str(out), "digest": digest, "confidence": confidence, "facts": dict(model.facts)}
    print_answer(answer, [*lines, *cells.warnings, str(model.facts["why"]), f"model {out}  {digest}"], as_json=as_json)


@app.command()
def predict(
    data: Data,
    model: Annotated[Path, typer.Option(help="Folder of a fitted model.", show_default=False)],
    out: Annotated[Path, typer.Option(help="File to write, an h5ad; must not exist.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Predict proteins from RNA and write the cells with obsm["X_protein_predicted"]."""
    from cytoray.tasks.multiomic.predicting import write_prediction
    from cytoray.tasks.multiomic.protein_model import ProteinModel

    found = write_prediction(ProteinModel.load(model), data, out)
    confidence = dict(zip(found.names, map(float, found.confidence), strict=True))
    line = f"{len(found.names)} proteins of {len(found.cells):,} cells: {out}"
    answer = {"out": str(out), "num_cells": len(found.cells), "confidence": confidence, "warnings": found.warnings}
    print_answer(answer, [*found.warnings, line], as_json=as_json)


@app.command()
def joint(
    data: Data,
    out: Annotated[Path, typer.Option(help="File to write, an h5ad; must not exist.", show_default=False)],
    protein_key: ProteinKey = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Embed RNA and proteins of CITE-seq cells jointly and write the cells with obsm["X_joint"]."""
    from cytoray.tasks.multiomic.predicting import write_joint

    num_cells, width = write_joint(data, out, protein_key=protein_key, seed=seed)
    answer = {"out": str(out), "num_cells": num_cells, "width": width}
    print_answer(answer, [f"{num_cells:,} cells x {width}: {out}"], as_json=as_json)
