"""Apply the data rules: turn rows of a file into cells of the corpus and count those left out by rule."""

# C cells, G genes

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cytoray.corpus.checking.counts import recover_counts
from cytoray.corpus.checking.observe import KeptCells, Observer
from cytoray.corpus.checking.profile import SourceProfile
from cytoray.corpus.checking.scan import NEGATIVE, NON_INTEGER, NOT_FINITE, RowScan, first_fault, scan_rows
from cytoray.corpus.checking.selection import Mask, select_rows
from cytoray.corpus.checking.source_checks import (
    COUNT_KINDS,
    Values,
    corpus_values,
    map_source_genes,
    source_findings,
)
from cytoray.corpus.config import CheckConfig, RuleConfig
from cytoray.corpus.readers.base import CellReader
from cytoray.errors import CorpusError
from cytoray.tokens.cells import Int32, Int64, UInt64
from cytoray.tokens.keys import Purpose, cell_id, combine, uniform
from cytoray.tokens.packed import PackedCells, concatenate, content_hashes, pack_rows, take
from cytoray.tokens.vocabulary import GeneMapping

__all__ = [
    "CheckedRows",
    "RowChecks",
    "blank_rows",
    "check_rows",
    "corpus_values",
    "map_source_genes",
    "other_species",
    "profile_cells",
    "refuse_unrecoverable",
    "source_cell_ids",
    "source_findings",
    "split_mask",
]

Sums = npt.NDArray[np.float64]
HELD_OUT_SHARE = 0.2
SLAB_ROWS = 4_096  # of a range that are in memory at a time: some 50 MB at 1,500 genes
FEWEST_JUDGED = 100  # rows from which the share of lost cells is judged
FILTERED, OTHER_SIDE = "filter", "other_side_of_split"  # reasons to leave out a cell that breaks no rule

_VALUE_RULES = {"not_finite": NOT_FINITE, "negative": NEGATIVE, "non_integer": NON_INTEGER}
_PROBLEMS = {
    "not_finite": "NaN or infinite values",
    "negative": "negative values",
    "non_integer": "non-integer values among its counts",
    "not_recoverable": "log-normalised values whose counts cannot be restored exactly",
    "mixed_species": "less than checks.min_human_share of their counts in human genes",
    "empty_cell": "no counts",
    "too_few_genes": "fewer vocabulary genes than checks.min_genes",
    "duplicate_barcode": "the name of an earlier cell of the file",
    "unsorted_indices": "column indices that are out of order or repeated",
}
_REMEDIES = {
    "not_finite": "Replace or remove such values (a missing count is a zero)",
    "negative": "Expression is never negative (scaled data?): name the counts with `matrix: layers/NAME` or raw.X",
    "non_integer": "Most values here are counts, but not all: name the raw counts with `matrix: layers/NAME` or raw.X",
    "not_recoverable": "Name the matrix of raw counts with `matrix: layers/NAME` or raw.X",
    "mixed_species": "Remove the cells and genes of the other species",
    "empty_cell": "Remove these cells",
    "too_few_genes": "Remove these cells, lower checks.min_genes",
    "duplicate_barcode": "Give each cell its own name",
    "unsorted_indices": "Write the file again after adata.X.sum_duplicates()",
}


@dataclass(frozen=True)
class RowChecks:
    """How rows are checked, and in which form their values are kept."""

    checks: CheckConfig = field(default_factory=CheckConfig)
    filter: str | None = None  # of the ingest; that of the source applies as well
    values: Values = "counts"
    genes: Int32 | None = None  # ascending gene ids: the table of the packed cells, if they have one
    blank_other_species: bool = False  # keep the cells that mixed_species would drop, without any gene


@dataclass(frozen=True, eq=False)
class CheckedRows:
    """Cells that passed, their rows in the file, and the number left out by each rule."""

    cells: PackedCells
    rows: Int64  # (C,) row of each kept cell in its file
    content: UInt64  # (C,) hash of each cell's genes and values
    sums: Sums  # (C,) of each cell's values, genes outside the vocabulary included
    dropped: dict[str, int]  # cells by rule
    warned: dict[str, int]  # cells by rule
    profile: SourceProfile


