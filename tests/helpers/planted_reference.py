"""A tiny model, cells of three types planted in its genes, and a reference of them."""

from __future__ import annotations

from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import torch
from scipy import sparse

from cytoray.evaluation.voters import Expression
from cytoray.model.bundle import ModelBundle, compute_weights_digest
from cytoray.model.config import ModelConfig
from cytoray.model.predictor import CellPredictor
from cytoray.model.transformer import ScGPT
from cytoray.tasks.mapping.building import build_reference
from cytoray.tasks.mapping.inputs import MapCells
from cytoray.tasks.mapping.querying import embed_with
from cytoray.tasks.mapping.reference import Reference
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary

NUM_GENES = 60
TYPES = ("B", "Mono", "NK")
GENES = tuple(GeneVocabulary.load_default().tokens[1000 : 1000 + NUM_GENES])


def build_bundle(*, seed: int = 0, labels: tuple[str, ...] = (), genes: tuple[str, ...] = GENES) -> ModelBundle:
    """A model of random weights, by default over sixty real genes."""
    vocabulary = GeneVocabulary(genes)
    config = ModelConfig(
        vocabulary_size=vocabulary.size,
        width=8,
        num_heads=2,
        feedforward_width=8,
        num_layers=1,
        dropout=0.0,
        num_labels=len(labels),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ScGPT(config, pad_id=vocabulary.pad_id).eval()
    return ModelBundle(model, vocabulary, TokenizerConfig(max_length=64), labels)


def draw_counts(num_cells: int, *, seed: int) -> tuple[sparse.csr_matrix, list[str]]:
    """Counts (C, G) of three types that differ in ten genes each, and the types."""
    rates = np.random.default_rng(7).gamma(0.8, 1.0, NUM_GENES) * np.ones((3, 1))
    for kind in range(3):
        rates[kind, 10 * kind : 10 * kind + 10] *= 6
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 3, num_cells)
    counts = rng.poisson(rates[kinds] * rng.uniform(0.7, 1.4, (num_cells, 1))).astype(np.float32)
    return sparse.csr_matrix(counts), [TYPES[kind] for kind in kinds]


def as_anndata(num_cells: int, *, seed: int) -> tuple[anndata.AnnData, list[str]]:
    """The same as an AnnData."""
    counts, types = draw_counts(num_cells, seed=seed)
    obs = pd.DataFrame(index=[f"cell{row}" for row in range(num_cells)])
    return anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=list(GENES))), types


def build_planted(bundle: ModelBundle, *, embeddings: bool = False) -> Reference:
    """A reference of 90 cells over the bundle's vocabulary, with places on a map; by embeddings if asked for."""
    counts, types = draw_counts(90, seed=1)
    values = sparse.csr_matrix((counts.data, counts.indices, counts.indptr), (90, bundle.vocabulary.size))
    measured = np.zeros(bundle.vocabulary.size, bool)
    measured[:NUM_GENES] = True
    names = tuple(f"r{row}" for row in range(90))
    batches = tuple("odd" if row % 2 else "even" for row in range(90))
    cells = MapCells(Expression(values), names, tuple(types), ("atlas.h5ad",) * 90, batches, measured)
    made_by = {"uri": "planted", "digest": "d" * 64, "weights": compute_weights_digest(bundle)}
    about = {"model": made_by if embeddings else None, "vocabulary": bundle.vocabulary.digest(), "sources": []}
    found = build_reference(
        cells,
        embed=embed_with(CellPredictor(bundle, empty_cells="nan").predict) if embeddings else None,
        about=about,
        space="embeddings" if embeddings else "components",
        with_map=False,
    )
    places = np.random.default_rng(0).normal(size=(90, 2))
    return replace(found, meta=found.meta.assign(x=places[:, 0], y=places[:, 1]))
