"""The record of a task's assessment on a model version: its headline figures, as a tag that the gate reads."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cytoray.errors import RegistryError

RECORD_TAG = "cytoray.assessment."  # then the id of the record
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecordedAssessment:
    """The headline metric of one report, and where the report is."""

    task: str
    metric: str
    product: float | None
    baseline: float | None
    interval: tuple[float, float] | None  # 90 %, of product minus baseline
    verdict: str | None  # win, tie, loss; None if the metric has none
    data: str  # URI of the cells
    split: str
    report: str  # folder of report.json and report.html among the artifacts of the version's run
    report_digest: str  # SHA-256 of report.json

    def line(self) -> str:
        """Describe the record in a few words: ``annotation macro_f1 0.912 (simple method 0.905, win)``."""
        beside = [] if self.baseline is None else [f"simple method {self.baseline:.3f}"]
        words = ", ".join([*beside, *([self.verdict] if self.verdict else [])])
        product = "-" if self.product is None else f"{self.product:.3f}"
        return f"{self.task} {self.metric} {product}" + (f" ({words})" if words else "")

    def to_tag(self) -> str:
        """Return the value of the tag."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)


def read_recorded(tags: Mapping[str, str], *, strict: bool = False) -> tuple[RecordedAssessment, ...]:
    """Return the assessments among the tags of a version, sorted by task.

    A tag that was damaged is left out with a warning; with ``strict`` it raises RegistryError.
    """
    found = []
    for key, value in sorted(tags.items()):
        if not key.startswith(RECORD_TAG):
            continue
        try:
            found.append(_from_tag(json.loads(value)))
        except (ValueError, TypeError) as error:
            problem = f"The tag {key} is not the record of an assessment."
            if strict:
                remedy = "Delete this tag in MLflow, and record the report again with `cytoray models record`."
                raise RegistryError(problem, remedy=remedy, tag=key) from error
            _logger.warning("%s", problem)
    return tuple(found)


def _from_tag(values: Any) -> RecordedAssessment:
    """Build a record; TypeError for other fields than it has."""
    interval = values["interval"] if isinstance(values, dict) and values.get("interval") else None
    return RecordedAssessment(**{**values, "interval": None if interval is None else (interval[0], interval[1])})