def check_rows(reader: CellReader, mapping: GeneMapping, options: RowChecks, *, start: int, stop: int) -> CheckedRows:
    """Read rows ``start`` to ``stop``, apply the rules of ``options`` and map the cells to the vocabulary.

    A cell that breaks several rules is dropped by the first of them. Copies of a cell are not detected here: they may
    be in another range or file. Raises CorpusError, which names file, rule, cell and gene, for a rule of severity
    error.
    """
    findings = source_findings(reader, mapping, options.checks)
    kind = reader.value_kind
    assert options.values == "expression" or corpus_values([kind], options.checks) == "counts", f"no counts: {kind}"
    observer = Observer(reader, mapping, findings)
    repeated = _repeated_names(reader)
    parts = []
    for first in range(start, max(stop, start + 1), SLAB_ROWS):  # an empty range is one empty slab
        slab = _Slab(reader, options, first, min(first + SLAB_ROWS, stop))
        kept = _check_slab(slab, mapping, repeated)
        observer.add(kept)
        observer.count(read=len(slab.kept), dropped=slab.dropped, warned=slab.warned, rounded=slab.num_rounded)
        parts.append((kept.cells, kept.rows, kept.sums))  # without the matrix: only that of one slab is in memory
    profile = observer.profile()
    if stop - start >= FEWEST_JUDGED:
        refuse_unrecoverable(reader, profile, options.checks)
    cells = concatenate([cells for cells, _, _ in parts]) if len(parts) > 1 else parts[0][0]
    return CheckedRows(
        cells,
        np.concatenate([rows for _, rows, _ in parts]),
        content_hashes(cells),
        np.concatenate([sums for _, _, sums in parts]),
        dict(profile.dropped),
        dict(profile.warned),
        profile,
    )


