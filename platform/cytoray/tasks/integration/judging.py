"""Score embeddings before and after integration by metric, with paired intervals of product minus simple method.

Neighbourhoods change when a cell is drawn twice, so cells are drawn without replacement: a paired subsample of m of n
cells, m being half of them or 1,500, is scored for both. Its deviations, times sqrt(m / (n - m)), are as wide as
those of n cells drawn anew. The interval is centred at the difference over all cells, since some scores depend on the
number of cells. It covers the choice of cells, not that of the embedding, which is not fitted again.
"""

# C cells, D dimensions

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import stats

from cytoray import progress
from cytoray.evaluation.assessment import MetricRow, row_of
from cytoray.evaluation.integration import IntegrationOptions, IntegrationScores, score_integration
from cytoray.evaluation.intervals import LEVEL, Interval, verdict_of
from cytoray.tasks.integration.cells import sample_batches
from cytoray.tasks.pieces import Pieces

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
NUM_DRAWS = 24
DRAWN_CELLS = 1_500
FEWEST_DRAWS = 10  # on which a metric has a meaning
_DRAW_OPTIONS = IntegrationOptions(resolutions=(0.4, 0.8, 1.2), kmeans_starts=3)
METRICS = {
    "total": "total",
    "avg_bio": "avg_bio",
    "avg_batch": "avg_batch",
    "bio": "bio",
    "batch": "batch",
    "ilisi": "ilisi",
    "bras": "bras",
    "kbet": "kbet",
    "graph_connectivity": "graph_connectivity",
    "pcr": "pcr_comparison",
    "asw_batch": "asw_batch",
    "nmi": "nmi_leiden",
    "ari": "ari_leiden",
    "nmi_kmeans": "nmi_kmeans",
    "ari_kmeans": "ari_kmeans",
    "asw_label": "asw_label",
    "clisi": "clisi",
    "isolated_labels": "isolated_labels",
}  # name in the report: name among the scores


@dataclass(frozen=True, eq=False)
class Judged:
    """Cells that are scored, with the embedding before integration that PCR compares with."""

    batches: tuple[str, ...]
    labels: tuple[str, ...] | None
    before: Float64

    def score(self, embedding: Float64, options: IntegrationOptions | None = None) -> IntegrationScores:
        """Score an embedding of these cells."""
        return score_integration(
            embedding, batches=self.batches, labels=self.labels, before=self.before, options=options
        )

    def take(self, rows: Int64) -> Judged:
        """Return some of the cells."""
        labels = None if self.labels is None else tuple(self.labels[row] for row in rows)
        return Judged(tuple(self.batches[row] for row in rows), labels, self.before[rows])


def metric_rows(
    cells: Judged,
    embeddings: Mapping[str, Float64],
    scores: Mapping[str, IntegrationScores],
    *,
    seed: int,
    pieces: Pieces | None = None,
    advance: progress.Advance = progress.silent,
) -> dict[str, MetricRow]:
    """Return a row per metric of the embeddings by column (floor, baseline, model, product), with the comparison.

    Draws that are among the ``pieces`` are not scored again; ``advance`` counts ``NUM_DRAWS`` draws. If product and
    baseline are one embedding, all differences are 0.
    """
    rows = {name: _row(scores, field) for name, field in METRICS.items()}
    if embeddings["product"] is embeddings["baseline"]:
        advance(NUM_DRAWS, "")
        deviations: dict[str, Float64] = {name: np.zeros(NUM_DRAWS) for name in METRICS}
    else:
        deviations = _deviations(cells, embeddings, seed, pieces or Pieces(), advance)
    return {name: _compared(row, deviations[name]) for name, row in rows.items()}


def _row(scores: Mapping[str, IntegrationScores], field: str) -> MetricRow:
    values = {column: getattr(found, field) for column, found in scores.items()}
    return row_of({column: float(value) for column, value in values.items() if value is not None})


def _compared(row: MetricRow, deviations: Float64) -> MetricRow:
    """Return the row with the interval of product minus baseline, if both are known."""
    known = deviations[np.isfinite(deviations)]
    if row.product is None or row.baseline is None or len(known) < FEWEST_DRAWS:
        return row
    reach = float(stats.t.ppf((1 + LEVEL) / 2, len(known) - 1) * known.std(ddof=1))
    difference = row.product - row.baseline
    interval = Interval(difference - reach, difference + reach)
    return replace(row, interval=interval, verdict=verdict_of(interval))


def _deviations(
    cells: Judged, embeddings: Mapping[str, Float64], seed: int, pieces: Pieces, advance: progress.Advance
) -> dict[str, Float64]:
    """Return for each metric the differences on the draws, scaled to the variance of all cells; NaN if undefined."""
    num_cells = len(cells.batches)
    num_drawn = min(num_cells // 2, DRAWN_CELLS)

    def differences(draw: int) -> dict[str, float]:
        """Return the difference of product and baseline in each metric on one draw."""
        rows = sample_batches(cells.batches, num_drawn, seed=seed + draw)
        some = cells.take(rows)
        ours, theirs = (some.score(embeddings[column][rows], _DRAW_OPTIONS) for column in ("product", "baseline"))
        return {name: _difference(getattr(ours, field), getattr(theirs, field)) for name, field in METRICS.items()}

    found = []
    for draw in range(NUM_DRAWS):
        each, reused = pieces.compute(f"draw {draw}", functools.partial(differences, draw))
        found.append(each)
        advance(1, "interval", already=reused)
    factor = np.sqrt(num_drawn / (num_cells - num_drawn))
    return {name: np.array([each[name] for each in found]) * factor for name in METRICS}


def _difference(ours: float | None, theirs: float | None) -> float:
    return np.nan if ours is None or theirs is None else ours - theirs


def labelled_rows(labels: Sequence[str | None]) -> Int64:
    """Return the rows of cells that have a label."""
    return np.flatnonzero([label is not None for label in labels]).astype(np.int64)
