"""Seeded embeddings with batches and labels, on which our metrics and scib-metrics are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

PBMC = Path(__file__).parents[2].parent / "shared" / "data" / "pbmc_integration_visible.h5ad"


@dataclass(frozen=True, eq=False)
class Case:
    """An embedding after integration and the one before, with names of batches and labels."""

    embedding: npt.NDArray[np.float32]
    before: npt.NDArray[np.float32]
    batches: npt.NDArray[np.str_]
    labels: npt.NDArray[np.str_]


def blobs() -> Case:
    """Four labels in all of three batches; half of the shift between batches is left."""
    rng = np.random.default_rng(0)
    labels, batches = rng.integers(0, 4, 700), rng.integers(0, 3, 700)
    cells = rng.normal(size=(700, 10)) + rng.normal(0, 3, (4, 10))[labels]
    shift = rng.normal(0, 1.5, (3, 10))[batches]
    return _case(cells + 0.5 * shift, cells + shift, batches, labels)


def uneven() -> Case:
    """A label in one batch only, a rare one, unequal batches, and cells on top of each other."""
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2, 3], [260, 140, 180, 12])
    batches = np.where(rng.random(len(labels)) < 0.75, 0, 1)
    batches[labels == 2] = 1
    cells = rng.normal(size=(len(labels), 6)) + rng.normal(0, 2, (4, 6))[labels]
    cells[5:20] = cells[5]
    shift = rng.normal(0, 2, (2, 6))[batches]
    return _case(cells + 0.2 * shift, cells + shift, batches, labels)


def noise() -> Case:
    """Labels and batches without any structure."""
    rng = np.random.default_rng(2)
    cells = rng.normal(size=(500, 8))
    return _case(cells, cells + rng.normal(0, 1, (500, 8)), rng.integers(0, 4, 500), rng.integers(0, 3, 500))


def clumps() -> Case:
    """One label in two distant clumps of both batches, another in a clump for each batch."""
    rng = np.random.default_rng(3)
    labels, batches = np.repeat([0, 1, 2], 220), np.tile([0, 1], 330)
    centres = np.zeros((660, 5))
    centres[:110, 0], centres[110:220, 0] = 60, -60
    centres[220:440, 1] = np.where(batches[220:440] == 0, 60, 90)
    cells = rng.normal(size=(660, 5)) + centres
    return _case(cells, cells * (1 + 0.2 * batches[:, None]), batches, labels)


def pbmc() -> Case:
    """Two batches of real blood cells: 50 principal components, before and after centring of each batch."""
    import anndata
    import scanpy

    cells = anndata.read_h5ad(PBMC)
    scanpy.pp.normalize_total(cells, target_sum=1e4)
    scanpy.pp.log1p(cells)
    scanpy.pp.pca(cells, n_comps=50, svd_solver="arpack", mask_var=None)
    before = np.asarray(cells.obsm["X_pca"], np.float32)
    batches, labels = (np.asarray(cells.obs[key], str) for key in ("batch", "cell_type"))
    after = before.copy()
    for batch in np.unique(batches):
        after[batches == batch] -= after[batches == batch].mean(axis=0)
    return Case(after, before, batches, labels)


SYNTHETIC: dict[str, Callable[[], Case]] = {"blobs": blobs, "uneven": uneven, "noise": noise, "clumps": clumps}


def _case(
    embedding: npt.NDArray[np.float64],
    before: npt.NDArray[np.float64],
    batches: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
) -> Case:
    names = np.array([f"batch {code}" for code in batches]), np.array([f"type {code}" for code in labels])
    return Case(embedding.astype(np.float32), before.astype(np.float32), *names)
