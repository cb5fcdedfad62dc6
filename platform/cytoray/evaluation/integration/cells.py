"""The checked cells that metrics of integration are computed on, and which metrics have a meaning for them."""

# C cells, D dimensions, L labels, B batches

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from cytoray.evaluation.inputs import code_names, finite_points
from cytoray.evaluation.integration.mixing import SMALLEST_KBET_LABEL
from cytoray.evaluation.integration.neighbours import Float64, Int64, Neighbours, find_neighbours

NUM_NEIGHBOURS = 90  # for LISI; kBET has 50 of them, Leiden and graph connectivity 15
FEWEST_NEIGHBOURS = 6  # for a LISI kernel of perplexity 2

BIO_METRICS = ("nmi_kmeans", "ari_kmeans", "nmi_leiden", "ari_leiden", "asw_label", "isolated_labels", "clisi")
BATCH_METRICS = ("bras", "asw_batch", "ilisi", "kbet", "graph_connectivity", "pcr_comparison")


@dataclass(frozen=True, eq=False)
class Cells:
    """C cells with their embedding, and codes of their batches and labels into sorted names."""

    embedding: Float64  # (C, D)
    batches: Int64  # (C,)
    batch_names: tuple[str, ...]
    labels: Int64 | None  # (C,)
    label_names: tuple[str, ...]
    before: Float64 | None  # (C, D'), the embedding before integration

    @cached_property
    def neighbours(self) -> Neighbours:
        """The 90 nearest cells of each."""
        return find_neighbours(self.embedding, num_neighbours=NUM_NEIGHBOURS)

    @cached_property
    def table(self) -> Int64:
        """Number of cells of each label in each batch (L, B)."""
        assert self.labels is not None
        counts = np.zeros((len(self.label_names), len(self.batch_names)), np.int64)
        np.add.at(counts, (self.labels, self.batches), 1)
        return counts

    def sample(self, max_cells: int, *, seed: int = 0) -> Cells:
        """Return at most ``max_cells`` cells, drawn at random and in their order."""
        if len(self.embedding) <= max_cells:
            return self
        chosen = np.sort(np.random.default_rng(seed).choice(len(self.embedding), max_cells, replace=False))
        labels = None if self.labels is None else [self.label_names[code] for code in self.labels[chosen]]
        batches = [self.batch_names[code] for code in self.batches[chosen]]
        before = None if self.before is None else self.before[chosen]
        return check_cells(self.embedding[chosen], batches=batches, labels=labels, before=before)


def check_cells(
    embedding: npt.NDArray[np.floating],
    *,
    batches: Sequence[str],
    labels: Sequence[str] | None = None,
    before: npt.NDArray[np.floating] | None = None,
) -> Cells:
    """Return the cells with coded batches and labels; raises CorpusError for missing names and non-finite values."""
    batch_codes, batch_names = code_names(batches, "batch label")
    label_codes, label_names = (None, ()) if labels is None else code_names(labels, "cell-type label")
    values = finite_points(embedding, "embedding")
    before = None if before is None else finite_points(before, "embedding before integration")
    for name, given in (("batch labels", batch_codes), ("labels", label_codes), ("cells before", before)):
        assert given is None or len(given) == len(values), f"{len(values)} embedded cells but {len(given)} {name}"
    return Cells(values, batch_codes, batch_names, label_codes, label_names, before)


def meaningless_metrics(cells: Cells) -> dict[str, str]:
    """Return metrics that have no meaning for these batches and labels, each with the reason."""
    reasons: dict[str, str] = {}
    if cells.labels is None:
        needless = ("ilisi", "pcr_comparison")
        every = (name for name in (*BIO_METRICS, *BATCH_METRICS) if name not in needless)
        reasons |= dict.fromkeys(every, "no cell-type labels were given")
    else:
        reasons |= _meaningless_by_label(cells)
    if len(cells.batch_names) == 1:
        batch_metrics = [name for name in BATCH_METRICS if name != "graph_connectivity"]
        reasons |= dict.fromkeys((*batch_metrics, "isolated_labels"), "all cells are of one batch")
    elif cells.before is None:
        reasons["pcr_comparison"] = "the embedding before integration was not given"
    if len(cells.embedding) < FEWEST_NEIGHBOURS:
        few = f"{len(cells.embedding)} cells are too few for neighbourhoods (at least {FEWEST_NEIGHBOURS})"
        reasons |= dict.fromkeys(("clisi", "ilisi", "kbet", "graph_connectivity", "nmi_leiden", "ari_leiden"), few)
    return reasons


def _meaningless_by_label(cells: Cells) -> dict[str, str]:
    reasons: dict[str, str] = {}
    num_cells, in_batches = cells.table.sum(axis=1), (cells.table > 0).sum(axis=1)
    if not ((in_batches > 1) & (num_cells > in_batches)).any():
        reasons |= dict.fromkeys(("bras", "asw_batch"), "no label has cells in two batches")
    if not ((in_batches > 1) & (num_cells >= SMALLEST_KBET_LABEL)).any():
        reasons["kbet"] = f"no label of {SMALLEST_KBET_LABEL} cells or more is in two batches"
    if len(cells.label_names) == 1:
        reasons |= dict.fromkeys(BIO_METRICS, "all cells have one label")
    elif len(cells.label_names) == len(cells.embedding):
        reasons |= dict.fromkeys(BIO_METRICS, "every cell has a label of its own")
    return reasons
