"""Small CITE-seq data in which hidden programs drive RNA and proteins."""

from __future__ import annotations

from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

NUM_GENES, NUM_CELLS = 60, 80
PROTEINS = ("CD3", "CD4", "CD19", "CD14", "CD56")
GENES = ("CD3E", "CD4", "CD19", "CD14", "NCAM1", *(f"GENE{number}" for number in range(NUM_GENES - 5)))


def draw_cells(num_cells: int = NUM_CELLS, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """RNA (C, G) and proteins (C, 5) that follow four hidden programs, and the strongest program of each cell."""
    loadings = np.random.default_rng(7).gamma(0.7, 1.0, (4, NUM_GENES))
    loadings[:, :5] = [[4, 4, 0, 0, 0], [4, 0, 0, 0, 5], [0, 0, 6, 0, 0], [0, 1, 0, 6, 0]]
    rng = np.random.default_rng(seed)
    programs = rng.dirichlet(np.full(4, 0.4), num_cells)
    rna = rng.poisson(programs @ loadings * 3)
    proteins = rng.poisson(10 + programs @ loadings[:, :5] * 60)
    return rna.astype(np.float32), proteins.astype(np.float32), programs.argmax(axis=1)


def build(num_cells: int = NUM_CELLS, *, seed: int = 0, **columns: Any) -> anndata.AnnData:
    rna, proteins, kinds = draw_cells(num_cells, seed=seed)
    names = [f"c{row}" for row in range(num_cells)]
    obs = pd.DataFrame({"cell_type": np.array(["T", "NK", "B", "Mono"])[kinds], **columns}, index=names)
    adata = anndata.AnnData(sparse.csr_matrix(rna), obs=obs, var=pd.DataFrame(index=list(GENES)))
    adata.obsm["protein_counts"] = pd.DataFrame(proteins, index=names, columns=list(PROTEINS))
    return adata
