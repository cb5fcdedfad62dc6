"""Splits by the unit that must generalise: folds of cells or of whole groups, few labels, one label left out.

    for split in stratified_folds(labels, num_folds=5, seed=0):
        fit(split.train), score(split.test)

Everything is a function of its arguments: equal labels and seed give equal rows.
"""

# C cells

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cytoray.errors import ConfigError

Int64 = npt.NDArray[np.int64]
Strings = npt.NDArray[np.str_]


@dataclass(frozen=True, eq=False)
class Split:
    """Rows to learn from and rows to be scored on, ascending and without overlap."""

    name: str
    train: Int64
    test: Int64


def stratified_folds(labels: Sequence[str], *, num_folds: int, seed: int) -> list[Split]:
    """Split C cells into folds with each label's share in every fold.

    A label with fewer cells than folds is missing from some test sets, never from a training set unless it has one
    cell. There are fewer folds if there are fewer cells. Raises ConfigError for fewer than two cells.
    """
    names = np.asarray(labels, str)
    num_folds = _check_folds(num_folds, len(names), what="cells")
    fold = np.empty(len(names), np.int64)
    start = 0
    for label in np.unique(names):
        rows = np.random.default_rng([seed, start]).permutation(np.flatnonzero(names == label))
        fold[rows] = (start + np.arange(len(rows))) % num_folds
        start += len(rows)  # so that rare labels do not all fall into the first folds
    return _from_folds(fold, num_folds)


def grouped_folds(groups: Sequence[str], *, num_folds: int, seed: int) -> list[Split]:
    """Split C cells into folds of whole groups (donors, batches, data sets), balanced by their numbers of cells.

    Raises ConfigError if there is only one group.
    """
    names, group_of = np.unique(np.asarray(groups, str), return_inverse=True)
    num_folds = _check_folds(num_folds, len(names), what="groups")
    sizes = np.bincount(group_of)
    shuffled = np.random.default_rng(seed).permutation(len(names))
    fold_of_group, filled = np.empty(len(names), np.int64), np.zeros(num_folds, np.int64)
    for group in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        fold_of_group[group] = np.argmin(filled)
        filled[fold_of_group[group]] += sizes[group]
    return _from_folds(fold_of_group[group_of], num_folds)


def few_labels(labels: Sequence[str], *, fraction: float, seed: int, least: int = 2) -> Split:
    """Keep a share of each label's cells for training, at least ``least`` if it has more; all others are the test.

    Raises ConfigError if ``fraction`` is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"fraction is {fraction}.", remedy="Give a share of the cells above 0 and below 1.")
    names = np.asarray(labels, str)
    kept = []
    for number, label in enumerate(np.unique(names)):
        rows = np.random.default_rng([seed, number]).permutation(np.flatnonzero(names == label))
        count = min(max(least, round(fraction * len(rows))), max(1, len(rows) - 1))
        kept.append(rows[:count])
    train = np.sort(np.concatenate(kept)) if kept else np.empty(0, np.int64)
    return Split(f"{100 * fraction:g} % of the labels, seed {seed}", train, _others(train, len(names)))


def leave_one_label_out(labels: Sequence[str], *, num_folds: int, seed: int) -> list[Split]:
    """Return one split per label: no cell of it is for training; it and one fold of the others are the test.

    Raises ConfigError for fewer than three labels, since two must be left to tell apart.
    """
    names = np.asarray(labels, str)
    kinds = np.unique(names)
    if len(kinds) < 3:
        raise ConfigError(
            f"Leaving a label out needs at least three labels; these cells have {len(kinds)}.",
            remedy="Use another protocol for these cells.",
        )
    test = stratified_folds(labels, num_folds=num_folds, seed=seed)[0].test
    splits = []
    for label in kinds:
        left_out = np.flatnonzero(names == label)
        scored = np.union1d(test, left_out)
        splits.append(Split(str(label), _others(scored, len(names)), scored))
    return splits


def _check_folds(num_folds: int, num_units: int, *, what: str) -> int:
    if num_folds < 2 or num_units < 2:
        raise ConfigError(
            f"{num_units} {what} cannot be split into {num_folds} folds.", remedy=f"Give at least two {what} and folds."
        )
    return min(num_folds, num_units)


def _from_folds(fold: Int64, num_folds: int) -> list[Split]:
    return [
        Split(f"fold {number + 1}", np.flatnonzero(fold != number), np.flatnonzero(fold == number))
        for number in range(num_folds)
    ]


def _others(rows: Int64, num_rows: int) -> Int64:
    return np.setdiff1d(np.arange(num_rows), rows)
