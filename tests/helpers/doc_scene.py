"""The files that pages of docs/ name, but small: cells with types and donors, proteins, a bundle with labels."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from cytoray.model.bundle import ModelBundle, save_bundle
from cytoray.model.config import ModelConfig
from cytoray.model.transformer import ScGPT
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary

TYPES, DONORS = ("B", "CD14+ Mono", "CD4 T"), ("ada", "ben", "cem")
NUM_CELLS, NUM_GENES, NUM_MARKERS, NUM_PROTEINS = 240, 300, 40, 6
GENES = ("CD3D", "CD3E", "IL7R", "LYZ", "IRF1", "JAK2")  # those that pages name, first


def genes() -> list[str]:
    """Symbols of genes of the default vocabulary, those that pages name among them."""
    tokens = [token for token in GeneVocabulary.load_default().tokens if token.isalnum() and token not in GENES]
    return [*GENES, *tokens[: NUM_GENES - len(GENES)]]


def make_cells(*, seed: int = 0, num_cells: int = NUM_CELLS) -> anndata.AnnData:
    """Counts of three types with markers of their own, from three donors of different depth."""
    random = np.random.default_rng(seed)
    types, donors = np.arange(num_cells) % len(TYPES), np.arange(num_cells) // len(TYPES) % len(DONORS)
    rates = np.full((num_cells, NUM_GENES), 0.6)
    for kind in range(len(TYPES)):
        first = kind * NUM_MARKERS
        rates[types == kind, first : first + NUM_MARKERS] = 4.0
    rates *= (1 + 0.4 * donors)[:, None] * np.random.default_rng(99).gamma(2, 0.5, NUM_GENES)
    obs = pd.DataFrame(
        {name: np.array(names)[places] for name, names, places in _columns(types, donors)},
        index=[f"s{seed}c{row}" for row in range(num_cells)],
    )
    counts = sp.csr_matrix(random.poisson(rates).astype(np.float32))
    return anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=genes()))


def _columns(types: np.ndarray, donors: np.ndarray) -> tuple[tuple[str, tuple[str, ...], np.ndarray], ...]:
    return (("cell_type", TYPES, types), ("donor", DONORS, donors), ("batch", DONORS, donors))


def with_proteins(adata: anndata.AnnData, *, seed: int) -> anndata.AnnData:
    """Add counts of proteins that follow from the type."""
    random = np.random.default_rng(seed)
    types = pd.Categorical(adata.obs["cell_type"], categories=TYPES).codes
    levels = np.random.default_rng(5).uniform(1, 60, (len(TYPES), NUM_PROTEINS))[types]
    names = [f"CD{number}" for number in range(1, NUM_PROTEINS + 1)]
    adata.obsm["protein_counts"] = pd.DataFrame(random.poisson(levels), index=adata.obs_names, columns=names)
    return adata


def make_bundle() -> ModelBundle:
    """A model of random weights over the default vocabulary that labels the types."""
    torch.manual_seed(0)
    vocabulary = GeneVocabulary.load_default()
    shape = ModelConfig(
        vocabulary_size=vocabulary.size,
        width=16,
        num_heads=2,
        feedforward_width=16,
        num_layers=1,
        num_labels=len(TYPES),
    )
    model = ScGPT(shape, pad_id=vocabulary.pad_id).eval()
    return ModelBundle(model, vocabulary, TokenizerConfig(max_length=200), TYPES)


def write_files(folder: Path) -> None:
    """Write every file that the pages name."""
    for seed, name in enumerate(("cells", "labelled", "new", "atlas", "reference", "query", "more")):
        make_cells(seed=seed).write_h5ad(folder / f"{name}.h5ad")
    for seed, name in enumerate(("cite", "other")):
        with_proteins(make_cells(seed=20 + seed), seed=seed).write_h5ad(folder / f"{name}.h5ad")
    for name in ("labelled", "cells"):
        (folder / name).mkdir()
        make_cells(seed=40).write_h5ad(folder / name / "part.h5ad")
    pairs = [(tf, target, 1, "A") for tf in ("IRF1", "JAK2") for target in genes()[6:14]]
    pd.DataFrame(pairs, columns=["tf", "target", "mor", "confidence"]).to_csv(
        folder / "known.tsv", sep="\t", index=False
    )
    save_bundle(make_bundle(), folder / "bundle")
