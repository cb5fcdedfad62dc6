"""Read cells straight from a file, checked and mapped as in an ingest: for evaluation, queries and embedding."""

# C cells

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cytoray.corpus.checking.checks import RowChecks, check_rows, corpus_values, map_source_genes
from cytoray.corpus.config import CheckConfig, RuleConfig, SourceConfig
from cytoray.corpus.readers.opening import open_source
from cytoray.errors import CorpusError
from cytoray.tokens.cells import Int32, Int64, SparseCells
from cytoray.tokens.packed import unpack
from cytoray.tokens.vocabulary import GeneVocabulary

ROWS_AT_A_TIME = 4_096
# Bins depend on ranks only, so a query may hold normalised cells, which a corpus would not accept.
_CHECKS = CheckConfig(rules=RuleConfig(not_counts="warn"))
# Callers that need an answer for every cell report those without genes by name, so they are kept.
_KEEP_ALL = CheckConfig(rules=RuleConfig(not_counts="warn", empty_cell="warn", too_few_genes="warn"))


@dataclass(frozen=True)
class NamedCells:
    """Cells with their names and labels in the file they came from."""

    cells: SparseCells
    names: tuple[str, ...]  # (C,)
    labels: tuple[str | None, ...]  # (C,), all None if no label was asked for
    second: tuple[str | None, ...] = ()  # (C,) values of a second column of obs, if one was asked for
    measured: Int32 | None = None  # ids of the vocabulary's genes that the file has a column of, ascending
    rows: Int64 | None = None  # (C,) of each cell in the file


def read_cells(
    source: SourceConfig,
    *,
    start: int = 0,
    stop: int | None = None,
    vocabulary: GeneVocabulary | None = None,
    keep_empty: bool = False,
    label_key: str | None = None,
) -> NamedCells:
    """Read, check and map the cells of a row range of one source; CorpusError names what is wrong.

    ``vocabulary`` is the default one if None. Cells without any of its genes are left out unless ``keep_empty``; cells
    without a label in ``label_key`` are not.
    """
    checks = _KEEP_ALL if keep_empty else _CHECKS
    with _Reading(source, vocabulary or GeneVocabulary.load_default(), checks) as reading:
        return reading.read(start=start, stop=stop, label_key=label_key)


def read_labelled_cells(
    source: SourceConfig, label_key: str, *, second_key: str | None = None, vocabulary: GeneVocabulary | None = None
) -> NamedCells:
    """Read all cells of one source that carry a label in the column ``label_key`` of obs.

    ``second_key`` is a further column of obs, such as the batch, whose values are returned as well.
    """
    with _Reading(source, vocabulary or GeneVocabulary.load_default(), _CHECKS) as reading:
        named = reading.read(label_key=label_key, second_key=second_key)
    rows = np.flatnonzero([label is not None for label in named.labels])
    if len(rows) == 0:
        raise CorpusError(f"{source.uri}: no cell has a label in {label_key!r}.", remedy="Name another column.")
    return replace(
        named,
        cells=named.cells.take(rows),
        names=tuple(named.names[row] for row in rows),
        labels=tuple(named.labels[row] for row in rows),
        second=tuple(named.second[row] for row in rows) if second_key is not None else (),
        rows=None if named.rows is None else named.rows[rows],
    )


class _Reading:
    """One source, open, with its genes mapped."""

    def __init__(self, source: SourceConfig, vocabulary: GeneVocabulary, checks: CheckConfig) -> None:
        self._reader = open_source(source)
        self._vocabulary, self._checks = vocabulary, checks

    def __enter__(self) -> _Reading:
        self._reader.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._reader.__exit__(*error)

    def read(
        self, *, start: int = 0, stop: int | None = None, label_key: str | None = None, second_key: str | None = None
    ) -> NamedCells:
        """Read the cells of a row range in slabs, so that only checked cells stay in memory."""
        reader = self._reader
        num_cells = reader.describe().num_cells
        stop = num_cells if stop is None else min(stop, num_cells)
        labels = reader.labels(label_key) if label_key is not None else [None] * num_cells
        second = reader.labels(second_key) if second_key is not None else None
        mapping = map_source_genes(reader, self._vocabulary, self._checks)
        options = RowChecks(
            self._checks,
            values=corpus_values([reader.value_kind], self._checks),
            blank_other_species=self._checks is _KEEP_ALL,
        )
        parts, rows = [], []
        for first in range(start, stop, ROWS_AT_A_TIME):
            checked = check_rows(reader, mapping, options, start=first, stop=min(first + ROWS_AT_A_TIME, stop))
            parts.append(unpack(checked.cells))
            rows.append(checked.rows)
        kept = np.concatenate(rows) if rows else np.empty(0, np.int64)
        names = tuple(str(reader.obs.index[row]) for row in kept)
        others = () if second is None else tuple(second[row] for row in kept)
        measured = mapping.measured
        chosen = tuple(labels[row] for row in kept)
        return NamedCells(SparseCells.concatenate(parts), names, chosen, others, measured, kept)
