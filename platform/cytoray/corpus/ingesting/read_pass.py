"""First pass of an ingest: a range of a source's rows, checked, becomes one spill sorted by partition."""

# C cells that are kept

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from cytoray import storage
from cytoray.config import Config
from cytoray.corpus.checking.checks import CheckedRows, RowChecks, check_rows, map_source_genes
from cytoray.corpus.ingesting.modalities import check_modality
from cytoray.corpus.ingesting.obs_tables import obs_arrays, obs_schema, own_arrays
from cytoray.corpus.ingesting.planning import IngestPlan, PlannedSource, refused, source_version
from cytoray.corpus.ingesting.shuffle import SectionIndex
from cytoray.corpus.ingesting.spill import SOURCE, SUM, split_by, stream_fields, to_arrays, to_section, write_sections
from cytoray.corpus.readers.base import CellReader
from cytoray.corpus.readers.opening import open_source
from cytoray.errors import CorpusError
from cytoray.failpoints import failpoint
from cytoray.tokens.cells import UInt64
from cytoray.tokens.keys import Purpose, combine
from cytoray.tokens.mapping import GeneMapping
from cytoray.tokens.packed import PackedCells, pack_rows
from cytoray.tokens.vocabulary import GeneVocabulary

COPIES = pa.schema([("content", pa.uint64()), ("cell_id", pa.uint64()), ("row", pa.int64())])


class SpillRecord(Config):
    """The result of reading one range of rows; the record exists only if the spill is complete."""

    source: int = Field(description="Index of the source in the plan.")
    start: int
    stop: int
    num_cells: int = Field(description="Number of cells kept.")
    sections: SectionIndex = Field(description="One section per group, then one with the cells' content hashes.")
    profile: dict[str, Any]


def spill_name(source: int, start: int, stop: int) -> str:
    """Return the name of a range's spill in the staging area; its record has the suffix ``.json``."""
    return f"spill-{source:05d}-{start:010d}-{stop:010d}"


def spill_schema(plan: IngestPlan) -> pa.Schema:
    """Return the columns of a section: obs, source and sum of each cell, then packed cells and their modalities."""
    fields = [*obs_schema(plan.obs_types), pa.field(SOURCE, pa.int32()), pa.field(SUM, pa.float64()), *stream_fields()]
    for name in plan.modalities:
        fields += stream_fields(name)
    return pa.schema(fields)


def partition_of(plan: IngestPlan, cell_ids: UInt64) -> UInt64:
    """Return the partition of each cell, shape (C,); it depends on the cell alone."""
    return combine(plan.config.seed, int(Purpose.PARTITION), cell_ids) % np.uint64(plan.num_partitions)


def spill_ranges(item: dict[str, Any], *, plan: IngestPlan) -> dict[str, Any]:
    """Read and check neighbouring ranges of rows and write their cells to the staging area, unless that was done.

    Returns the records of the spills, and why the source cannot be used if the plan tolerates another bad source.
    """
    source, borders = int(item["source"]), [int(border) for border in item["borders"]]
    done: dict[str, Any] = {"source": source, "num_rows": borders[-1] - borders[0], "records": []}
    for start, stop in itertools.pairwise(borders):
        try:
            done["records"].append(_spill_range(plan, source, start, stop))
        except CorpusError as error:
            if plan.config.checks.max_bad_files == 0 or error.details.get("rule") == "changed":
                raise
            record = refused(plan.sources[source].source.uri, error)
            return {**done, "start": start, "refused": record.model_dump_json()}
    return {**done, "start": borders[0], "refused": ""}


def _spill_range(plan: IngestPlan, source: int, start: int, stop: int) -> str:
    """Spill one range of rows, unless that was done before, and return its record as JSON."""
    uri = storage.join(plan.staging, spill_name(source, start, stop))
    done = storage.find_bytes(f"{uri}.json")
    if done is not None:
        return done.decode()
    with _opened(plan.sources[source], plan) as (reader, mapping):
        table, checked = _read(reader, mapping, plan, source, range(start, stop))
    failpoint("ingest.before_spill")
    groups = partition_of(plan, checked.cells.cell_ids) // np.uint64(plan.groups.width)
    parts = split_by(table, groups, plan.groups.num_groups)
    copies = pa.record_batch([checked.content, checked.cells.cell_ids, checked.rows], schema=COPIES)
    num_cells, profile = checked.cells.num_cells, checked.profile.to_json()
    del table, checked  # what follows copies all of it
    sections = write_sections(uri, [*parts, to_section(copies)])
    failpoint("ingest.before_spill_index")
    record = SpillRecord(source=source, start=start, stop=stop, num_cells=num_cells, sections=sections, profile=profile)
    text = record.model_dump_json()
    storage.write_bytes(f"{uri}.json", text.encode())
    failpoint("ingest.after_spill")
    pa.default_memory_pool().release_unused()  # an idle worker holds no memory
    return text


