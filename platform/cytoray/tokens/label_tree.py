"""A tree of cell-type labels: a cell labelled "T cell" may be any kind of T cell."""

# K labels

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cytoray.errors import ConfigError

COLUMNS = ("label", "parent")


@dataclass(frozen=True)
class LabelTree:
    """The parent of each label; roots have none, and names in between need not be labels of cells."""

    parents: Mapping[str, str]

    def __post_init__(self) -> None:
        """Raise ConfigError if a label is its own ancestor."""
        for label in self.parents:
            path = self.path(label)
            if path[-1] in path[:-1]:
                raise ConfigError(
                    f"The label tree has a cycle: {' > '.join(path)}.", remedy="Give each label a parent above it."
                )

    @staticmethod
    def parse(text: str, *, source: str) -> LabelTree:
        """Read a CSV or TSV table with the columns ``label`` and ``parent``; an empty parent makes a root.

        Raises ConfigError that names ``source`` for other columns, a cycle, or a label with two parents.
        """
        lines = text.splitlines()
        rows = list(csv.DictReader(lines, delimiter="\t" if lines and "\t" in lines[0] else ","))
        if not rows or not set(COLUMNS) <= rows[0].keys():
            raise ConfigError(
                f"{source}: not a table with the columns label and parent.",
                remedy="Write one row per label, such as `CD4 T cell,T cell` below the header `label,parent`.",
            )
        parents: dict[str, str] = {}
        for row in rows:
            label, parent = (str(row[column] or "").strip() for column in COLUMNS)
            if parents.get(label, parent) != parent:
                problem = f"{source}: {label!r} has two parents, {parents[label]!r} and {parent!r}."
                raise ConfigError(problem, remedy="Keep one of them.")
            if parent:
                parents[label] = parent
        return LabelTree(parents)

    def path(self, label: str) -> list[str]:
        """The label and its ancestors, up to the root or to the first name that comes twice."""
        path = [label]
        while (parent := self.parents.get(path[-1])) is not None:
            path.append(parent)
            if path.count(parent) > 1:
                break
        return path

    def common_ancestor(self, labels: Sequence[str]) -> str | None:
        """Return the lowest name that each of the labels is or lies below; None if they share no name."""
        shared = set.intersection(*(set(self.path(label)) for label in labels)) if labels else set()
        return next((name for name in self.path(labels[0]) if name in shared), None) if labels else None

    def below(self, labels: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Whether label j is label i or lies below it, bool (K, K) by ``[i, j]``."""
        paths = [set(self.path(label)) for label in labels]
        return np.array([[upper in path for path in paths] for upper in labels], bool).reshape(len(labels), len(labels))
