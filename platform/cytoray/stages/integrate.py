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
from cytoray.model.bundle import ModelBundle
from cytoray.registry.opening import open_model
from cytoray.tasks.integration.cells import BatchedCells, check_batches
from cytoray.tasks.integration.choosing import num_recipes
from cytoray.tasks.integration.embedding import BatchedEmbedder
from cytoray.tasks.integration.model import IntegrationModel
from cytoray.tasks.integration.reading import read_from

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


@dataclass(frozen=True, eq=False)
class Using:
    """Means to integrate cells: a fitted integration, a transformer, both or none."""

    model: IntegrationModel | None = None
    embedder: BatchedEmbedder | None = None


def open_embedder(uri: str | None, *, store: str | None = None) -> BatchedEmbedder | None:
    """Open the transformer that ``uri`` names; None without one. Raises as ``open_model``."""
    return None if uri is None else BatchedEmbedder(open_model(uri, store=store).bundle, uri)


def _with_transformer(model: IntegrationModel, embedder: BatchedEmbedder | None) -> IntegrationModel:
    """Give a fitted integration the transformer that it was fitted with: the one given, or that at its old place."""
    if model.made_with is None or (model.embedder is not None and embedder is None):
        return model
    found = embedder or open_embedder(model.made_with.uri)
    assert found is not None, "the URI that it was fitted with"
    return model.using(found.bundle, found.uri)


def integrate(
    adata: anndata.AnnData,
    *,
    batch_key: str = "batch",
    model: IntegrationModel | str | Path | None = None,
    transformer: ModelBundle | str | None = None,
    seed: int = 0,
) -> IntegrationModel:
    """Integrate the batches of an AnnData; write ``obsm["X_cytoray"]``, and return the model.

    Args:
        adata: Cells with raw counts (or log-normalised expression) in X, raw.X or a layer; only obsm and uns change.
        batch_key: Column of obs with the batches. Cells without one, or without counts, have NaN in the embedding.
        model: A fitted integration or its folder: cells are embedded beside those it was fitted on. Without it, a
            model is fitted, whose method is chosen without cell types.
        transformer: A bundle, or the URI of one, perhaps fine-tuned for integration: its embeddings beside expression
            are one more candidate. For a fitted integration that uses one, the same, if it is no longer where it was.
        seed: Seed of samples.

    Returns:
        The model: ``save`` keeps it, ``transform`` embeds further cells.

    Raises:
        CorpusError: Cells of one batch, a missing column, values that are no expression, or too few cells.
        ModelError: A transformer that does not fit the integration, or the cells.
    """
    using = Using(
        IntegrationModel.load(Path(model)) if isinstance(model, str | Path) else model,
        BatchedEmbedder(transformer, "the bundle")
        if isinstance(transformer, ModelBundle)
        else open_embedder(transformer),
    )
    with open_cells(adata, matrix="auto", gene_names="index") as reader:
        found = integrate_source(reader, batch_key=batch_key, using=using, seed=seed)
    adata.obsm[OBSM_KEY] = found.embedding
    adata.uns[UNS_KEY] = found.summary(batch_key)
    return found.model


def integrate_file(data: str, out: Path, *, batch_key: str, using: Using, seed: int = 0) -> Integrated:
    """Integrate the batches of a file, and write its cells with ``obsm["X_cytoray"]`` as h5ad, whole or not at all.

    An h5ad file keeps all that it holds; of other formats the matrix, obs and the names of the genes are written.
    """
    if not storage.is_remote(data) and storage.local_path(data).resolve() == out.expanduser().resolve():
        raise ConfigError(f"{out} is the file of cells itself.", remedy="Name another file with --out.")
    with open_cells(data, matrix="auto", gene_names="index") as reader:
        found = integrate_source(reader, batch_key=batch_key, using=using, seed=seed)
        whole = _is_local_h5ad(reader, data)
        adata = None if whole else _as_anndata(reader)
    if adata is None:
        adata = anndata.read_h5ad(storage.local_path(data))
    adata.obsm[OBSM_KEY] = found.embedding
    adata.uns[UNS_KEY] = found.summary(batch_key)
    _write_whole(adata, out.expanduser())
    return found


def integrate_source(reader: CellReader, *, batch_key: str, using: Using, seed: int = 0) -> Integrated:
    """Fit the cells of an open source, or embed them by the fitted integration."""
    cells = read_from(reader, batch_key)
    num_cells = reader.describe().num_cells
    if using.model is None:
        for warning in check_batches(cells, batch_key):
            logger.warning(warning)
        with progress.stage(
            "integrate", total=num_recipes(has_model=using.embedder is not None), unit="methods"
        ) as advance:
            model = IntegrationModel.fit(cells, embedder=using.embedder, seed=seed, advance=advance)
        points = model.embed_fitted(cells, seed=seed)
    else:
        model = _with_transformer(using.model, using.embedder)
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