@dataclass
class _Open:
    """A source that stays open between the tasks of one worker process: opening reads all of obs and var."""

    planned: PlannedSource
    reader: CellReader
    mapping: GeneMapping


_open: list[_Open] = []  # one at most


@contextlib.contextmanager
def _opened(planned: PlannedSource, plan: IngestPlan) -> Iterator[tuple[CellReader, GeneMapping]]:
    """Yield the open source and its genes; CorpusError if it differs from the plan, before or after reading."""
    if not _open or _open[0].planned != planned:
        close_sources()
        reader = open_source(planned.source)
        with contextlib.ExitStack() as stack:
            stack.enter_context(reader)
            _refuse_changed(planned, reader.version)
            mapping = map_source_genes(reader, GeneVocabulary.load_default(), plan.config.checks)
            stack.pop_all()
        _open.append(_Open(planned, reader, mapping))
    finished = False
    try:
        yield _open[0].reader, _open[0].mapping
        finished = True
    finally:
        if not finished:
            close_sources()
        _refuse_changed(
            planned, source_version(planned.source, planned.description.format)
        )  # the better explanation of any error in what was read


def close_sources() -> None:
    """Close the source that this process keeps open."""
    while _open:
        _open.pop().reader.__exit__(None, None, None)


def _refuse_changed(planned: PlannedSource, version: str) -> None:
    if version != planned.description.version:
        raise CorpusError(
            f"{planned.source.uri}: the file changed while it was read.",
            remedy="Start the ingest again, once nobody writes to it.",
            uri=planned.source.uri,
            rule="changed",
        )


def _read(
    reader: CellReader, mapping: GeneMapping, plan: IngestPlan, source: int, rows: range
) -> tuple[pa.Table, CheckedRows]:
    """Read the kept cells of a range as a table of ``spill_schema``."""
    options = RowChecks(plan.config.checks, plan.config.filter, plan.values, plan.genes)
    checked = check_rows(reader, mapping, options, start=rows.start, stop=rows.stop)
    frame, cells = reader.obs.iloc[checked.rows], checked.cells
    arrays = [
        *own_arrays(cells.cell_ids, checked.content, reader.source.uri, frame),
        *obs_arrays(frame, plan.obs_types),
        pa.array(np.full(cells.num_cells, source, np.int32)),
        pa.array(checked.sums),
        *to_arrays(cells),
    ]
    for name in plan.modalities:
        arrays += to_arrays(_modality_cells(reader, plan, name, checked, rows))
    return pa.table(arrays, schema=spill_schema(plan)), checked


def _modality_cells(reader: CellReader, plan: IngestPlan, name: str, checked: CheckedRows, rows: range) -> PackedCells:
    """Read the same cells in a further modality; without any value if the source does not have it."""
    modality, counts = plan.modalities[name], plan.modalities[name].values == "counts"
    if all(config.name != name for config in reader.source.modalities):
        nothing = np.zeros(checked.cells.num_cells + 1, np.int64)
        empty = np.empty(0, np.uint8)
        values = empty if counts else empty.view(np.float32)
        ids = checked.cells.cell_ids
        return PackedCells(empty, values, empty.view(np.uint32), nothing, nothing, nothing, ids)
    places = {feature: place for place, feature in enumerate(modality.features)}
    features = np.array([places[feature] for feature in reader.modality_features(name)], np.int32)
    matrix = reader.read_modality(name, rows.start, rows.stop)[checked.rows - rows.start]
    check_modality(reader, name, matrix, counts=counts, rows=checked.rows)
    return pack_rows(matrix, features, checked.cells.cell_ids, counts=counts)
