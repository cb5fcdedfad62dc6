"""Score an integrated embedding by the metrics of scib-metrics 0.5.10, and by the two means of the scGPT paper."""

# C cells, D dimensions, L labels, B batches

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cytoray.evaluation.integration.cells import BATCH_METRICS, BIO_METRICS, Cells, check_cells, meaningless_metrics
from cytoray.evaluation.integration.clustering import (
    LEIDEN_SEED,
    RESOLUTIONS,
    kmeans_agreement,
    leiden_agreement,
)
from cytoray.evaluation.integration.mixing import graph_connectivity, kbet_per_label, median_lisi, pcr_comparison
from cytoray.evaluation.integration.neighbours import Float64
from cytoray.evaluation.integration.silhouettes import batch_silhouettes, label_silhouettes

# The groups of scib-metrics' Benchmarker as it is by default; their means make up the total.
BIO_GROUP = ("isolated_labels", "nmi_kmeans", "ari_kmeans", "asw_label", "clisi")
BATCH_GROUP = ("bras", "ilisi", "kbet", "graph_connectivity", "pcr_comparison")
BIO_WEIGHT, BATCH_WEIGHT = 0.6, 0.4


@dataclass(frozen=True)
class IntegrationOptions:
    """Settings of the metrics; the defaults are those of scib-metrics, except for several starts of k-means."""

    resolutions: tuple[float, ...] = RESOLUTIONS  # of Leiden; the one of best NMI counts
    kmeans_starts: int = 10
    kmeans_seed: int = 0
    leiden_seed: int = LEIDEN_SEED
    max_cells: int = 50_000  # more are scored on so many drawn at random: all pairs of cells are compared


@dataclass(frozen=True)
class LabelIntegration:
    """The metrics of one cell type; None where one has no meaning for it."""

    label: str
    num_cells: int
    num_batches: int
    asw: float | None
    bras: float | None
    asw_batch: float | None
    kbet: float | None
    graph_connectivity: float | None


@dataclass(frozen=True)
class IntegrationScores:
    """Metrics of one embedding, each in [0, 1] with 1 best, or None with an entry in ``reasons``."""

    nmi_kmeans: float | None
    ari_kmeans: float | None
    nmi_leiden: float | None
    ari_leiden: float | None
    asw_label: float | None
    isolated_labels: float | None
    clisi: float | None
    bras: float | None
    asw_batch: float | None
    ilisi: float | None
    kbet: float | None
    graph_connectivity: float | None
    pcr_comparison: float | None
    num_cells: int  # that were scored
    num_batches: int
    num_labels: int
    per_label: tuple[LabelIntegration, ...] = ()
    reasons: dict[str, str] = field(default_factory=dict)  # why a metric is None
    warnings: tuple[str, ...] = ()

    @property
    def bio(self) -> float | None:
        """Conservation of biology: the mean of isolated labels, k-means NMI and ARI, ASW of labels and cLISI."""
        return self._mean(BIO_GROUP) if self.asw_label is not None else None

    @property
    def batch(self) -> float | None:
        """Removal of batches: the mean of BRAS, iLISI, kBET, graph connectivity and PCR; those that have a meaning."""
        return self._mean(BATCH_GROUP) if self.num_batches > 1 else None

    @property
    def total(self) -> float | None:
        """0.6 bio + 0.4 batch; None if either is."""
        bio, batch = self.bio, self.batch
        return None if bio is None or batch is None else BIO_WEIGHT * bio + BATCH_WEIGHT * batch

    @property
    def avg_bio(self) -> float | None:
        """AvgBIO of the scGPT paper: the mean of NMI and ARI (Leiden clusters of best NMI) and ASW of labels."""
        return self._mean_of_all("nmi_leiden", "ari_leiden", "asw_label")

    @property
    def avg_batch(self) -> float | None:
        """AvgBATCH of the scGPT paper: the mean of ASW of batches and graph connectivity."""
        return self._mean_of_all("asw_batch", "graph_connectivity")

    def to_dict(self) -> dict[str, Any]:
        """Return everything, with the means, as plain lists, strings and numbers, ready for ``json.dumps``."""
        means = {name: getattr(self, name) for name in ("bio", "batch", "total", "avg_bio", "avg_batch")}
        document = asdict(self)
        lists = {name: list(document[name]) for name in ("per_label", "warnings")}
        return {**means, **document, **lists}

    def _mean(self, names: Sequence[str]) -> float | None:
        known = [value for value in (getattr(self, name) for name in names) if value is not None]
        return float(np.mean(known)) if known else None

    def _mean_of_all(self, *names: str) -> float | None:
        return None if any(getattr(self, name) is None for name in names) else self._mean(names)


