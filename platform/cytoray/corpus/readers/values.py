"""Judge the values of a matrix from a sample of its rows, and choose the matrix that holds the counts."""

# C cells, N values

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cytoray.corpus.checking.counts import RECOVERABLE_SAMPLE_SHARE, recover_counts
from cytoray.corpus.readers.base import ValueKind

INTEGER_TOLERANCE = 1e-3  # counts that went through floats
STRAY_SHARE = 0.01  # of values among counts that are not counts: the rules report them cell by cell
FEWEST_VALUES = 20  # from which a single value among all of them is no accident
SAMPLE_BLOCKS = 12
BLOCK_ROWS = 64
RECOVERED_ROWS = 192  # of the sample; the walk up the values of one cell takes about a millisecond
_ORDER: dict[ValueKind, int] = {"counts": 0, "near_counts": 1, "recoverable": 2, "expression": 3, "negative": 4}
_CONSTANT = 2.5  # as in _ORDER: of a matrix with one value
_MAX_LOG_VALUE = 30  # log1p of more counts than any cell has
_COUNTS_NAME = re.compile(r"count|raw|umi", re.IGNORECASE)
# Layers that are integers and yet not a cell's counts: parts of them (RNA velocity), or presence and absence.
_PARTIAL_NAME = re.compile(r"spliced|ambiguous|nascent|mature|spanning|binar|presence|mask", re.IGNORECASE)


def sample_ranges(num_rows: int) -> list[tuple[int, int]]:
    """Up to ``SAMPLE_BLOCKS`` ranges of rows from the first to the last, evenly spread, none overlapping."""
    if num_rows <= SAMPLE_BLOCKS * BLOCK_ROWS:
        return [(start, min(start + BLOCK_ROWS, num_rows)) for start in range(0, num_rows, BLOCK_ROWS)]
    starts = np.linspace(0, num_rows - BLOCK_ROWS, SAMPLE_BLOCKS).astype(int).tolist()
    return [(start, start + BLOCK_ROWS) for start in starts]


def judge_values(sample: sparse.csr_matrix) -> ValueKind:
    """Judge the values of a sample of cells; NaN and Inf are ignored here and refused later, by cell."""
    values = sample.data[np.isfinite(sample.data)]
    kind = judge_numbers(values)
    if kind != "expression" or values.max() > _MAX_LOG_VALUE:
        return kind
    step = -(-sample.shape[0] // RECOVERED_ROWS)
    _, recovered = recover_counts(sample[::step])
    return "recoverable" if recovered.mean() >= RECOVERABLE_SAMPLE_SHARE else "expression"


def judge_numbers(values: npt.NDArray[Any]) -> ValueKind:
    """Judge N values without their rows: recoverable ones count as expression."""
    values = values[np.isfinite(values)]
    is_float = values.dtype.kind == "f"
    error = np.abs(values - np.rint(values)) if is_float else np.zeros(len(values))
    strays = (values < 0) | (error > INTEGER_TOLERANCE)
    if strays.sum() > STRAY_SHARE * len(values):
        return "negative" if (values < 0).any() else "expression"
    return "near_counts" if error[~strays].any() else "counts"


def only_value(values: npt.NDArray[Any]) -> float | None:
    """The one value that all of N values have, zeros aside, as in a matrix of presence and absence; else None."""
    found = values[values != 0]
    if len(found) < FEWEST_VALUES or (found != found[0]).any():
        return None
    return float(found[0])


@dataclass(frozen=True)
class Judged:
    """Facts about one matrix, from a sample of it."""

    kind: ValueKind
    empty: bool  # no value in the sample
    only_value: float | None = None  # of all entries in the sample, if they are all the same
    num_unsorted_rows: int = 0  # in the sample


def choose_matrix(num_genes: Mapping[str, int], judge: Callable[[str], Judged]) -> str:
    """Choose the matrix to read: counts before anything else, of equals the one with most genes, then X, then by name.

    Counts that are all the same (presence and absence) come after values whose counts can be restored. ``num_genes``
    the matrices in their order; ``judge`` is called no more often than needed.
    """

    def by_name(name: str) -> tuple[bool, int, bool]:
        """Sort key of a matrix by its name and size."""
        layer = name.removeprefix("layers/")
        is_partial = layer != name and bool(_PARTIAL_NAME.search(layer))
        is_other_layer = layer != name and not _COUNTS_NAME.search(layer)
        return is_partial, -num_genes[name], is_other_layer

    def by_content(name: str) -> tuple[bool, bool, float]:
        """Sort key of a matrix by its values."""
        judged = judge(name)
        order = _ORDER[judged.kind] if judged.only_value is None else max(_ORDER[judged.kind], _CONSTANT)
        return by_name(name)[0], judged.empty, order

    candidates = sorted(num_genes, key=by_name)  # stable: X stands before raw.X and the layers
    for name in candidates:
        if by_content(name) == (False, False, _ORDER["counts"]):
            return name
    return min(candidates, key=by_content)
