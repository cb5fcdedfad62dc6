"""Cells and vocabularies for the tests of the tokens room."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from cytoray.tokens.cells import SparseCells
from cytoray.tokens.vocabulary import GeneVocabulary

BuildCells = Callable[..., SparseCells]


@pytest.fixture(scope="session")
def build_cells() -> BuildCells:
    """A function from one list of values a cell (and optionally its gene ids and its id) to SparseCells."""

    def build(
        rows: Sequence[Any], *, gene_ids: Sequence[Any] | None = None, cell_ids: Sequence[int] | None = None
    ) -> SparseCells:
        genes = [np.arange(len(row)) for row in rows] if gene_ids is None else gene_ids
        return SparseCells(
            np.concatenate([np.empty(0), *genes]).astype(np.int32),
            np.concatenate([np.empty(0), *rows]).astype(np.float32),
            np.cumsum([0, *(len(row) for row in rows)]).astype(np.int64),
            np.array(range(len(rows)) if cell_ids is None else cell_ids, np.uint64),
        )

    return build


@pytest.fixture(scope="session")
def random_cells(build_cells: BuildCells) -> Callable[..., SparseCells]:
    """A function that draws cells of integer counts over a small panel."""

    def draw(seed: int, *, num_cells: int = 12, num_genes: int = 400) -> SparseCells:
        rng = np.random.default_rng(seed)
        genes = [np.flatnonzero(rng.random(num_genes) < rng.uniform(0.05, 0.9)) for _ in range(num_cells)]
        rows = [rng.geometric(0.4, len(group)) for group in genes]
        return build_cells(rows, gene_ids=genes, cell_ids=rng.integers(0, 2**63, num_cells))

    return draw


@pytest.fixture(scope="session")
def panel() -> GeneVocabulary:
    """A vocabulary of 400 made-up genes."""
    return GeneVocabulary([f"GENE{number}" for number in range(400)])


@pytest.fixture(scope="session")
def census() -> GeneVocabulary:
    """The packaged vocabulary."""
    return GeneVocabulary.load_default()
