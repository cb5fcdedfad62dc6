"""Set a model's scores beside its baselines': one JSON file for machines, rows of a table for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from cytoray.drafts import replace_file
from cytoray.evaluation.classification import ClassificationScores


class ScoreRow(NamedTuple):
    """One line of the table of scores; ``ScoreRow._fields`` are its column names, ratios lie in [0, 1]."""

    name: str
    accuracy: float
    macro_precision: float
    macro_recall: float
    macro_f1: float


def write_scores(scores: Mapping[str, ClassificationScores], path: Path) -> None:
    """Write ``{name: scores}`` as JSON, whole or not at all; missing parent folders are made."""
    document = {name: scored.as_dict() for name, scored in scores.items()}
    replace_file(path, (json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def scores_table(scores: Mapping[str, ClassificationScores]) -> list[ScoreRow]:
    """One row a name, in the order given: put the model first and its baselines after it."""
    return [
        ScoreRow(name, scored.accuracy, scored.macro_precision, scored.macro_recall, scored.macro_f1)
        for name, scored in scores.items()
    ]
