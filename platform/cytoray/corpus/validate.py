"""Check files of cells as an ingest would, without writing: their contents, and what would be left out and why."""

# C cells

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field, ValidationError

from cytoray import progress
from cytoray.config import Config
from cytoray.corpus.checking.checks import (
    SLAB_ROWS,
    RowChecks,
    check_rows,
    corpus_values,
    map_source_genes,
    profile_cells,
    refuse_unrecoverable,
    source_findings,
)
from cytoray.corpus.checking.profile import SourceProfile
from cytoray.corpus.config import CheckConfig, SourceConfig
from cytoray.corpus.readers.base import CellReader, Format
from cytoray.corpus.readers.finding import find_sources
from cytoray.corpus.readers.opening import open_source
from cytoray.corpus.reporting.report import DataReport, FileReport, Quarantined
from cytoray.errors import CorpusError, CytorayError
from cytoray.tokens.cells import Int64, UInt64
from cytoray.tokens.labels import missing_spellings_warning
from cytoray.tokens.vocabulary import GeneVocabulary

ROWS_AT_A_TIME = SLAB_ROWS  # a range of one slab: nothing is joined, and memory stays flat


class ValidateConfig(Config):
    """How files are checked; the keys are those of an ingest and its sources."""

    checks: CheckConfig = Field(CheckConfig(), description="The data rules.")
    filter: str | None = Field(None, description="Cells to keep, as an expression over obs.")
    labels: tuple[str, ...] = Field((), description="Columns of obs that every file must have.")
    format: Format | Literal["auto"] = Field("auto", description="As in sources, of every file.")
    matrix: str = Field("auto", pattern=r"^(auto|X|raw\.X|layers/.+)$", description="As in sources, of every file.")
    gene_column: str | None = Field(None, description="As in sources, of every file.")
    ensembl_column: str | None = Field(None, description="As in sources, of every file.")

    def sources(self, uris: Sequence[str]) -> list[SourceConfig]:
        """The files at ``uris``, each once; whole URIs are their names, since several files may share a name.

        Raises CorpusError for a URI that cannot be one.
        """
        common = self.model_dump(include={"format", "matrix", "gene_column", "ensembl_column"})
        found = []
        for uri in dict.fromkeys(uris):
            try:
                found.append(SourceConfig(uri=uri, name=uri, **common))
            except ValidationError as error:
                why = error.errors()[0]["msg"].removeprefix("Value error, ")
                raise CorpusError(f"{uri}: {why}.", remedy="Name a file, an s3:// object or a prefix.") from error
        return found


@dataclass(frozen=True, eq=False)
class _Seen:
    """The kept cells of one source: some 20 bytes each, enough to find copies in all of them."""

    content: UInt64  # (C,)
    rows: Int64  # (C,)
    labels: dict[str, tuple[npt.NDArray[np.int64], list[str]]]  # by column: (C,) codes, -1 without one; their values


def validate(
    sources: Sequence[SourceConfig], *, options: ValidateConfig, advance: progress.Advance = progress.silent
) -> DataReport:
    """Read every cell of ``sources`` (prefixes are expanded) by range and apply the rules; refused files are listed.

    ``advance`` is called with rows read. Raises CorpusError only if the list of sources itself cannot be used.
    """
    found = find_sources(sources)
    expanded = sorted(found.sources, key=lambda source: source.identity)
    files: dict[str, FileReport] = {}
    seen: dict[str, _Seen] = {}
    refused = []
    for source in expanded:
        try:
            files[source.identity], seen[source.identity] = _look_at(source, options, advance)
        except CytorayError as error:
            refused.append(Quarantined.of(source.uri, error))
    by_identity = {source.identity: source for source in expanded}
    copies: dict[str, Copies] = {}
    if options.checks.rules.duplicate_cell != "off":
        copies = find_copies({name: (cells.content, cells.rows) for name, cells in seen.items()})
    for identity, repeats in copies.items():
        outcome = _judge_copies(files[identity], repeats, by_identity, identity, options)
        if isinstance(outcome, Quarantined):
            refused.append(outcome)
            del files[identity]
        else:
            files[identity] = outcome
    for identity, file in files.items():
        gone = copies[identity].rows if identity in copies and options.checks.rules.duplicate_cell == "drop" else ()
        files[identity] = _with_labels(file, seen[identity], gone)
    title = f"Data report of {expanded[0].uri}" if len(expanded) == 1 else f"Data report of {len(expanded)} files"
    quarantined = tuple(sorted(refused, key=lambda record: record.uri))
    return DataReport(title, tuple(files.values()), quarantined, not_read=found.not_read)


@dataclass(frozen=True, eq=False)
class Copies:
    """Cells of one source that repeat an earlier cell of the same or another source."""

    rows: Int64  # (K,) their rows
    originals: list[tuple[str, int]]  # (K,) identity and row of the cell that each repeats


