"""A table of scores as evaluation or a run's card left it: which rows there are, and which bundle they are about."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any

from cytoray import storage
from cytoray.errors import RegistryError


@dataclass(frozen=True)
class ScoresFile:
    """The finite numbers of each row, the SHA-256 of the file, and the bundle's digest if the file contains it."""

    rows: dict[str, dict[str, float]]
    digest: str
    bundle_digest: str | None


def load_scores(uri: str, *, model: str, step: int | None) -> ScoresFile:
    """Read ``scores.json`` of an evaluation, or ``card.json`` of a run.

    A card has its table of scores and what was found on the cells held out at each checkpoint; the latter joins the
    row ``model`` for ``step``, the training step of the bundle in question. Raises NotFoundError, RegistryError.
    """
    data = storage.read_bytes(uri)
    try:
        document = json.loads(data)
    except ValueError as error:
        raise _unreadable(uri) from error
    if not isinstance(document, dict):
        raise _unreadable(uri)
    digest = hashlib.sha256(data).hexdigest()
    if not isinstance(document.get("digests"), dict):
        return ScoresFile(_rows(document), digest, None)
    rows, bundle = _rows(document.get("scores")), document["digests"].get("bundle")
    if not isinstance(bundle, str):  # of a run that was stopped: nobody knows which bundle a checkpoint will be
        return ScoresFile(rows, digest, None)
    for point in document.get("validation") or ():
        if step is not None and point["step"] == step:
            rows[model] = _numbers(point) | rows.get(model, {})
    return ScoresFile(rows, digest, bundle)


def _unreadable(uri: str) -> RegistryError:
    remedy = "Name the scores.json of `cytoray evaluate` or the card.json of a run."
    return RegistryError(f"{uri} holds no scores.", remedy=remedy, scores=uri)


def _rows(table: Any) -> dict[str, dict[str, float]]:
    """The numbers of each row of a table."""
    rows = table.items() if isinstance(table, dict) else ()
    return {name: _numbers(row) for name, row in rows if isinstance(row, dict)}


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    """The comparable values: neither booleans nor NaN."""
    numbers = {name: value for name, value in row.items() if isinstance(value, int | float)}
    return {
        name: float(value) for name, value in numbers.items() if not isinstance(value, bool) and math.isfinite(value)
    }
