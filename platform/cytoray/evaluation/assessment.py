"""The report of a task on labelled data: floor, simple baseline, model, product and ceiling of each metric.

    {task, data: {uri, digest}, split, metrics: {NAME: {floor, baseline, model, product, ceiling, interval, verdict}},
     chosen, why, contamination, seeds, seconds, model, model_digest, key, ...}

``key`` stands for data, model, settings and code: the report of an equal key need not be made again. A column without a
meaning is null. ``interval`` is that of product minus baseline on the same cells; the verdict is "win" above 0, "loss"
below, else "tie".
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cytoray import storage
from cytoray.evaluation.intervals import Interval, Statistic, Verdict, compare
from cytoray.failpoints import failpoint

Int64 = npt.NDArray[np.int64]
COLUMNS = ("floor", "baseline", "model", "product", "ceiling")
REPORT, PAGE = "report.json", "report.html"


_TUPLES = ("why", "seeds", "warnings")  # fields that are lists in the report


@dataclass(frozen=True)
class MetricRow:
    """One metric of all methods, on the same cells."""

    floor: float | None = None
    baseline: float | None = None
    model: float | None = None
    product: float | None = None
    ceiling: float | None = None
    interval: Interval | None = None  # of product minus baseline
    verdict: Verdict | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the row as the report has it."""
        row: dict[str, Any] = {name: getattr(self, name) for name in COLUMNS}
        return row | {"interval": self.interval.as_list() if self.interval else None, "verdict": self.verdict}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MetricRow:
        """Make the row that ``as_dict`` described."""
        interval = values["interval"]
        return cls(**{**values, "interval": None if interval is None else Interval(*interval)})


@dataclass(frozen=True)
class Assessment:
    """The result of a task on one data set, and how it was measured."""

    task: str
    data: dict[str, Any]  # uri and digest, of the query as well if there is one
    split: str
    metrics: dict[str, MetricRow]
    chosen: dict[str, int]  # what the gate chose, and how often
    why: tuple[str, ...]  # its reasons, one per split
    seeds: tuple[int, ...]
    seconds: float
    contamination: float | None = None  # share of scored cells that the model was pretrained on; None: not known
    model: str | None = None  # URI of the transformer, None without one
    model_digest: str | None = None  # of its bundle
    model_note: str = ""  # why this model, or none, if the user named none
    key: str = ""  # digest of everything that the report depends on
    warnings: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)  # tables of the task, plain JSON

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        flat = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        flat |= {"metrics": {name: row.as_dict() for name, row in self.metrics.items()}}
        return flat | {name: list(flat[name]) for name in _TUPLES}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Assessment:
        """Make the assessment that ``as_dict`` described."""
        metrics = {name: MetricRow.from_dict(row) for name, row in values["metrics"].items()}
        return cls(**{**values, "metrics": metrics} | {name: tuple(values[name]) for name in _TUPLES})


def measure(statistics: Mapping[str, Statistic], draws: list[Int64], *, num_rows: int) -> MetricRow:
    """Compute one metric of each method that is there (``COLUMNS``), and compare product and baseline.

    ``statistics``: by column, the metric of that method on the cells at given rows; higher is better.
    """
    every = np.arange(num_rows)
    row = row_of({name: float(statistic(every)) for name, statistic in statistics.items()})
    if not {"product", "baseline"} <= statistics.keys():
        return row
    found = compare(statistics["product"], statistics["baseline"], draws, all_rows=every)
    return dataclasses.replace(row, interval=found.interval, verdict=found.verdict)


def row_of(values: Mapping[str, float]) -> MetricRow:
    """Return a row with the given columns, without a comparison."""
    known: dict[str, float | None] = {name: values.get(name) for name in COLUMNS}
    return MetricRow(known["floor"], known["baseline"], known["model"], known["product"], known["ceiling"])


def write_report(assessment: Assessment, uri: str, *, page: bytes, others: Mapping[str, bytes] = {}) -> dict[str, str]:
    """Write ``others``, ``report.html`` and, last, ``report.json`` to a folder or prefix; return their URIs by name.

    Each file is written whole, and report.json says that all are there: an older one is removed first.
    """
    text = json.dumps(assessment.as_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    files = {**others, PAGE: page, REPORT: text.encode()}
    storage.delete(storage.join(uri, REPORT))
    for name, data in files.items():
        failpoint("assess.before_file")
        storage.write_bytes(storage.join(uri, name), data)
    failpoint("assess.after_report")
    return {name: storage.join(uri, name) for name in files}


def find_report(uri: str, *, key: str) -> Assessment | None:
    """Return the assessment whose report is in a folder or prefix, or None if it has no report with this key."""
    data = storage.find_bytes(storage.join(uri, REPORT))
    try:
        values = None if data is None else json.loads(data)
    except ValueError:  # not ours: it will be replaced
        return None
    if not isinstance(values, dict) or values.get("key") != key:
        return None
    return Assessment.from_dict(values)
