"""Set a model's scores beside its baselines': one JSON file for machines, rows of a table for people."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

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


def replace_file(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` atomically: readers see the old file or the new one, never part of one."""
    with draft_of(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """Give a path to write to, which becomes ``path`` if the block does not raise, and is removed if it does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