def profile_cells(reader: CellReader, mapping: GeneMapping, options: RowChecks, rows: Int64) -> SourceProfile:
    """The profile of the cells at ``rows`` (ascending), which passed ``check_rows``, and of no others."""
    observer = Observer(reader, mapping, {})
    repeated = _repeated_names(reader)
    num_cells = len(reader.obs)
    for first in np.unique(rows // SLAB_ROWS * SLAB_ROWS).tolist():
        slab = _Slab(reader, options, first, min(first + SLAB_ROWS, num_cells))
        slab.leave_out(FILTERED, ~np.isin(np.arange(first, first + len(slab.kept)), rows))
        observer.add(_check_slab(slab, mapping, repeated))
        observer.count(read=0, dropped={}, warned={}, rounded=slab.num_rounded)
    return observer.profile()


def source_cell_ids(reader: CellReader, rows: Int64) -> UInt64:
    """The ids (C,) of the cells at ``rows`` of a source: they do not depend on the folder or on what else is read."""
    names = reader.obs.index[rows]
    return cell_id(reader.source.identity, [f"{row}\0{name}" for row, name in zip(rows.tolist(), names, strict=True)])


def _repeated_names(reader: CellReader) -> Mask:
    """Which cells of the whole source repeat the name of an earlier one."""
    index = reader.obs.index
    if index.is_unique:  # pandas caches this but not the mask, and every range of rows needs it
        return np.zeros(len(index), dtype=bool)
    return np.asarray(index.duplicated(keep="first"))


def refuse_unrecoverable(reader: CellReader, profile: SourceProfile, checks: CheckConfig) -> None:
    """Raise CorpusError if the counts of too few cells of a log-normalised source, or of a range, were restored."""
    lost = profile.dropped.get("not_recoverable", 0)
    judged = profile.num_read - profile.dropped.get(FILTERED, 0) - profile.dropped.get(OTHER_SIDE, 0)
    if lost <= (1 - checks.min_recoverable) * judged:
        return
    raise CorpusError(
        f"{reader.source.uri}: only {1 - lost / judged:.0%} of {judged:,} log-normalised cells of {reader.matrix} can "
        "be restored to exact counts.",
        remedy=f"{_REMEDIES['not_recoverable']}, or lower checks.min_recoverable.",
        uri=reader.source.uri,
        rule="min_recoverable",
        key=reader.matrix,
    )


def split_mask(names: Sequence[str], rows: Literal["all", "train", "held_out"]) -> Mask:
    """Which cells (C,) belong to one side of the split by cell name, which never changes."""
    if rows == "all":
        return np.ones(len(names), dtype=bool)
    held_out = uniform(combine(int(Purpose.SPLIT), cell_id("", names))) < HELD_OUT_SHARE
    return held_out if rows == "held_out" else ~held_out


def other_species(matrix: sparse.csr_matrix, mapping: GeneMapping, *, min_human_share: float) -> Mask:
    """Which cells (C,) of a mixture of species have a smaller share of their recognised counts in human genes."""
    return mapping.of_other_species(matrix.data, matrix.indices, matrix.indptr, min_human_share=min_human_share)


def blank_rows(matrix: sparse.csr_matrix, rows: Mask) -> sparse.csr_matrix:
    """The matrix (C, G) with zeros for all values of some rows (C,); the given one is not changed."""
    if not rows.any():
        return matrix
    blanked = matrix.copy()
    blanked.data[np.repeat(rows, np.diff(matrix.indptr))] = 0
    return blanked


class _Slab:
    """Neighbouring rows of a source: which are kept, and how many each rule left out."""

    def __init__(self, reader: CellReader, options: RowChecks, start: int, stop: int) -> None:
        self.reader, self.options, self.start = reader, options, start
        self.obs = reader.obs.iloc[start:stop]
        self.names = [str(name) for name in self.obs.index]
        self.kept = np.ones(stop - start, dtype=bool)
        self.dropped: Counter[str] = Counter()
        self.warned: Counter[str] = Counter()
        self.num_rounded = 0
        before = getattr(reader, "num_unsorted_rows", 0)
        self.matrix = reader.read_rows(start, stop)
        self.num_unsorted = getattr(reader, "num_unsorted_rows", 0) - before

    def leave_out(self, reason: str, hit: Mask) -> None:
        """Leave out the rows of the mask ``hit`` (C,) and count them."""
        self.dropped[reason] += int((hit & self.kept).sum())
        self.kept &= ~hit

    def apply(self, rule: str, hit: Mask) -> None:
        """Apply the severity of a rule to the kept rows of the mask ``hit`` (C,)."""
        broken = hit & self.kept
        if not broken.any():
            return
        severity = getattr(self.options.checks.rules, rule)
        if severity == "error":
            raise self.refusal(rule, broken)
        if severity == "drop":
            self.leave_out(rule, broken)
        else:
            self.warned[rule] += int(broken.sum())

    def refusal(self, rule: str, broken: Mask) -> CorpusError:
        """The error that names the first row that breaks a rule and, if a value does, its gene."""
        row = int(np.flatnonzero(broken)[0])
        where = f"the first is cell {self.names[row]!r} (row {self.start + row:,})"
        details = {"cell": self.names[row], "row": self.start + row, "key": self.reader.matrix}
        if rule in _VALUE_RULES:
            cell = slice(self.matrix.indptr[row], self.matrix.indptr[row + 1])
            entry = cell.start + first_fault(self.matrix.data[cell], _VALUE_RULES[rule])
            gene, value = self.reader.gene_names[self.matrix.indices[entry]], self.matrix.data[entry]
            where += f", gene {gene!r}, with {float(value):g}"
            details["gene"] = gene
        return self._refusal(rule, int(broken.sum()), where, details)

    def _refusal(self, rule: str, count: int, where: str, details: dict[str, object]) -> CorpusError:
        milder = [value for value in get_args(RuleConfig.model_fields[rule].annotation) if value != "error"]
        cells = "1 cell has" if count == 1 else f"{count:,} cells have"
        return CorpusError(
            f"{self.reader.source.uri}: {self.reader.matrix}: {cells} {_PROBLEMS[rule]} (in rows {self.start:,} to "
            f"{self.start + len(self.kept):,}); {where}.",
            remedy=f"{_REMEDIES[rule]}, or set checks.rules.{rule} to {' or '.join(milder)}.",
            uri=self.reader.source.uri,
            rule=rule,
            **details,
        )

    def check_order(self) -> None:
        """Apply the rule unsorted_indices; the reader reports only the number of rows."""
        if not self.num_unsorted:
            return
        if self.options.checks.rules.unsorted_indices == "error":
            where = "they would be read in order"
            raise self._refusal("unsorted_indices", self.num_unsorted, where, {"key": self.reader.matrix})
        self.warned["unsorted_indices"] += self.num_unsorted


def _check_slab(slab: _Slab, mapping: GeneMapping, repeated: Mask) -> KeptCells:
    """The cells of a slab that pass; ``repeated`` marks those of the whole source that repeat an earlier name."""
    reader, options = slab.reader, slab.options
    slab.check_order()
    for expression, where in ((reader.source.filter, "filter of the source"), (options.filter, "filter of the ingest")):
        if expression is not None:
            chosen = select_rows(slab.obs, expression, where=f"{reader.source.uri}: {where}")
            slab.leave_out(FILTERED, ~chosen)
    slab.leave_out(OTHER_SIDE, ~split_mask(slab.names, reader.source.rows))
    slab.apply("duplicate_barcode", repeated[slab.start : slab.start + len(slab.kept)])
    scan = scan_rows(slab.matrix, counts=reader.value_kind in ("counts", "near_counts"))
    for rule, fault in _VALUE_RULES.items():
        slab.apply(rule, (scan.faults & fault) > 0)
    matrix, sums = _as_counts(slab, scan)
    others = other_species(matrix, mapping, min_human_share=options.checks.min_human_share)
    if options.blank_other_species:
        matrix, sums = blank_rows(matrix, others), np.where(others, 0, sums)
    else:
        slab.apply("mixed_species", others)
    slab.apply("empty_cell", sums == 0)
    kept = np.flatnonzero(slab.kept)
    ids = source_cell_ids(reader, kept + slab.start)
    cells = _packed(slab, matrix if slab.kept.all() else matrix[kept], mapping, ids)
    few = np.zeros(len(slab.kept), dtype=bool)
    few[kept] = (cells.num_genes_per_cell < options.checks.min_genes) & (sums[kept] > 0)
    slab.apply("too_few_genes", few)
    if not slab.kept[kept].all():
        cells = take(cells, np.flatnonzero(slab.kept[kept]))
        kept = kept[slab.kept[kept]]
    return KeptCells(cells, kept + slab.start, sums[kept], matrix, slab.start)


def _packed(slab: _Slab, matrix: sparse.csr_matrix, mapping: GeneMapping, ids: UInt64) -> PackedCells:
    try:
        counts = slab.options.values == "counts"
        return pack_rows(matrix, mapping.ids, ids, counts=counts, table=slab.options.genes)
    except ValueError as error:  # the values are checked, so this is a sum beyond 32 bits
        raise CorpusError(
            f"{slab.reader.source.uri}: {slab.reader.matrix}, rows from {slab.start:,}: {error}.",
            remedy="No cell has that many molecules: check how this matrix was made.",
            uri=slab.reader.source.uri,
            rule="too_large",
            key=slab.reader.matrix,
        ) from error


def _as_counts(slab: _Slab, scan: RowScan) -> tuple[sparse.csr_matrix, Sums]:
    """The matrix, with exact counts if the source can give them, and the sum (C,) of each row's values."""
    kind, matrix = slab.reader.value_kind, slab.matrix
    if kind not in COUNT_KINDS:
        return matrix, scan.sums
    if kind == "recoverable":
        restored, exact = recover_counts(matrix)
        slab.apply("not_recoverable", ~exact)
        return restored, scan_rows(restored, counts=False).sums
    slab.num_rounded = int(scan.rounded[slab.kept].sum())
    if scan.rounded.any():
        matrix = matrix.copy()
        matrix.data = np.rint(matrix.data)
    return matrix, scan.sums
