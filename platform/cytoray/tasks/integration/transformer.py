"""Embed cells of several batches by a transformer: any model, or one that was fine-tuned for integration."""

# C cells, B cells of one minibatch, W width of the model

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from cytoray.errors import CorpusError, ModelError
from cytoray.model.bundle import ModelBundle
from cytoray.model.predictor import CellPredictor
from cytoray.registry.opening import open_model
from cytoray.tasks.integration.assess_config import AssessIntegrationConfig
from cytoray.tasks.integration.cells import BatchedCells
from cytoray.tokens.collator import collate_cells
from cytoray.tokens.keys import cell_id
from cytoray.tokens.packed import PackedCells, pack_rows
from cytoray.tokens.tokenizer import CellTokenizer

Float32 = npt.NDArray[np.float32]
CELLS_AT_A_TIME = 32


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
    bundle = opened.bundle
    ids = bundle.vocabulary.map_genes(list(cells.genes)).ids
    packed = pack_rows(cells.values, ids, cell_id("", list(cells.names)), counts=cells.are_counts)
    if not packed.num_genes_per_cell.any():
        raise CorpusError(
            f"{cells.uri}: {config.model} knows none of the genes.",
            remedy="Name genes by symbols or Ensembl ids in the index of var, or leave the model out.",
        )
    if bundle.model.config.needed_to_embed:
        return EmbeddedCells(embed_by_batch(bundle, packed, cells), opened.digest)
    found = CellPredictor(bundle, empty_cells="nan").predict(packed).embeddings
    return EmbeddedCells(np.nan_to_num(found), opened.digest)


def embed_by_batch(bundle: ModelBundle, packed: PackedCells, cells: BatchedCells) -> Float32:
    """Embed cells (C, W) by a model that was fine-tuned on their batches: panel with zeros, and batch labels."""
    codes = _batch_codes(bundle, cells)
    conditions = bundle.conditions
    assert conditions is not None, "a model of batches has conditions"
    assert conditions.panel is not None, "a model of integration has a panel"
    panel = tuple(bundle.vocabulary.index[gene] for gene in conditions.panel)
    tokenizer = CellTokenizer(bundle.vocabulary, bundle.tokenizer_config, panel=panel)
    packed = tokenizer.restrict(packed)
    identities = tokenizer.identities(packed)
    model = bundle.model.eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, packed.num_cells, CELLS_AT_A_TIME):
            rows = np.arange(start, min(start + CELLS_AT_A_TIME, packed.num_cells))
            batch = collate_cells(tokenizer, packed, rows, identities=identities)
            labelled = replace(batch, batch_labels=torch.from_numpy(codes[rows])).to(model.device)
            parts.append(F.normalize(model.embed(labelled).float(), dim=-1).cpu().numpy())
    return np.concatenate(parts)


def _batch_codes(bundle: ModelBundle, cells: BatchedCells) -> npt.NDArray[np.int64]:
    """Return each cell's batch (C,) by the codes of the model."""
    conditions = bundle.conditions
    if conditions is None or conditions.task != "integration" or len(conditions.columns) != 1:
        needed = " and ".join(bundle.model.config.needed_conditions)
        raise ModelError(
            f"The model needs {needed} for each cell, which integration cannot give.",
            remedy="Use a model of genes and values, or one that was fine-tuned for integration.",
        )
    ((column, names),) = conditions.columns.items()
    numbers = {name: number for number, name in enumerate(names)}
    if unknown := sorted(set(cells.batches) - set(names)):
        raise CorpusError(
            f"The model was fine-tuned on other batches ({column}): it does not know {', '.join(unknown[:5])}.",
            remedy="Fine-tune a model on these batches, or use a model that needs none.",
        )
    return np.array([numbers[name] for name in cells.batches], np.int64)
