"""Annotate an AnnData in this process: ``cytoray.annotate(adata, model="run:finetune", store="…")``."""

# C cells, K labels

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytoray.api.config import scGPTConfig
from cytoray.api.model import scGPT
from cytoray.errors import ConfigError, ModelError
from cytoray.model.bundle import ModelBundle
from cytoray.tasks.annotation.answers import common_ancestors, status_of
from cytoray.tasks.annotation.product import build_predictor
from cytoray.tasks.assessing import MODEL_VARIABLE, default_model

if TYPE_CHECKING:
    import anndata


def annotate(
    adata: anndata.AnnData,
    *,
    model: ModelBundle | str | Path | None = None,
    store: str | Path | None = None,
    tracking_uri: str | None = None,
) -> pd.DataFrame:
    """Label the cells of an AnnData; write columns of obs, and return the probability of each label.

    Args:
        adata: C cells with raw counts, or any values that are not negative; only obs changes.
        model: A bundle, its folder or s3:// URI, run:NAME (of ``store``) or models:/NAME@ALIAS (of ``tracking_uri``).
            Default: $CYTORAY_MODEL.
        store: Root of all data of cytoray.
        tracking_uri: MLflow.

    Returns:
        Probabilities (C, K) by cell and label; NaN for a cell without a gene that the model knows.
        obs gets ``cytoray_label`` and ``cytoray_probability``. If the model carries an annotator also
        ``cytoray_status`` (assigned, ambiguous, unassigned), ``cytoray_fitting`` (labels that fit, separated by " | ")
        and ``cytoray_unseen_p``, as `/v1/annotate` answers them; ``cytoray_common_ancestor`` if it has a label tree.

    Raises:
        ConfigError: No model is named, and there is no default.
        ModelError: The model does not label cells, or knows none of the genes.
        CorpusError: Values that are no expression.
    """
    if model is None and (model := default_model()) is None:
        raise ConfigError("No model is named.", remedy=f"Give model=…, or set {MODEL_VARIABLE} to the URI of a model.")
    config = scGPTConfig(store=store, tracking_uri=tracking_uri, empty_cells="nan")
    if isinstance(model, ModelBundle):
        opened = scGPT.from_bundle(model, configurer=config)
    else:
        opened = scGPT(config.model_copy(update={"model": model}))
    if not opened.bundle.classes:
        raise ModelError("This model does not label cells.", remedy="Use one that was fine-tuned for annotation.")
    cells = opened.process_data(adata, use_raw_counts=False).cells
    found = build_predictor(opened.bundle, empty_cells="nan").predict(cells)
    assert found.probabilities is not None, "a model with labels gives probabilities"
    empty = np.isnan(found.embeddings[:, 0])
    best = np.nan_to_num(found.probabilities, nan=-1).argmax(axis=1)
    adata.obs["cytoray_label"] = _texts([found.labels[column] for column in best], empty)
    adata.obs["cytoray_probability"] = found.probabilities[np.arange(len(best)), best]
    if found.doubts is not None:
        fitting = [[found.labels[column] for column in np.flatnonzero(row)] for row in found.doubts.in_set]
        status = [status_of(len(row), p) for row, p in zip(fitting, found.doubts.unseen_p.tolist(), strict=True)]
        adata.obs["cytoray_status"] = _texts(status, empty)
        adata.obs["cytoray_fitting"] = _texts([" | ".join(row) for row in fitting], empty)
        if found.tree is not None:
            adata.obs["cytoray_common_ancestor"] = _texts(common_ancestors(found.tree, fitting), empty)
        adata.obs["cytoray_unseen_p"] = found.doubts.unseen_p
    return pd.DataFrame(found.probabilities, index=adata.obs_names, columns=list(found.labels))


def _texts(values: Sequence[str | None], empty: npt.NDArray[np.bool_]) -> list[str | None]:
    """The values, None for cells without an answer."""
    return [None if skipped else value for value, skipped in zip(values, empty.tolist(), strict=True)]
