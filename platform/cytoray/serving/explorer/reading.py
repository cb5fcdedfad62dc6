"""Read a session's file, in a process of its own: check it, and write its cells and columns for the model and the page.

``python -m cytoray.serving.explorer.reading FOLDER OPTIONS`` is started by `explorer.work`.
"""

# C cells

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from cytoray.corpus.checking.checks import RowChecks, check_rows, corpus_values, map_source_genes, source_findings
from cytoray.corpus.config import CheckConfig, RuleConfig, SourceConfig
from cytoray.corpus.readers.base import CellReader, SourceDescription
from cytoray.corpus.readers.opening import open_source
from cytoray.errors import CorpusError, CytorayError
from cytoray.serving.explorer.cells import CellWriter
from cytoray.serving.explorer.child import Report, child_main
from cytoray.serving.explorer.columns import Place, save_category, save_number
from cytoray.serving.explorer.sessions import Column, Finding, Session
from cytoray.tokens.labels import label_texts
from cytoray.tokens.packed import unpack
from cytoray.tokens.vocabulary import GeneMapping, GeneVocabulary

# The rules of offline answers: a query may hold normalised cells, and a cell without genes is shown as such.
CHECKS = CheckConfig(rules=RuleConfig(not_counts="warn", empty_cell="warn", too_few_genes="warn"))
ROWS_AT_A_TIME = 4_096
MOST_COLUMNS = 60
MOST_NUMBERED = 30  # distinct integers of a column that numbers groups, such as clusters
VOCABULARY = "vocabulary.json"
KINDS = {
    "counts": "Raw counts",
    "near_counts": "Counts, some of them rounded",
    "recoverable": "Log-normalised; the counts were restored exactly",
    "expression": "Normalised values, used as they are: bins depend on ranks only",
}


def read_file(folder: Path, options: dict[str, Any], report: Report) -> None:
    """Read the file ``options["uri"]``; the last report has ``findings``, ``columns`` and what else is known."""
    try:
        _read(folder, options, report)
    except CytorayError as error:  # the user knows the file by the name that it had before the upload
        problem, remedy = (text.replace(options["uri"], options["name"]) for text in (error.problem, error.remedy))
        raise CorpusError(problem, remedy=remedy.partition(", or set checks.")[0]) from error


def _read(folder: Path, options: dict[str, Any], report: Report) -> None:
    vocabulary = GeneVocabulary.from_json((folder / VOCABULARY).read_bytes())
    with open_source(SourceConfig(uri=options["uri"])) as reader:
        description = reader.describe()
        mapping = map_source_genes(reader, vocabulary, CHECKS)
        chosen = choose_rows(description.num_cells, most=options["max_cells"])
        report({"total": len(chosen)})
        kept = _write_cells(folder, reader, mapping, chosen, report)
        findings = [
            *_describe(description, mapping, kept),
            *_sampled(description.num_cells, len(chosen)),
            *_left_out(kept),
            *_remarks(reader, mapping, description),
        ]
        columns = [*_quality(Session(folder), kept), *_obs_columns(Session(folder), reader.obs.iloc[kept.rows])]
    report(
        {
            "findings": [finding.model_dump() for finding in findings],
            "columns": [column.model_dump() for column in columns],
            "num_cells": len(kept.rows),
            "values": kept.values,
        }
    )


def choose_rows(num_cells: int, *, most: int) -> npt.NDArray[np.int64]:
    """Choose the rows to show: all of them, or the same random sample each time, ascending."""
    if num_cells <= most:
        return np.arange(num_cells)
    return np.sort(np.random.default_rng(0).choice(num_cells, most, replace=False))


@dataclass(frozen=True, eq=False)
class _Kept:
    """The cells that passed the checks."""

    rows: npt.NDArray[np.int64]  # (C,)
    totals: npt.NDArray[np.float64]  # (C,)
    num_genes: npt.NDArray[np.int64]  # (C,) expressed, of the vocabulary
    values: str
    dropped: Counter[str]
    warned: Counter[str]


def _write_cells(
    folder: Path, reader: CellReader, mapping: GeneMapping, chosen: npt.NDArray[np.int64], report: Report
) -> _Kept:
    """Check the chosen rows slab by slab and write the cells that pass."""
    values = corpus_values([reader.value_kind], CHECKS)
    options = RowChecks(CHECKS, values=values, blank_other_species=True)
    writer = CellWriter(folder / "cells")
    rows, totals, lengths = [], [], []
    dropped: Counter[str] = Counter()
    warned: Counter[str] = Counter()
    for first, last in _slabs(chosen):
        checked = check_rows(reader, mapping, options, start=first, stop=last)
        places = np.flatnonzero(np.isin(checked.rows, chosen))
        cells = unpack(checked.cells).take(places)
        writer.add(cells)
        rows.append(checked.rows[places])
        totals.append(checked.sums[places])
        lengths.append(cells.num_genes_per_cell)
        dropped.update(checked.dropped)
        warned.update(checked.warned)
        report({"done": int(np.searchsorted(chosen, last))})
    kept = _Kept(np.concatenate(rows), np.concatenate(totals), np.concatenate(lengths), values, dropped, warned)
    if len(kept.rows) == 0:
        raise CorpusError("No cell of the file can be used.", remedy=f"Left out: {dict(dropped)}.")
    names = [str(name) for name in reader.obs.index[kept.rows]]
    writer.finish(
        num_genes=int(mapping.ids.max()) + 1,
        totals=kept.totals,
        genes=mapping.measured,
        about={"names": names, "rows": kept.rows.tolist(), "values_are": values},
    )
    return kept


