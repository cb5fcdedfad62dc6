"""Integrate the batches of an AnnData or of a file, and embed further cells by an integration that was kept."""

# C cells, E dimensions of the embedding

from __future__ import annotations

import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import numpy.typing as npt
import pandas as pd

from cytoray import progress, storage
from cytoray.api.sources import open_cells
from cytoray.errors import ConfigError
from cytoray.tasks.integration.cells import BatchedCells, check_batches, read_from
from cytoray.tasks.integration.choosing import num_recipes
from cytoray.tasks.integration.model import IntegrationModel

if TYPE_CHECKING:
    from cytoray.corpus.readers.base import CellReader

logger = logging.getLogger(__name__)
OBSM_KEY = "X_cytoray"
UNS_KEY = "cytoray_integration"


@dataclass(frozen=True, eq=False)
class Integrated:
    """All C cells of a source, NaN for those without a batch or counts, and the model that embedded them."""

    embedding: npt.NDArray[np.float32]  # (C, E)
    model: IntegrationModel
    num_embedded: int

    def summary(self, batch_key: str) -> dict[str, Any]:
        """Return what is kept of the integration beside the embedding, as plain values."""
        return {"batch_key": batch_key, "recipe": self.model.recipe.name, "why": self.model.why}


def integrate(
    adata: anndata.AnnData,
    *,
    batch_key: str = "batch",
    model: IntegrationModel | str | Path | None = None,
    seed: int = 0,
) -> IntegrationModel:
    """Integrate the batches of an AnnData; write ``obsm["X_cytoray"]``, and return the model.

    Args:
        adata: Cells with raw counts (or log-normalised expression) in X, raw.X or a layer; only obsm and uns change.
        batch_key: Column of obs with the batches. Cells without one, or without counts, have NaN in the embedding.
        model: A fitted integration or its folder: cells are embedded beside those it was fitted on. Without it, a
            model is fitted, whose method is chosen without cell types.
        seed: Seed of samples.

    Returns:
        The model: ``save`` keeps it, ``transform`` embeds further cells.

    Raises:
        CorpusError: Cells of one batch, a missing column, values that are no expression, or too few cells.
    """
    if isinstance(model, str | Path):
        model = IntegrationModel.load(Path(model))
    with open_cells(adata, matrix="auto", gene_names="index") as reader:
        found = integrate_source(reader, batch_key=batch_key, model=model, seed=seed)
    adata.obsm[OBSM_KEY] = found.embedding
    adata.uns[UNS_KEY] = found.summary(batch_key)
    return found.model


def integrate_file(data: str, out: Path, *, batch_key: str, model: Path | None = None, seed: int = 0) -> Integrated:
    """Integrate the batches of a file, and write its cells with ``obsm["X_cytoray"]`` as h5ad, whole or not at all.

    An h5ad file keeps all that it holds; of other formats the matrix, obs and the names of the genes are written.
    """
    if not storage.is_remote(data) and storage.local_path(data).resolve() == out.expanduser().resolve():
        raise ConfigError(f"{out} is the file of cells itself.", remedy="Name another file with --out.")
    fitted = None if model is None else IntegrationModel.load(model)
    with open_cells(data, matrix="auto", gene_names="index") as reader:
        found = integrate_source(reader, batch_key=batch_key, model=fitted, seed=seed)
        whole = _is_local_h5ad(reader, data)
        adata = None if whole else _as_anndata(reader)
    if adata is None:
        adata = anndata.read_h5ad(storage.local_path(data))
    adata.obsm[OBSM_KEY] = found.embedding
    adata.uns[UNS_KEY] = found.summary(batch_key)
    _write_whole(adata, out.expanduser())
    return found


def integrate_source(
    reader: CellReader, *, batch_key: str, model: IntegrationModel | None = None, seed: int = 0
) -> Integrated:
    """Fit the cells of an open source, or embed them by ``model``."""
    cells = read_from(reader, batch_key)
    num_cells = reader.describe().num_cells
    if model is None:
        for warning in check_batches(cells, batch_key):
            logger.warning(warning)
        with progress.stage("integrate", total=num_recipes(has_model=False), unit="methods") as advance:
            model = IntegrationModel.fit(cells, seed=seed, advance=advance)
        points = model.embed_fitted(cells, seed=seed)
    else:
        points = model.transform(cells)
    embedding = np.full((num_cells, points.shape[1]), np.nan, np.float32)
    embedding[_rows(cells)] = points
    return Integrated(embedding, model, len(points))


def _rows(cells: BatchedCells) -> npt.NDArray[np.int64]:
    assert cells.rows is not None, "cells that were read know their rows"
    return cells.rows


def _is_local_h5ad(reader: CellReader, data: str) -> bool:
    return reader.describe().format == "h5ad" and not storage.is_remote(data) and storage.local_path(data).is_file()


def _as_anndata(reader: CellReader) -> anndata.AnnData:
    matrix = reader.read_rows(0, reader.describe().num_cells)
    return anndata.AnnData(matrix, obs=reader.obs.copy(), var=pd.DataFrame(index=pd.Index(reader.gene_names)))


def _write_whole(adata: anndata.AnnData, out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".cytoray-", dir=out.parent) as scratch:
            adata.write_h5ad(Path(scratch) / "cells.h5ad")
            os.replace(Path(scratch) / "cells.h5ad", out)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}.", remedy="Name another file.") from error
