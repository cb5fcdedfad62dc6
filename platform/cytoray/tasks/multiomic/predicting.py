"""Write cells with their predicted proteins, or with a joint embedding, as h5ad."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from cytoray import storage
from cytoray.drafts import draft_of
from cytoray.errors import ConflictError
from cytoray.tasks.multiomic.joint import joint_embedding
from cytoray.tasks.multiomic.protein_model import ProteinModel
from cytoray.tasks.multiomic.protein_predictor import LEVEL, ProteinPrediction
from cytoray.tasks.multiomic.reading import PREDICTED, read_paired, read_rna

JOINT = "X_joint"


def write_prediction(model: ProteinModel, data: str, out: Path) -> ProteinPrediction:
    """Predict the proteins of a file of cells and write a copy of it, as h5ad, with ``obsm["X_protein_predicted"]``.

    ``uns["X_protein_predicted_names"]`` names its columns, ``uns["protein_prediction"]`` has the held-out correlation
    of each protein and the half-width of its interval. A file in another format than h5ad gives RNA and obs names
    only. Raises ConflictError if ``out`` exists.
    """
    _refuse_existing(out)
    cells = read_rna(data)
    found = model.predict_rna(cells)
    adata = _open(data)
    if adata is None:
        var = pd.DataFrame(index=list(cells.genes))
        adata = anndata.AnnData(cells.rna.values, obs=pd.DataFrame(index=list(cells.names)), var=var)
    adata.obsm[PREDICTED] = found.values.astype(np.float32)
    adata.uns[f"{PREDICTED}_names"] = np.array(found.names, dtype=object)
    adata.uns["protein_prediction"] = {
        "confidence": found.confidence,
        "half_width": found.half_width,
        "level": LEVEL,
        "warnings": np.array(found.warnings, dtype=object),
    }
    _write(adata, out)
    return found


def write_joint(data: str, out: Path, *, protein_key: str | None = None, seed: int = 0) -> tuple[int, int]:
    """Write the cells of a CITE-seq file, as h5ad, with ``obsm["X_joint"]``; returns its shape.

    Cells without a count of any protein are left out.
    """
    _refuse_existing(out)
    cells = read_paired(data, protein_key=protein_key)
    embedding = joint_embedding(cells, seed=seed)
    adata = _open(data)
    if adata is None or adata.n_obs != cells.num_cells:
        var = pd.DataFrame(index=list(cells.genes))
        adata = anndata.AnnData(cells.rna.values, obs=pd.DataFrame(index=list(cells.names)), var=var)
    adata.obsm[JOINT] = embedding
    _write(adata, out)
    return int(embedding.shape[0]), int(embedding.shape[1])


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise ConflictError(f"{out} already exists.", remedy="Choose another file.")


def _open(data: str) -> anndata.AnnData | None:
    """The whole of a local h5ad; None for files in other formats."""
    if storage.is_remote(data) or not data.endswith(".h5ad"):
        return None
    return anndata.read_h5ad(storage.local_path(data))


def _write(adata: anndata.AnnData, out: Path) -> None:
    """Write a file, whole or not at all."""
    with draft_of(out) as draft:
        adata.write_h5ad(draft)
