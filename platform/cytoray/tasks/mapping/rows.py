"""Answers of a mapping as plain data: one entry per cell, and a header; the same over HTTP and offline."""

# C cells of the query, N neighbours

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cytoray.tasks.mapping.mapper import UNSEEN_P
from cytoray.tasks.mapping.querying import MappedQuery

MOST_CANDIDATES = MOST_SHOWN = 5
SMALLEST_CANDIDATE = 1e-4


def header(found: MappedQuery) -> dict[str, Any]:
    """Return what holds for all answers: the reference, how it answered, and the thresholds."""
    made_by = found.asked.about["model"]
    return {
        "reference": found.asked.digest,
        "model": None if made_by is None else {key: made_by[key] for key in ("uri", "weights")},
        "space": found.reference.mapper.space.name,
        "k": found.reference.mapper.num_neighbours,
        "weights": dict(found.reference.mapper.product.weights),
        "coverage": found.coverage,
        "refitted": found.refitted,
        "thresholds": {"unassigned": UNSEEN_P, "sets": found.reference.mapper.sets.level},
        "warnings": list(found.warnings),
    }


def answer_rows(found: MappedQuery, names: Sequence[str | None]) -> list[dict[str, Any]]:
    """Return the answer to each cell, in order; all but the name is None for a cell without a gene of the reference.

    ``x`` and ``y`` are None as well if the reference was built without a map.
    """
    mapped, labels = found.mapped, found.reference.mapper.labels
    neighbours = _neighbours(found)
    unassigned, ambiguous, best = mapped.unassigned, mapped.ambiguous, mapped.labels
    rows = []
    for cell, name in enumerate(names):
        shares = mapped.probabilities[cell]
        order = [int(code) for code in np.argsort(-shares, kind="stable")[:MOST_CANDIDATES]]
        x, y = mapped.places[cell].tolist() if found.reference.has_map else (None, None)
        row: dict[str, Any] = {
            "cell_id": name,
            "label": labels[best[cell]],
            "probability": float(shares[best[cell]]),
            "status": "unassigned" if unassigned[cell] else "ambiguous" if ambiguous[cell] else "assigned",
            "candidates": [
                {"label": labels[code], "probability": float(shares[code])}
                for code in order
                if shares[code] >= SMALLEST_CANDIDATE
            ],
            "set": [labels[code] for code in np.flatnonzero(mapped.sets[cell])],
            "unseen_p": float(mapped.unseen_p[cell]),
            "mapping_percentile": float(mapped.percentile[cell]),
            "neighbours": neighbours[cell],
            "x": x,
            "y": y,
        }
        answered = bool(found.answered[cell])
        rows.append({key: value if answered or key == "cell_id" else None for key, value in row.items()})
    return rows


def _neighbours(found: MappedQuery) -> list[list[dict[str, Any]]]:
    """Return what is known of the nearest reference cells of each cell; only these rows of the table are looked up."""
    places_CN = found.mapped.neighbours[:, :MOST_SHOWN]
    distances_CN = found.mapped.distances[:, :MOST_SHOWN]
    near = found.reference.meta.iloc[places_CN.ravel()]
    columns = (near[name].tolist() for name in ("ref_id", "label", "source", "batch"))
    flat = [
        {"ref_id": ref_id, "label": label, "dataset": source, "batch": batch or None, "distance": distance}
        for ref_id, label, source, batch, distance in zip(*columns, distances_CN.ravel().tolist(), strict=True)
    ]
    width = places_CN.shape[1]
    return [flat[start : start + width] for start in range(0, len(flat), max(width, 1))]
