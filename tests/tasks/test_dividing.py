"""Requests are divided only if a part is understood as the whole is."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from cytoray.tasks.prediction import is_uniform
from cytoray.tokens.cells import SparseCells


def cells(*rows: list[float]) -> SparseCells:
    matrix = sp.csr_matrix(np.array(rows, np.float32))
    return SparseCells(
        matrix.indices.astype(np.int32), matrix.data, matrix.indptr.astype(np.int64), np.zeros(len(rows), np.uint64)
    )


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1, 0, 3], [0, 0, 0], [200, 1, 0]], True),  # counts, and a cell without any
        ([[0.5, 0, 3], [0, 0, 0], [1.5, 1, 0]], True),  # logarithms
        ([[0, 0, 0]], True),
        ([[0.5, 0, 3], [1, 2, 0]], False),  # alone, the second would be counts
        ([[0.5, 0, 3], [1.5, 200, 0]], False),  # alone, the first would be logarithms
        ([[0.5, 0, 30], [1.5, 200, 0]], True),
    ],
)
def test_parts_are_of_the_kind_of_the_whole(rows: list[list[float]], expected: bool) -> None:
    assert is_uniform(cells(*rows)) is expected
