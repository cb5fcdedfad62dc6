"""Cells that occur more than once, in one file, across files, or in the version before: found by their content hashes.

Of equal cells one stays: one that is in the corpus already, else that of the smallest (source identity, row), so that
the choice does not depend on what was read when.
"""

# K cells of a bucket

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from cytoray import storage
from cytoray.config import Config
from cytoray.corpus.ingesting.planning import IngestPlan
from cytoray.corpus.ingesting.read_pass import COPIES, SpillRecord, load_spill, partition_of, spill_uri
from cytoray.corpus.ingesting.spill import CONTENT, SectionIndex, from_section, read_section, write_sections
from cytoray.errors import CorpusError
from cytoray.failpoints import failpoint
from cytoray.tokens.cells import UInt64

CELLS_PER_BUCKET = 4_000_000  # some 200 MB in one task
IN_PARENT = -1  # rank of cells of the version before


class CopiesRecord(Config):
    """The copies among the cells of one bucket; its presence means that their list is complete."""

    bucket: int
    by_source: dict[int, int] = Field(description="Copies by the place of their source in the plan.")
    sections: SectionIndex = Field(description="One section a partition: the cell ids to leave out.")


@dataclass(frozen=True)
class _Candidates:
    """The cells of one bucket."""

    content: UInt64  # (K,)
    cell_ids: UInt64  # (K,)
    ranks: npt.NDArray[np.int64]  # (K,) of the source, by its identity
    rows: npt.NDArray[np.int64]  # (K,) in its source


def num_buckets(num_cells: int) -> int:
    """In how many parts ``num_cells`` cells are compared."""
    return -(-num_cells // CELLS_PER_BUCKET)


def copies_uri(plan: IngestPlan, round_id: str, bucket: int) -> str:
    """Where the copies of a bucket are listed; the record has ``.json`` after it."""
    return storage.join(plan.staging, f"copies-{round_id}-{bucket:05d}")


def find_copies(item: dict[str, Any], *, plan: IngestPlan, spills: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """List the copies among the cells of one bucket, unless that was done before; CorpusError if they are errors.

    ``spills`` are (source, start) of the ranges that are in; the item names the bucket, their number and the round.
    """
    uri = copies_uri(plan, str(item["round"]), int(item["bucket"]))
    if storage.exists(f"{uri}.json"):
        return {"record": storage.read_bytes(f"{uri}.json").decode()}
    order = sorted(range(len(plan.sources)), key=lambda source: plan.sources[source].source.identity)
    cells = _gather(plan, spills, {source: rank for rank, source in enumerate(order)}, item)
    by_place = np.lexsort((cells.rows, cells.ranks, cells.content))
    content = cells.content[by_place]
    copy = np.concatenate([np.zeros(min(1, len(content)), bool), content[1:] == content[:-1]])
    copy &= cells.ranks[by_place] != IN_PARENT
    copies = by_place[copy]
    if len(copies) and plan.config.checks.rules.duplicate_cell == "error":
        raise _refusal(plan, cells, order, int(copies[0]), int(by_place[np.flatnonzero(copy)[0] - 1]))
    counts = Counter(order[rank] for rank in cells.ranks[copies].tolist())
    left_out = copies if plan.config.checks.rules.duplicate_cell == "drop" else copies[:0]
    cell_ids = np.sort(cells.cell_ids[left_out])
    partitions = partition_of(plan, cell_ids)
    sections = [cell_ids[partitions == partition].tobytes() for partition in range(plan.num_partitions)]
    record = CopiesRecord(
        bucket=int(item["bucket"]), by_source=dict(sorted(counts.items())), sections=write_sections(uri, sections)
    )
    failpoint("ingest.before_copies_index")
    storage.write_bytes(f"{uri}.json", record.model_dump_json().encode())
    failpoint("ingest.after_dedupe")
    return {"record": record.model_dump_json()}


def copies_of(plan: IngestPlan, round_id: str, records: Sequence[CopiesRecord], partition: int) -> UInt64:
    """The cell ids of one partition that are to be left out."""
    parts = [
        np.frombuffer(read_section(copies_uri(plan, round_id, record.bucket), record.sections, partition), np.uint64)
        for record in records
    ]
    return np.concatenate([np.empty(0, np.uint64), *parts])


def _gather(
    plan: IngestPlan, spills: Sequence[tuple[int, int]], ranks: dict[int, int], item: dict[str, Any]
) -> _Candidates:
    """The cells of a bucket, out of every spill and every obs table of the version before."""
    bucket, buckets = np.uint64(item["bucket"]), np.uint64(item["num_buckets"])
    columns: list[tuple[npt.NDArray[Any], ...]] = []
    for file in plan.known_obs:
        content = _known_content(storage.join(plan.uri, file.key), file.sha256)
        content = content[content % buckets == bucket]
        columns.append(
            (content, np.zeros_like(content), np.full(len(content), IN_PARENT), np.zeros(len(content), np.int64))
        )
    for source, start in spills:
        record = load_spill(plan, source, start)
        batch = _read_hashes(plan, record)
        content, cell_ids, rows = (batch.column(name).to_numpy() for name in COPIES.names)
        mine = content % buckets == bucket
        columns.append((content[mine], cell_ids[mine], np.full(int(mine.sum()), ranks[source]), rows[mine]))
    content, cell_ids, rank, rows = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    return _Candidates(content, cell_ids, rank, rows)


def _read_hashes(plan: IngestPlan, record: SpillRecord) -> pa.RecordBatch:
    uri = spill_uri(plan, record.source, record.start)
    return from_section(read_section(uri, record.sections, plan.num_partitions), COPIES)


def _known_content(uri: str, sha256: str) -> UInt64:
    """The content hashes of an obs table."""
    table = pq.read_table(io.BytesIO(storage.read_bytes(uri, sha256=sha256)), columns=[CONTENT])
    return np.asarray(table.column(CONTENT).to_numpy())


def _refusal(plan: IngestPlan, cells: _Candidates, order: list[int], one: int, other: int) -> CorpusError:
    """The error for two equal cells."""

    def name(cell: int) -> str:
        rank = int(cells.ranks[cell])
        if rank == IN_PARENT:
            return "a cell that is in the corpus already"
        return f"row {cells.rows[cell]:,} of {plan.sources[order[rank]].source.uri}"

    uri = plan.sources[order[int(cells.ranks[one])]].source.uri
    return CorpusError(
        f"{uri}: row {cells.rows[one]:,} has the same counts as {name(other)}.",
        remedy="Leave one of them out, or set checks.rules.duplicate_cell: drop to keep the first.",
        uri=uri,
        rule="duplicate_cell",
    )


def round_of(quarantined: Sequence[str]) -> str:
    """Names what follows the first pass: other sources left out, other files."""
    return hashlib.sha256(json.dumps(sorted(quarantined)).encode()).hexdigest()[:8]
