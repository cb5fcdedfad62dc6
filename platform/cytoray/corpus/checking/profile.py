"""Profiles of sources: counters over their cells that can be merged and are stored as plain JSON."""

# C cells, V genes of the vocabulary (up to the last one seen), K histogram bins

from __future__ import annotations

import base64
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytoray.tokens.cells import Int64
from cytoray.tokens.labels import label_text
from cytoray.tokens.vocabulary import GeneMapping

BINS_PER_OCTAVE = 8  # a depth is known to 9 %
NUM_DEPTH_BINS = 33 * BINS_PER_OCTAVE  # to 2^33 counts a cell
NUM_GENE_BINS = 17 * BINS_PER_OCTAVE  # to 131,072 genes a cell
NUM_VALUE_BINS = 51
EXAMPLES = 10  # names shown of many
MOST_GROUPS = 1_000  # genes with several columns that are listed one by one
LABEL_COLUMNS = 20
LABEL_VALUES = 100  # of a column, when written; the rest are summed under OTHER
OTHER = "(other)"
LABEL_CHARACTERS = 80
MOST_DISTINCT = 1_000  # values of a column that describes groups of cells
JUDGED_ROWS = 4_096


@dataclass(frozen=True)
class GeneOverlap:
    """How the genes of a source match the vocabulary."""

    num_genes: int
    num_matched: int  # columns that have a place in the vocabulary
    how: Mapping[str, int]  # columns by the kind of name that matched
    unknown: tuple[str, ...]  # the first few unknown names
    duplicates: Mapping[str, tuple[str, ...]]  # genes with several columns, and those columns' names
    num_duplicates: int  # genes with several columns
    id_type: str
    species: str
    older: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # genes, and columns with an older name left out
    num_other_species: int = 0  # columns of another species beside human ones

    @staticmethod
    def of(mapping: GeneMapping, names: Sequence[str]) -> GeneOverlap:
        """Summarise a mapping of G genes with these names in the file."""
        return GeneOverlap(
            num_genes=len(mapping.ids),
            num_matched=mapping.num_matched,
            how={str(kind): count for kind, count in mapping.how.items() if count},
            unknown=tuple(mapping.unknown[:EXAMPLES]),
            duplicates=_first_groups(mapping.summed, names),
            num_duplicates=len(mapping.duplicates),
            id_type=mapping.id_type,
            species=mapping.species,
            older=_first_groups(mapping.older, names),
            num_other_species=int((mapping.origin < 0).sum()),
        )

    @property
    def share(self) -> float:
        """Share of the columns that the vocabulary knows; 0 without any."""
        return self.num_matched / self.num_genes if self.num_genes else 0.0