def find_copies(seen: Mapping[str, tuple[UInt64, Int64]]) -> dict[str, Copies]:
    """Equal cells among (content hashes, rows) by source identity; of several, the smallest (identity, row) stays."""
    names = sorted(seen)
    if not names:
        return {}
    content = np.concatenate([seen[name][0] for name in names])
    owners = np.repeat(np.arange(len(names)), [len(seen[name][0]) for name in names])
    rows = np.concatenate([seen[name][1] for name in names])
    order = np.lexsort((rows, owners, content))
    repeats = np.flatnonzero(content[order][1:] == content[order][:-1]) + 1
    first = np.arange(len(order))
    first[repeats] = 0
    first = np.maximum.accumulate(first)  # place in the order of the first cell with this content
    copies, originals = order[repeats], order[first[repeats]]
    found = {}
    for number, name in enumerate(names):
        mine = np.flatnonzero(owners[copies] == number)
        mine = mine[np.argsort(rows[copies[mine]])]
        if len(mine):
            places = [(names[owners[cell]], int(rows[cell])) for cell in originals[mine]]
            found[name] = Copies(rows[copies[mine]], places)
    return found


def _look_at(source: SourceConfig, options: ValidateConfig, advance: progress.Advance) -> tuple[FileReport, _Seen]:
    """Read one source from end to end."""
    with open_source(source) as reader:
        description = reader.describe()
        labels = {key: _label_codes(reader, key) for key in options.labels}
        mapping = map_source_genes(reader, GeneVocabulary.load_default(), options.checks)
        profile = SourceProfile(findings=source_findings(reader, mapping, options.checks))
        checks = _row_checks(reader, options)
        content, rows = [], []
        for start, stop in _ranges(description.num_cells):
            checked = check_rows(reader, mapping, checks, start=start, stop=stop)
            profile = profile.merge(checked.profile)
            content.append(checked.content)
            rows.append(checked.rows)
            advance(stop - start, source.uri)
        refuse_unrecoverable(reader, profile, options.checks)
    kept = np.concatenate(rows)
    codes = {key: (column[kept], values) for key, (column, values) in labels.items()}
    return FileReport(description, profile), _Seen(np.concatenate(content), kept, codes)


def _row_checks(reader: CellReader, options: ValidateConfig) -> RowChecks:
    return RowChecks(options.checks, options.filter, corpus_values([reader.value_kind], options.checks))


def _ranges(num_rows: int) -> Iterator[tuple[int, int]]:
    """Row ranges that cover a source; one empty range if it has no rows."""
    for start in range(0, max(num_rows, 1), ROWS_AT_A_TIME):
        yield start, min(start + ROWS_AT_A_TIME, num_rows)


def _label_codes(reader: CellReader, key: str) -> tuple[npt.NDArray[np.int64], list[str]]:
    """The value of each cell in a column of obs as a code, -1 without one, and the values; CorpusError if missing."""
    if key not in reader.obs:
        there = ", ".join(map(str, reader.obs.columns)) or "none"
        raise CorpusError(
            f"{reader.source.uri}: obs has no column {key!r}.",
            remedy=f"Columns there: {there}.",
            rule="label",
            key=f"obs/{key}",
        )
    codes, values = pd.factorize(np.array(reader.labels(key), dtype=object))
    return np.asarray(codes, np.int64), [str(value) for value in values]


def _with_labels(file: FileReport, seen: _Seen, copies: Sequence[int] | Int64) -> FileReport:
    """Add the number of values of the kept cells in each requested column."""
    stays = ~np.isin(seen.rows, copies)
    findings = dict(file.profile.findings)
    for key, (codes, names) in seen.labels.items():
        kept = codes[stays]
        present = np.unique(kept[kept >= 0])
        values = len(present)
        missing = f"{int((kept < 0).sum()):,} of {len(kept):,} kept cells without one"
        findings[f"label {key}"] = f"{values:,} {'value' if values == 1 else 'values'}, {missing}"
        if suspicious := missing_spellings_warning([names[code] for code in present], where=f"obs/{key}"):
            findings[f"label {key} missing"] = suspicious
    return replace(file, profile=replace(file.profile, findings=findings))


def _judge_copies(
    file: FileReport, copies: Copies, sources: Mapping[str, SourceConfig], identity: str, options: ValidateConfig
) -> FileReport | Quarantined:
    """Apply the severity of duplicate_cell to the copies in one file."""
    count = len(copies.rows)
    severity = options.checks.rules.duplicate_cell
    if severity == "drop":
        return replace(file, profile=file.profile.without(_profile_copies(sources[identity], options, copies.rows)))
    if severity == "warn":
        return replace(file, profile=file.profile.merge(SourceProfile(warned={"duplicate_cell": count})))
    uri, (other, row) = sources[identity].uri, copies.originals[0]
    cells = "1 cell has" if count == 1 else f"{count:,} cells have"
    twin = "" if other == identity else f" of {sources[other].uri}"
    error = CorpusError(
        f"{uri}: {cells} the same counts as another; the first is row {copies.rows[0]:,}, like row {row:,}{twin}.",
        remedy="Remove the copies, or set checks.rules.duplicate_cell to drop (one is kept), warn or off.",
        rule="duplicate_cell",
        key=file.description.matrix,
    )
    return Quarantined.of(uri, error)


def _profile_copies(source: SourceConfig, options: ValidateConfig, rows: Int64) -> SourceProfile:
    """The profile of the copies alone: their rows are read again."""
    with open_source(source) as reader:
        mapping = map_source_genes(reader, GeneVocabulary.load_default(), options.checks)
        return profile_cells(reader, mapping, _row_checks(reader, options), rows)
