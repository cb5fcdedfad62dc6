"""Small cells in which known transcription factors drive known targets, and a table of these edges."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

FACTORS = ("IRF1", "SPI1", "PAX5", "GATA3", "TBX21", "STAT1")
TARGETS = tuple(f"TARGET{number}" for number in range(54))
GENES = (*FACTORS, *TARGETS)
EDGES = {tf: TARGETS[9 * row : 9 * row + 9] for row, tf in enumerate(FACTORS)}  # the last of each is repressed


def build(num_cells: int = 300, *, seed: int = 0, broken: str | None = None) -> anndata.AnnData:
    """Cells of counts; a factor's targets follow it, but not in cells of group B those of the factor ``broken``."""
    rng = np.random.default_rng(seed)
    driven = rng.normal(0, 1, (num_cells, len(FACTORS)))
    is_b = np.arange(num_cells) % 2 == 1
    rates = np.full((num_cells, len(GENES)), 1.0)
    for row, (tf, targets) in enumerate(EDGES.items()):
        own = np.where(is_b, rng.normal(0, 1, num_cells), driven[:, row]) if tf == broken else driven[:, row]
        rates[:, row] = np.exp(driven[:, row] + 0.5)
        for place, target in enumerate(targets):
            rates[:, GENES.index(target)] = np.exp((-1 if place == 8 else 1) * own + 0.3)
    depth = rng.lognormal(0, 0.5, num_cells)
    counts = rng.poisson(rates * depth[:, None] * 2).astype(np.float32)
    obs = pd.DataFrame(
        {"cell_type": np.where(is_b, "B", "A")}, index=[f"cell{row}" for row in range(num_cells)]
    )  # fmt: skip
    return anndata.AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=list(GENES)))


def write_truth(path: Path, *, factors: tuple[str, ...] = FACTORS) -> Path:
    """A table of the planted edges of some factors, as DoRothEA's: half of the confidence A, with modes."""
    rows = [
        (tf, "A" if place % 2 else "B", target, -1.0 if place == 8 else 1.0)
        for tf in factors
        for place, target in enumerate(EDGES[tf])
    ]
    table = pd.DataFrame([*rows, ("IRF1", "E", "TARGET50", 1.0)], columns=["tf", "confidence", "target", "mor"])
    table.to_csv(path, sep="\t", index=False)
    return path