def _first_groups(columns: Mapping[str, Sequence[int]], names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Names of the columns of the first genes that have several."""
    return {token: tuple(names[column] for column in columns[token]) for token in list(columns)[:MOST_GROUPS]}


def column_values(mapping: GeneMapping, totals: npt.NDArray[np.float64]) -> dict[str, tuple[float, ...]]:
    """Values by column of each gene in ``GeneOverlap.duplicates`` or ``older``, from the ``totals`` of G columns.

    Those of its summed columns come first, then those of its older names.
    """
    tokens = [*list(mapping.summed)[:MOST_GROUPS], *list(mapping.older)[:MOST_GROUPS]]
    groups = {token: [*mapping.summed.get(token, ()), *mapping.older.get(token, ())] for token in dict.fromkeys(tokens)}
    return {token: tuple(totals[columns].tolist()) for token, columns in groups.items()}


def _zeros(size: int) -> Callable[[], Int64]:
    """A function that makes ``size`` counters at zero."""
    return lambda: np.zeros(size, np.int64)


@dataclass(frozen=True, eq=False)
class SourceProfile:
    """Counters over the cells of a source, or of several.

    All but ``num_read`` and ``warned`` are those of the kept cells. A profile without cells is the neutral element of
    ``merge``.
    """

    num_read: int = 0
    num_kept: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)  # cells by rule
    warned: Mapping[str, int] = field(default_factory=dict)  # cells by rule
    findings: Mapping[str, str] = field(default_factory=dict)  # rules about the whole file, and what was found
    num_rounded: int = 0  # values that were near an integer and were rounded to it
    depth: Int64 = field(
        default_factory=_zeros(NUM_DEPTH_BINS)
    )  # (K,) cells by sum of values, BINS_PER_OCTAVE bins from 1 upwards
    genes_per_cell: Int64 = field(
        default_factory=_zeros(NUM_GENE_BINS)
    )  # (K,) likewise, cells by expressed vocabulary genes
    bins: Int64 = field(default_factory=_zeros(NUM_VALUE_BINS))  # (51,) entries by bin in a sample of the cells
    num_binned: int = 0  # cells of that sample
    gene_cells: Int64 = field(default_factory=_zeros(0))  # (V,) cells that express each gene
    labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # column of obs -> value -> cells
    genes: GeneOverlap | None = None  # None also if sources with different genes were merged
    sum_values: float = 0.0  # of all values of the kept cells
    lost_values: float = 0.0  # of those in columns that are left out
    column_values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # see the function of this name

    def merge(self, other: SourceProfile) -> SourceProfile:
        """The profile of both sets of cells together."""
        columns = {**self.labels, **other.labels}
        none: dict[str, int] = {}
        genes = self.genes if other.genes in (None, self.genes) else other.genes if self.genes is None else None
        return SourceProfile(
            num_read=self.num_read + other.num_read,
            num_kept=self.num_kept + other.num_kept,
            dropped=_add(self.dropped, other.dropped),
            warned=_add(self.warned, other.warned),
            findings={**self.findings, **other.findings},
            num_rounded=self.num_rounded + other.num_rounded,
            depth=self.depth + other.depth,
            genes_per_cell=self.genes_per_cell + other.genes_per_cell,
            bins=self.bins + other.bins,
            num_binned=self.num_binned + other.num_binned,
            gene_cells=_add_padded(self.gene_cells, other.gene_cells),
            labels={name: _add(self.labels.get(name, none), other.labels.get(name, none)) for name in columns},
            genes=genes,
            sum_values=self.sum_values + other.sum_values,
            lost_values=self.lost_values + other.lost_values,
            column_values=_add_columns(self.column_values, other.column_values) if genes else {},
        )

    def without(self, copies: SourceProfile) -> SourceProfile:
        """The profile after kept cells, whose own profile is ``copies``, turned out to repeat others.

        The values of single columns of a file may be missing in ``copies``; the columns then keep their share of all
        values, copies included.
        """
        if copies.num_kept == 0:
            return self
        sum_values = self.sum_values - copies.sum_values
        columns = _add_columns(self.column_values, copies.column_values, sign=-1)
        if not copies.column_values and self.sum_values:
            kept = sum_values / self.sum_values
            columns = {token: tuple(kept * value for value in values) for token, values in columns.items()}
        labels = {name: _subtract(counts, copies.labels.get(name, {})) for name, counts in self.labels.items()}
        return replace(
            self,
            num_kept=self.num_kept - copies.num_kept,
            dropped=_add(self.dropped, {"duplicate_cell": copies.num_kept}),
            num_rounded=self.num_rounded - copies.num_rounded,
            depth=self.depth - copies.depth,
            genes_per_cell=self.genes_per_cell - copies.genes_per_cell,
            bins=self.bins - copies.bins,
            num_binned=self.num_binned - copies.num_binned,
            gene_cells=_add_padded(self.gene_cells, -copies.gene_cells)[: len(self.gene_cells)],
            labels=labels,
            sum_values=sum_values,
            lost_values=max(0.0, self.lost_values - copies.lost_values),  # rounding may leave a trace below 0
            column_values=columns,
        )

    @property
    def num_detected(self) -> int:
        """Vocabulary genes that at least one cell expresses."""
        return int(np.count_nonzero(self.gene_cells))

    def top_genes(self, count: int) -> list[tuple[int, int]]:
        """The most widely expressed genes as (vocabulary id, cells), most cells first."""
        order = np.argsort(-self.gene_cells, kind="stable")[:count]
        return [(int(gene), int(self.gene_cells[gene])) for gene in order if self.gene_cells[gene]]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data, below 200 kB; ``from_json`` reads it back."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values.update(
            dropped=dict(self.dropped),
            warned=dict(self.warned),
            findings=dict(self.findings),
            depth=_to_runs(self.depth),
            genes_per_cell=_to_runs(self.genes_per_cell),
            bins=self.bins.tolist(),
            gene_cells=_to_text(self.gene_cells),
            labels={name: _trimmed(self.labels[name]) for name in list(self.labels)[:LABEL_COLUMNS]},
            column_values=dict(self.column_values),
            genes=vars(self.genes) if self.genes is not None else None,
        )
        return values

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> SourceProfile:
        """Undo ``to_json``, JSON in between or not."""
        genes = values["genes"]
        if genes is not None:
            groups = {name: _tuples(genes[name]) for name in ("duplicates", "older")}
            genes = GeneOverlap(**{**genes, "unknown": tuple(genes["unknown"]), **groups})
        arrays = {
            "depth": _from_runs(values["depth"], NUM_DEPTH_BINS),
            "genes_per_cell": _from_runs(values["genes_per_cell"], NUM_GENE_BINS),
            "bins": np.array(values["bins"], np.int64),
            "gene_cells": _from_text(values["gene_cells"]),
            "column_values": _tuples(values["column_values"]),
        }
        return SourceProfile(**{**values, **arrays, "genes": genes})


def merge_profiles(profiles: Iterable[SourceProfile]) -> SourceProfile:
    """All of them together; none at all gives the empty profile."""
    return reduce(SourceProfile.merge, profiles, SourceProfile())


def log2_histogram(values: npt.NDArray[Any], num_bins: int) -> Int64:
    """Count values (C,) into ``num_bins`` bins, ``BINS_PER_OCTAVE`` to a doubling from 1; below 1 is the first bin."""
    places = np.floor(np.log2(np.maximum(values, 1)) * BINS_PER_OCTAVE).astype(np.int64)
    return np.bincount(np.minimum(places, num_bins - 1), minlength=num_bins)


def histogram_median(histogram: Int64) -> float:
    """The median of what ``log2_histogram`` counted, to the width of a bin; 0 without any."""
    total = int(histogram.sum())
    if total == 0:
        return 0.0
    place = int(np.searchsorted(np.cumsum(histogram), (total + 1) // 2))
    return float(2.0 ** ((place + 0.5) / BINS_PER_OCTAVE)) if place else 1.0


def describing_columns(frame: pd.DataFrame) -> tuple[str, ...]:
    """Columns of texts or flags whose values describe groups of cells, a constant (one tissue) included."""
    spread = frame.iloc[:: max(1, -(-len(frame) // JUDGED_ROWS))]  # a few thousand rows distinguish names from groups
    found = []
    for name, column in frame.items():
        if isinstance(column.dtype, pd.CategoricalDtype):
            few = len(column.cat.categories) <= MOST_DISTINCT
        elif column.dtype.kind in "OUb" or isinstance(column.dtype, pd.StringDtype | pd.BooleanDtype):
            few = spread[name].astype(str).nunique() <= min(MOST_DISTINCT, max(1, len(spread) // 2))
        else:
            few = False
        if few:
            found.append(str(name))
    return tuple(found)


def count_labels(frame: pd.DataFrame, columns: Iterable[str]) -> dict[str, dict[str, int]]:
    """Cells by value in each of ``columns``; a missing value counts nowhere."""
    counted: dict[str, dict[str, int]] = {}
    for name in list(columns)[:LABEL_COLUMNS]:
        counts = frame[name].value_counts(sort=False)
        texts: Counter[str] = Counter()
        for value, count in counts[counts > 0].items():
            texts[(label_text(value) or "")[:LABEL_CHARACTERS]] += int(count)
        counted[name] = dict(texts)
    return counted


def _add(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    """Counters summed, zeros left out, by name: equal counts look equal whatever came first."""
    total = Counter(one)
    total.update(other)
    return {name: count for name, count in sorted(total.items()) if count}


def _subtract(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    """Counters less those of ``other``, zeros left out."""
    return {name: count - other.get(name, 0) for name, count in one.items() if count > other.get(name, 0)}


def _add_columns(
    one: Mapping[str, tuple[float, ...]], other: Mapping[str, tuple[float, ...]], *, sign: int = 1
) -> dict[str, tuple[float, ...]]:
    """Values by column summed; either may be empty, else both name the same genes."""
    if not one or not other:
        return dict(one or other)
    return {
        token: tuple(mine + sign * its for mine, its in zip(values, other[token], strict=True))
        for token, values in one.items()
    }


def _tuples(groups: Mapping[str, Sequence[Any]]) -> dict[str, tuple[Any, ...]]:
    return {name: tuple(values) for name, values in groups.items()}


def _add_padded(one: Int64, other: Int64) -> Int64:
    """The sum of two arrays of counters, the shorter one filled up with zeros."""
    short, long = sorted((one, other), key=len)
    total = long.copy()
    total[: len(short)] += short
    return total


def _trimmed(counts: Mapping[str, int]) -> dict[str, int]:
    """The most frequent values, the rest under OTHER."""
    ranked = sorted(counts.items(), key=lambda item: (item[0] == OTHER, -item[1], item[0]))
    rest = sum(count for _, count in ranked[LABEL_VALUES:])
    kept = dict(ranked[:LABEL_VALUES])
    return _add(kept, {OTHER: rest}) if rest else kept


def _to_runs(histogram: Int64) -> list[list[int]]:
    """A histogram as [bin, count] pairs."""
    return [[int(place), int(histogram[place])] for place in np.flatnonzero(histogram)]


def _from_runs(pairs: list[list[int]], num_bins: int) -> Int64:
    histogram = np.zeros(num_bins, np.int64)
    for place, count in pairs:
        histogram[place] = count
    return histogram


def _to_text(counters: Int64) -> str:
    """Sixty thousand counters as compressed text: as a list they would be most of a report."""
    # All lowest bytes, then all second ones, and so on: the high ones are zeros and cost nothing.
    planes = counters.astype("<i8").view(np.uint8).reshape(-1, 8).T
    return base64.b85encode(zlib.compress(planes.tobytes(), 6)).decode()


def _from_text(text: str) -> Int64:
    planes = np.frombuffer(zlib.decompress(base64.b85decode(text)), np.uint8).reshape(8, -1)
    return np.ascontiguousarray(planes.T).view("<i8")[:, 0].astype(np.int64)
