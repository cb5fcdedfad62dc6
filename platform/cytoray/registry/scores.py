"""Read the table of scores of an evaluation or a run card: its rows, and the bundle that they belong to."""

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

    A card has a table of scores and the errors on held-out cells at each checkpoint; those at ``step``, the training
    step of the bundle in question, are added to the row ``model``. Raises NotFoundError, RegistryError.
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
    if not isinstance(bundle, str):  # the run was stopped, and its bundle is not yet known
        return ScoresFile(rows, digest, None)
    for point in document.get("validation") or ():
        if step is not None and point["step"] == step:
            rows[model] = _numbers(point) | rows.get(model, {})
    return ScoresFile(rows, digest, bundle)


def _unreadable(uri: str) -> RegistryError:
    remedy = "Use scores.json of `cytoray evaluate` or card.json of a run."
    return RegistryError(f"{uri} does not contain scores.", remedy=remedy, scores=uri)


def _rows(table: Any) -> dict[str, dict[str, float]]:
    """Return the numbers of each row of a table."""
    rows = table.items() if isinstance(table, dict) else ()
    return {name: _numbers(row) for name, row in rows if isinstance(row, dict)}


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    """Return the comparable values: not booleans, NaN or infinities."""
    numbers = {name: value for name, value in row.items() if isinstance(value, int | float)}
    return {
        name: float(value) for name, value in numbers.items() if not isinstance(value, bool) and math.isfinite(value)
    }