def _slabs(chosen: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield the row ranges that hold chosen rows."""
    for slab in np.unique(chosen // ROWS_AT_A_TIME).tolist():
        inside = chosen[chosen // ROWS_AT_A_TIME == slab]
        yield int(inside[0]), int(inside[-1]) + 1


def _describe(description: SourceDescription, mapping: GeneMapping, kept: _Kept) -> Iterator[Finding]:
    """Findings about the whole file: cells, values, genes."""
    cells = f"{description.num_cells:,} cells and {description.num_genes:,} genes ({description.format})."
    yield Finding(level="good", title="Cells", detail=cells)
    kind = f"{KINDS.get(description.value_kind, description.value_kind)} (from {description.matrix})."
    exact = description.value_kind in ("counts", "near_counts", "recoverable")
    yield Finding(level="good" if exact else "note", title="Values", detail=kind)
    num_known, num_genes = mapping.num_matched, len(mapping.ids)
    share = num_known / num_genes
    detail = (
        f"The model knows {num_known:,} of {num_genes:,} ({share:.0%}); names are {mapping.id_type}, species "
        f"{mapping.species}. A cell expresses {int(np.median(kept.num_genes)):,} of them (median)."
    )
    yield Finding(level="good" if share >= 0.5 else "warning", title="Genes", detail=detail)


def _remarks(reader: CellReader, mapping: GeneMapping, description: SourceDescription) -> Iterator[Finding]:
    """Remarks on the genes, by rule, and on the file."""
    for rule, text in source_findings(reader, mapping, CHECKS).items():
        if rule not in ("not_counts", "recovered"):  # ``_describe`` says what the values are
            yield Finding(level="note", title="Genes", detail=f"{text[0].upper()}{text[1:]}.")
    for note in description.notes:
        yield Finding(level="note", title="File", detail=f"{note[0].upper()}{note[1:]}.")


def _sampled(num_cells: int, num_chosen: int) -> Iterator[Finding]:
    if num_chosen < num_cells:
        detail = f"{num_chosen:,} of {num_cells:,} cells are shown, a random sample. `cytoray annotate` answers all."
        yield Finding(level="warning", title="Sample", detail=detail)


def _left_out(kept: _Kept) -> Iterator[Finding]:
    """Findings about cells that were left out, or have no answer."""
    reasons = {
        "not_recoverable": "their counts cannot be restored exactly",
        "duplicate_barcode": "their name stands for an earlier cell as well",
        "empty_cell": "they have no counts",
        "too_few_genes": "they express no gene that the model knows",
    }
    for counts, outcome in ((kept.dropped, "left out"), (kept.warned, "kept, but")):
        for rule, count in counts.items():
            if count and rule in reasons:
                yield Finding(level="warning", title="Cells", detail=f"{count:,} cells are {outcome}: {reasons[rule]}.")


def _quality(session: Session, kept: _Kept) -> Iterator[Column]:
    """Counts and genes of each cell."""
    title = "Counts per cell" if kept.values == "counts" else "Sum of values"
    for key, name, values in (("total", title, kept.totals), ("genes", "Genes per cell", kept.num_genes)):
        if column := save_number(session, Place(f"quality.{key}", "quality", name), values):
            yield column


def _obs_columns(session: Session, obs: pd.DataFrame) -> Iterator[Column]:
    """The columns of obs that are numbers, or texts that group cells."""
    for number, name in enumerate(list(obs.columns)[:MOST_COLUMNS]):
        place, values = Place(f"obs.{number}", "obs", str(name)), obs[name]
        if _is_measure(values):
            column = save_number(session, place, values.to_numpy(np.float64, na_value=np.nan))
        elif values.nunique() <= max(2, len(values) // 2):  # not names
            column = save_category(session, place, pa.array(label_texts(values), pa.string()))
        else:
            column = None
        if column is not None:
            yield column


def _is_measure(values: pd.Series[Any]) -> bool:
    """Whether a column holds numbers, other than a few integers that number groups."""
    if isinstance(values.dtype, pd.CategoricalDtype) or values.dtype.kind not in "iuf":
        return False
    return values.dtype.kind == "f" or values.nunique() > MOST_NUMBERED


if __name__ == "__main__":
    child_main(read_file)
