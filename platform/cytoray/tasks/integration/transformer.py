"""Embed cells of several batches by a transformer that is named by its URI."""

# C cells, W width of the model

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cytoray.errors import CorpusError
from cytoray.model.predictor import CellPredictor
from cytoray.registry.opening import open_model
from cytoray.tasks.integration.assess_config import AssessIntegrationConfig
from cytoray.tasks.integration.cells import BatchedCells
from cytoray.tokens.keys import cell_id
from cytoray.tokens.packed import pack_rows

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class EmbeddedCells:
    """Embeddings of cells, and the model that they come from."""

    embeddings: Float32  # (C, W), zero for a cell without a gene of the model
    digest: str


def embed_cells(cells: BatchedCells, config: AssessIntegrationConfig) -> EmbeddedCells:
    """Embed the cells by the model that ``config`` names; raises CorpusError if it knows none of their genes."""
    assert config.model is not None, "no model is named"
    opened = open_model(config.model, store=config.store, tracking=config.tracking, cache_folder=config.cache_folder)
    ids = opened.bundle.vocabulary.map_genes(list(cells.genes)).ids
    packed = pack_rows(cells.values, ids, cell_id("", list(cells.names)), counts=cells.are_counts)
    if not packed.num_genes_per_cell.any():
        raise CorpusError(
            f"{cells.uri}: {config.model} knows none of the genes.",
            remedy="Name genes by symbols or Ensembl ids in the index of var, or leave --model out.",
        )
    found = CellPredictor(opened.bundle, empty_cells="nan").predict(packed).embeddings
    return EmbeddedCells(np.nan_to_num(found), opened.digest)
