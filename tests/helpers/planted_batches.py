"""Counts of planted cell types in several batches, whose genes are captured differently."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from cytoray.tokens.vocabulary import GeneVocabulary

NUM_GENES, NUM_TYPES = 240, 4
TYPES = ("B", "CD14 Mono", "CD4 T", "NK")


def planted(
    sizes: Sequence[int] = (70, 60, 50), *, seed: int = 0, first_batch: int = 0, strength: float = 0.6, **columns: Any
) -> anndata.AnnData:
    """Draw cells of four types; batch n has the same effect on genes in every call."""
    rates = np.random.default_rng(7).gamma(0.6, 1.0, NUM_GENES) * np.ones((NUM_TYPES, 1))
    for kind in range(NUM_TYPES):
        rates[kind, 30 * kind : 30 * kind + 30] *= 6
    rng = np.random.default_rng(seed)
    kinds = rng.choice(NUM_TYPES, sum(sizes), p=[0.4, 0.3, 0.2, 0.1])
    numbers = np.repeat(np.arange(first_batch, first_batch + len(sizes)), sizes)
    effects = np.stack([np.exp(np.random.default_rng(100 + n).normal(0, strength, NUM_GENES)) for n in range(20)])
    depths = rng.uniform(0.5, 1.5, (len(kinds), 1))
    counts = rng.poisson(rates[kinds] * effects[numbers] * depths).astype(np.float32)
    obs = {"batch": [f"batch {n}" for n in numbers], "cell_type": np.array(TYPES)[kinds], **columns}
    names = [f"c{seed}-{n}" for n in range(len(kinds))]
    genes = list(GeneVocabulary.load_default().tokens[1000 : 1000 + NUM_GENES])
    return anndata.AnnData(sparse.csr_matrix(counts), obs=pd.DataFrame(obs, index=names), var=pd.DataFrame(index=genes))


def write(folder: Path, adata: anndata.AnnData, name: str = "cells.h5ad") -> Path:
    """Write a file of cells."""
    adata.write_h5ad(folder / name)
    return folder / name
