"""Embeddings of a transformer as further inputs of protein prediction."""

# C cells, D dimensions

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cytoray.corpus.config import SourceConfig
from cytoray.corpus.reading import read_cells
from cytoray.model.predictor import CellPredictor
from cytoray.registry.opening import open_model
from cytoray.tasks.multiomic.assess_config import AssessMultiomicConfig
from cytoray.tasks.multiomic.paired import PairedCells


def with_embeddings(cells: PairedCells, config: AssessMultiomicConfig) -> PairedCells:
    """Return the cells with their embeddings by the model that ``config`` names.

    Cells without a gene that the model knows have the mean embedding of the others.
    """
    assert config.model is not None
    opened = open_model(config.model, store=config.store, tracking=config.tracking)
    bundle = opened.bundle
    named = read_cells(SourceConfig(uri=cells.uri), vocabulary=bundle.vocabulary, keep_empty=True)
    place = {name: row for row, name in enumerate(named.names)}
    rows = np.array([place[name] for name in cells.names], np.int64)
    found = CellPredictor(bundle, empty_cells="nan").predict(named.cells.take(rows)).embeddings
    is_empty = ~np.isfinite(found).all(axis=1)
    if is_empty.all():
        return cells
    found[is_empty] = found[~is_empty].mean(axis=0)
    return replace(cells, embeddings=found)
