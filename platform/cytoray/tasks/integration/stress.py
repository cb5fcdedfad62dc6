"""Make one batch harder to integrate: fewer counts, fewer genes, or a missing cell type."""

# C cells, G genes

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cytoray.errors import CorpusError
from cytoray.tasks.integration.assess_config import Stress
from cytoray.tasks.integration.cells import BatchedCells

KEPT_COUNTS, LOST_GENES = 0.25, 0.3


def stress_batch(cells: BatchedCells, stress: Stress, *, seed: int) -> tuple[BatchedCells, str]:
    """Return the cells with their largest batch changed, and a sentence that says how.

    Raises CorpusError if counts are thinned but the cells have none, or if no type can be removed.
    """
    counts = Counter(cells.batches)
    batch = min(counts, key=lambda name: (-counts[name], name))
    inside = np.asarray(cells.batches, str) == batch
    rng = np.random.default_rng(seed)
    if stress == "thinned":
        if not cells.are_counts:
            raise CorpusError(f"{cells.uri} has no counts that can be thinned.", remedy="Give raw counts.")
        return _without_empty(cells, _thinned(cells.values, inside, rng)), (
            f"{100 * KEPT_COUNTS:.0f} % of the counts of batch {batch} are kept"
        )
    if stress == "panel":
        lost = rng.random(len(cells.genes)) < LOST_GENES
        return _without_empty(cells, _without_genes(cells.values, inside, lost)), (
            f"{int(lost.sum()):,} of {len(lost):,} genes of batch {batch} are removed"
        )
    if stress == "missing-type":
        label = _common_label(cells, inside, batch)
        kept = np.flatnonzero([not here or own != label for here, own in zip(inside, cells.labels or (), strict=True)])
        return cells.take(kept.astype(np.int64)), f"{label} is removed from batch {batch}"
    return cells, ""


def _thinned(values: sparse.csr_matrix, inside: npt.NDArray[np.bool_], rng: np.random.Generator) -> sparse.csr_matrix:
    thinned = values.copy()
    entries = np.repeat(inside, np.diff(values.indptr))
    thinned.data[entries] = rng.binomial(np.rint(values.data[entries]).astype(np.int64), KEPT_COUNTS)
    thinned.eliminate_zeros()
    return thinned


def _without_genes(
    values: sparse.csr_matrix, inside: npt.NDArray[np.bool_], lost: npt.NDArray[np.bool_]
) -> sparse.csr_matrix:
    panel = values.copy()
    panel.data[np.repeat(inside, np.diff(values.indptr)) & lost[values.indices]] = 0
    panel.eliminate_zeros()
    return panel


def _without_empty(cells: BatchedCells, values: sparse.csr_matrix) -> BatchedCells:
    return cells.with_values(values).take(np.flatnonzero(np.diff(values.indptr) > 0).astype(np.int64))


def _common_label(cells: BatchedCells, inside: npt.NDArray[np.bool_], batch: str) -> str:
    """Return the most frequent label of the batch among those that other batches have as well."""
    labels = cells.labels or ()
    own = Counter(label for label, here in zip(labels, inside, strict=True) if here and label is not None)
    elsewhere = {label for label, here in zip(labels, inside, strict=True) if not here}
    shared = {label: count for label, count in own.items() if label in elsewhere}
    if not shared or len(own) < 2:
        raise CorpusError(
            f"{cells.uri}: no cell type can be removed from batch {batch!r}.",
            remedy="The batch needs two types, one of which occurs in another batch.",
        )
    return min(shared, key=lambda label: (-shared[label], label))
