"""Embed cells of several batches by the transformer that an assessment names."""

# C cells, W width of the model

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cytoray.registry.opening import open_model
from cytoray.tasks.integration.assess_config import AssessIntegrationConfig
from cytoray.tasks.integration.cells import BatchedCells
from cytoray.tasks.integration.embedding import BatchedEmbedder

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class EmbeddedCells:
    """Embeddings of cells, and the model that they come from."""

    embeddings: Float32  # (C, W) of length 1, zero for a cell without a gene of the model
    digest: str


def embed_cells(cells: BatchedCells, config: AssessIntegrationConfig) -> EmbeddedCells:
    """Embed the cells by the model that ``config`` names.

    Raises CorpusError if it knows none of their genes, or was fine-tuned on other batches.
    """
    assert config.model is not None, "no model is named"
    opened = open_model(config.model, store=config.store, tracking=config.tracking, cache_folder=config.cache_folder)
    return EmbeddedCells(BatchedEmbedder(opened.bundle, config.model).embed(cells), opened.digest)