def score_integration(
    embedding: npt.NDArray[np.floating],
    *,
    batches: Sequence[str],
    labels: Sequence[str] | None = None,
    before: npt.NDArray[np.floating] | None = None,
    options: IntegrationOptions | None = None,
) -> IntegrationScores:
    """Score the embedding (C, D) of cells of several batches, by their cell types if these are known.

    ``before`` is the embedding before integration (PCA of the log-normalised expression of all genes): only PCR
    needs it. A metric without a meaning for these cells is None, and ``reasons`` says why. Raises CorpusError for
    cells without a name of batch or label, for values that are not finite and for no cells.
    """
    options = options or IntegrationOptions()
    everything = check_cells(embedding, batches=batches, labels=labels, before=before)
    cells = everything.sample(options.max_cells)
    reasons = meaningless_metrics(cells)
    each = _metrics_per_label(cells, reasons)
    values = _metrics(cells, reasons, each, options)
    reasons |= {name: "batches explained no variance before" for name, value in values.items() if np.isnan(value)}
    return IntegrationScores(
        **{name: None if name in reasons else values[name] for name in (*BIO_METRICS, *BATCH_METRICS)},
        num_cells=len(cells.embedding),
        num_batches=len(cells.batch_names),
        num_labels=len(cells.label_names),
        per_label=_label_rows(cells, each),
        reasons=reasons,
        warnings=_warnings(cells, len(everything.embedding)),
    )


def _metrics_per_label(cells: Cells, reasons: dict[str, str]) -> dict[str, Float64]:
    """Return the metrics (L,) that are means over labels, but for those with a reason."""
    labels = cells.labels
    if labels is None:
        return {}
    points, batches = cells.embedding, cells.batches
    table: dict[str, Callable[[], Float64]] = {
        "bras": lambda: batch_silhouettes(points, labels, batches, metric="cosine", between="mean_other"),
        "asw_batch": lambda: batch_silhouettes(points, labels, batches, metric="euclidean", between="nearest"),
        "kbet": lambda: kbet_per_label(cells.neighbours.nearest(50).connectivities(), labels, batches),
        "graph_connectivity": lambda: graph_connectivity(cells.neighbours.nearest(15), labels),
    }
    found = {name: compute() for name, compute in table.items() if name not in reasons}
    if "asw_label" not in reasons:
        found["asw"] = label_silhouettes(points, labels)[1]
    return found


def _metrics(
    cells: Cells, reasons: dict[str, str], each: dict[str, Float64], options: IntegrationOptions
) -> dict[str, float]:
    """Return all metrics but for those with a reason; ``each`` holds those per label."""
    values = {name: float(np.nanmean(found)) for name, found in each.items() if name != "asw"}
    if "ilisi" not in reasons:
        values["ilisi"] = (median_lisi(cells.neighbours, cells.batches) - 1) / (len(cells.batch_names) - 1)
    if "pcr_comparison" not in reasons:
        assert cells.before is not None
        values["pcr_comparison"] = pcr_comparison(cells.before, cells.embedding, cells.batches)
    if "asw" in each:
        values |= _label_metrics(cells, reasons, each["asw"], options)
    return values


def _label_metrics(
    cells: Cells, reasons: dict[str, str], asw: Float64, options: IntegrationOptions
) -> dict[str, float]:
    labels, counts = cells.labels, cells.table
    assert labels is not None
    in_batches = (counts > 0).sum(axis=1)
    kmeans = kmeans_agreement(cells.embedding, labels, seed=options.kmeans_seed, num_starts=options.kmeans_starts)
    values = {
        "nmi_kmeans": kmeans.nmi,
        "ari_kmeans": kmeans.ari,
        "asw_label": float(np.average(asw, weights=counts.sum(axis=1))),
        "isolated_labels": float(asw[in_batches == in_batches.min()].mean()),
    }
    if "clisi" not in reasons:
        num_labels = len(cells.label_names)
        values["clisi"] = (num_labels - median_lisi(cells.neighbours, labels)) / (num_labels - 1)
        graph = cells.neighbours.nearest(15).connectivities()
        clusters = leiden_agreement(graph, labels, resolutions=options.resolutions, seed=options.leiden_seed)
        values |= {"nmi_leiden": clusters.nmi, "ari_leiden": clusters.ari}
    return values


def _label_rows(cells: Cells, each: dict[str, Float64]) -> tuple[LabelIntegration, ...]:
    if cells.labels is None:
        return ()
    names = ("asw", "bras", "asw_batch", "kbet", "graph_connectivity")

    def row(label: int) -> LabelIntegration:
        """Collect the scores of one label."""
        values = {name: _known(each[name][label]) if name in each else None for name in names}
        counts = cells.table[label]
        return LabelIntegration(cells.label_names[label], int(counts.sum()), int((counts > 0).sum()), **values)

    return tuple(row(label) for label in range(len(cells.label_names)))


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _warnings(cells: Cells, num_cells: int) -> tuple[str, ...]:
    found = []
    if len(cells.embedding) < num_cells:
        found.append(f"Scored on {len(cells.embedding)} of {num_cells} cells, drawn at random.")
    if cells.labels is not None and len(cells.batch_names) > 1 and ((cells.table > 0).sum(axis=1) == 1).all():
        found.append(
            "Every label is in one batch only: batches and cell types are confounded, so that no metric can tell "
            "removed batches from removed biology."
        )
    return tuple(found)
