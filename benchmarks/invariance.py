"""Embeddings do not depend on company, order or number type: ``python benchmarks/invariance.py FILE.h5ad``.

Through the Python face, a 12-layer model of random weights, 96 cells of FILE: minibatches of 1, 7 and 64 cells, cells
shuffled, genes shuffled, counts as another type. Prints the largest change of any number of any embedding.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import anndata
import numpy as np
import torch

from benchmarks import common, models
from cytoray.api import scGPT, scGPTConfig

NUM_CELLS = 16 if common.QUICK else 96


def main() -> int:
    """Print one JSON line for each pooling; 1 if a change is beyond the goal."""
    if len(sys.argv) != 2:
        print("usage: python benchmarks/invariance.py FILE.h5ad", file=sys.stderr)
        return 2
    torch.set_num_threads(2)
    data = anndata.read_h5ad(sys.argv[1])
    rng = np.random.default_rng(0)
    data = data[np.sort(rng.choice(data.n_obs, min(NUM_CELLS, data.n_obs), replace=False))].copy()
    bundle, _ = models.build_models()
    met = True
    for mode in ("cls", "cell"):
        changes = _changes(bundle, data, mode, rng)
        settings = {"file": Path(sys.argv[1]).name, "cells": data.n_obs, "emb_mode": mode, **models.SIZES}
        claim = common.report("invariance", value=max(changes.values()), settings=settings | {"changes": changes})
        met = met and bool(claim.met)
    return 0 if met else 1


def _changes(bundle: object, data: anndata.AnnData, mode: str, rng: np.random.Generator) -> dict[str, float]:
    """The largest change by what was done to the cells."""

    def embed(cells: anndata.AnnData, *, batch_size: int = 64) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of cells without genes, by name
            face = scGPT.from_bundle(bundle, configurer=scGPTConfig(batch_size=batch_size, emb_mode=mode))
            return face.get_embeddings(face.process_data(cells))

    base = embed(data)
    cells, genes = rng.permutation(data.n_obs), rng.permutation(data.n_vars)
    other = data.copy()
    other.X = other.X.astype(np.int32)
    changed = {f"batch_size={size}": embed(data, batch_size=size) for size in (1, 7)}
    changed["shuffled cells"] = embed(data[cells].copy())[np.argsort(cells)]
    changed["shuffled genes"] = embed(data[:, genes].copy())
    changed["int32 counts"] = embed(other)
    return {name: float(np.nanmax(np.abs(values - base))) for name, values in changed.items()}


if __name__ == "__main__":
    sys.exit(main())
