"""Real cells for measurements if available, else synthetic ones, with a warning."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from benchmarks import common
from cytoray.corpus.config import SourceConfig
from cytoray.corpus.reading import read_cells
from cytoray.tokens.cells import SparseCells

DATA = common.ROOT.parent / "shared" / "data"
FILES = ("pbmc3k.h5ad", "pbmc_donor_a.h5ad")
logger = logging.getLogger("benchmarks")


def draw_cells(num_cells: int, *, seed: int = 0) -> tuple[SparseCells, str]:
    """``num_cells`` cells drawn at random, the same number from each file, and where they come from."""
    paths = [path for name in FILES if (path := DATA / name).exists()]
    origin = " + ".join(path.name for path in paths)
    if not paths:
        logger.warning("No real cells in %s: measuring with synthetic ones.", DATA)
        paths, origin = common.synthetic_files(2_000, num_files=1), "synthetic"
    return SparseCells.concatenate([_draw(path, num_cells // len(paths), seed) for path in paths]), origin


def _draw(path: Path, num_cells: int, seed: int) -> SparseCells:
    cells = read_cells(SourceConfig(uri=str(path))).cells
    filled = np.flatnonzero(cells.num_genes_per_cell > 0)
    return cells.take(np.sort(np.random.default_rng(seed).choice(filled, num_cells, replace=False)))


def longest_cells(num_cells: int) -> tuple[SparseCells, str]:
    """Cells of at least 1,199 genes, so that each fills the whole context."""
    cells, origin = draw_cells(2_000)
    long = np.flatnonzero(cells.num_genes_per_cell >= 1_199)
    return cells.take(long[:num_cells]), origin
