"""Doses and times of a screen: numbers in columns of obs that distinguish perturbed cells, and match controls.

values = numeric_columns(adata.obs, ("dose", "time"), uri="screen.h5ad")  # (C, K)
parse_point("dose=0.5,time=6")  # {"dose": 0.5, "time": 6.0}
"""

# C cells, K covariates

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytoray.errors import CorpusError, RequestError
from cytoray.evaluation.perturbation.covariates import control_values
from cytoray.evaluation.perturbation.effects import CONTROL
from cytoray.tokens.labels import label_texts

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
MOST_VALUES = 50  # of one covariate
_SHOWN = 5


def numeric_columns(obs: pd.DataFrame, names: Sequence[str], *, uri: str) -> Float64 | None:
    """Return columns of obs as numbers (C, K), NaN for missing values; None without names.

    Raises CorpusError for text, for infinite or boolean values, and for columns of too many distinct values.
    """
    if not names:
        return None
    return np.stack([_numbers(obs[name], name, uri) for name in names], axis=1)


def _numbers(column: Any, name: str, uri: str) -> Float64:
    texts = ["" if text is None else text.strip() for text in label_texts(column)]
    distinct = {text: _number(text) for text in dict.fromkeys(texts)}
    wrong = [text for text, value in distinct.items() if value is None or math.isinf(value)]
    if wrong:
        raise CorpusError(
            f"{uri}: column {name!r} is text, such as {', '.join(map(repr, wrong[:_SHOWN]))}; a covariate is a number.",
            remedy="Put numbers of one unit into that column, or leave it out: a condition that is text "
            "belongs to the perturbation's name.",
            column=name,
        )
    if len(distinct) > MOST_VALUES:
        raise CorpusError(
            f"{uri}: column {name!r} has {len(distinct):,} distinct values; a covariate has {MOST_VALUES} at most.",
            remedy="Round it to the doses or times at which cells were measured.",
            column=name,
        )
    return np.array([distinct[text] for text in texts], np.float64)


def _number(text: str) -> float | None:
    """The number that a text is; NaN for a missing one, None for other texts."""
    if not text or text.lower() in ("nan", "na", "none"):
        return math.nan
    try:
        return float(text)
    except ValueError:
        return None


def without_missing(codes: Int64, values: Float64, covariates: Sequence[str], notes: list[str]) -> Int64:
    """Return codes (C,) without perturbed cells that lack a value, which are left out (-2) and counted."""
    lacking = (codes >= 0) & np.isnan(values).any(axis=1)
    if lacking.any():
        notes.append(f"{int(lacking.sum()):,} perturbed cells without {' or '.join(covariates)} were left out")
    return np.where(lacking, -2, codes)


def without_rare_points(codes: Int64, values: Float64, *, fewest: int, notes: list[str]) -> Int64:
    """Return codes (C,) without the cells of points (perturbation and values) that have too few cells."""
    perturbed = np.flatnonzero(codes >= 0)
    if not len(perturbed):
        return codes
    keys = np.column_stack([codes, values])[perturbed]
    _, point, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    rare = perturbed[counts[point.ravel()] < fewest]
    if not len(rare):
        return codes
    notes.append(f"{int((counts < fewest).sum())} doses or times with fewer than {fewest} cells were left out")
    found = codes.copy()
    found[rare] = -2
    return found


def matched_batches(
    batches: Sequence[str] | None, codes: Int64, values: Float64, covariates: Sequence[str]
) -> Sequence[str] | None:
    """Return the batches of cells (C,), cut by the covariates of which control cells have several values, if any.

    Cells of a time are thus compared with controls of that time.
    """
    controls = values[codes == CONTROL]
    is_one, is_missing = ~np.isnan(control_values(controls)), np.isnan(controls).all(axis=0)
    several = np.flatnonzero(~is_one & ~is_missing)
    if not len(several):
        return batches
    names = [covariates[int(k)] for k in several]
    texts = [point_text(names, row) for row in values[:, several]]
    return texts if batches is None else [f"{batch}, {text}" for batch, text in zip(batches, texts, strict=True)]


def point_text(covariates: Sequence[str], values: Sequence[float] | Float64) -> str:
    """Return a point as text, such as ``dose 1, time 6``."""
    return ", ".join(f"{name} {value:g}" for name, value in zip(covariates, values, strict=True))


def parse_point(text: str) -> dict[str, float]:
    """Parse ``dose=0.5,time=6``; raises RequestError for anything else."""
    found = {}
    for part in text.split(","):
        name, _, value = (each.strip() for each in part.partition("="))
        number = _number(value)
        if not name or number is None or not math.isfinite(number):
            raise RequestError(f"{part.strip()!r} is not a value of a covariate.", remedy="Write --at dose=0.5,time=6.")
        found[name] = number
    return found


def check_point(point: Mapping[str, float], covariates: Sequence[str]) -> Float64:
    """Return the values (K,) of a point; raises RequestError for unknown or missing covariates."""
    if unknown := sorted(point.keys() - set(covariates)):
        raise RequestError(
            f"The model has no covariate {', '.join(map(repr, unknown))}.",
            remedy=f"Its covariates: {', '.join(covariates) or 'none; fit it with --covariates'}.",
        )
    if missing := [name for name in covariates if name not in point]:
        raise RequestError(f"{', '.join(map(repr, missing))} not given.", remedy="Give all covariates, or none.")
    return np.array([point[name] for name in covariates], np.float64)
