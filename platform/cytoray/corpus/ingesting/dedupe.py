"""Find cells that occur more than once, in one file, across files, or in the parent version, by content hash.

Of equal cells one is kept: one that the corpus contains already, else the one with the smallest (source identity,
row), so that the choice does not depend on the order of reading.
"""

# K cells of a bucket

from __future__ import annotations

import hashlib
import io
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from cytoray import storage
from cytoray.config import Config
from cytoray.corpus.ingesting.planning import IngestPlan, KnownCells
from cytoray.corpus.ingesting.read_pass import COPIES, partition_of
from cytoray.corpus.ingesting.runs import save_run
from cytoray.corpus.ingesting.shuffle import SectionIndex
from cytoray.corpus.ingesting.spill import (
    CONTENT,
    READERS,
    from_section,
    read_checked,
    read_neighbours,
    read_table,
    split_by,
    write_sections,
)
from cytoray.errors import CorpusError
from cytoray.failpoints import failpoint
from cytoray.tokens.cells import UInt64

CELLS_PER_BUCKET = 4_000_000  # some 200 MB in one task
IN_PARENT = -1  # rank of cells of the parent version
CELLS = pa.schema([("content", pa.uint64()), ("cell_id", pa.uint64()), ("rank", pa.int64()), ("row", pa.int64())])


class CopiesRecord(Config):
    """The copies among the cells of one bucket; the record exists only if their list is complete."""

    name: str
    bucket: int
    by_source: dict[int, int] = Field(description="Number of copies by index of their source in the plan.")
    sections: SectionIndex = Field(description="One section per partition: the cell ids to leave out.")


@dataclass(frozen=True)
class _Candidates:
    """The cells of one bucket."""

    content: UInt64  # (K,)
    cell_ids: UInt64  # (K,)
    ranks: npt.NDArray[np.int64]  # (K,) of the source, by its identity
    rows: npt.NDArray[np.int64]  # (K,) in its source


def num_buckets(num_cells: int) -> int:
    """Return the number of parts in which ``num_cells`` cells are compared."""
    return -(-num_cells // CELLS_PER_BUCKET)


@dataclass(frozen=True)
class SpillHashes:
    """The section of a spill that holds the content hashes of its cells."""

    name: str
    place: tuple[int, int, int]  # start, stop, check
    source: int
    num_cells: int


HashPart = SpillHashes | KnownCells


def cut_hashes(item: dict[str, Any], *, plan: IngestPlan, parts: Sequence[HashPart], round_id: str) -> dict[str, Any]:
    """Cut the hashes of some parts (``first`` to ``last`` of the item) by bucket, unless that was done before."""
    name = f"hashes-{round_id}-{int(item['number']):05d}"
    done = storage.find_bytes(storage.join(plan.staging, f"{name}.json"))
    if done is not None:
        return {"record": done.decode()}
    table = _read_parts(plan, parts[item["first"] : item["last"]])
    buckets = table.column("content").to_numpy() % np.uint64(item["num_buckets"])
    return {"record": save_run(plan, name, split_by(table, buckets, int(item["num_buckets"])))}


def find_copies(item: dict[str, Any], *, plan: IngestPlan, parts: Sequence[HashPart], round_id: str) -> dict[str, Any]:
    """List the copies among the cells of one bucket, unless that was done before; CorpusError if they are errors.

    The item places the bucket's sections, or has none if all ``parts`` are in this bucket.
    """
    bucket = int(item["bucket"])
    name = f"copies-{round_id}-{bucket:05d}"
    uri = storage.join(plan.staging, name)
    done = storage.find_bytes(f"{uri}.json")
    if done is not None:
        return {"record": done.decode()}
    cells = _candidates(read_table(plan.staging, item, CELLS) if "names" in item else _read_parts(plan, parts))
    copies = _copies_among(plan, cells)
    counts = Counter(_order(plan)[rank] for rank in cells.ranks[copies].tolist())
    left_out = copies if plan.config.checks.rules.duplicate_cell == "drop" else copies[:0]
    sections = _by_partition(plan, cells.cell_ids[left_out], range(plan.num_partitions))
    record = CopiesRecord(
        name=name, bucket=bucket, by_source=dict(sorted(counts.items())), sections=write_sections(uri, sections)
    )
    failpoint("ingest.before_copies_index")
    storage.write_bytes(f"{uri}.json", record.model_dump_json().encode())
    failpoint("ingest.after_dedupe")
    return {"record": record.model_dump_json()}


def join_copies(
    item: dict[str, Any], *, plan: IngestPlan, records: Sequence[CopiesRecord], round_id: str
) -> dict[str, Any]:
    """Gather the copies in one group of partitions out of all buckets, unless that was done before."""
    group = int(item["group"])
    name = f"copies-{round_id}-group-{group:03d}"
    done = storage.find_bytes(storage.join(plan.staging, f"{name}.json"))
    if done is not None:
        return {"group": group, "record": done.decode()}
    members = plan.groups.members(group)
    there = [
        record for record in records if record.sections.borders[members.start] < record.sections.borders[members.stop]
    ]
    parts = [
        part
        for record in there
        for part in read_neighbours(storage.join(plan.staging, record.name), record.sections, members)
    ]
    cell_ids = np.frombuffer(b"".join(parts), np.uint64)
    return {"group": group, "record": save_run(plan, name, _by_partition(plan, cell_ids, members))}


def _read_parts(plan: IngestPlan, parts: Sequence[HashPart]) -> pa.Table:
    """Read the cells of some parts as a table of ``CELLS``."""
    order = _order(plan)
    ranks = {source: rank for rank, source in enumerate(order)}

    def read(part: HashPart) -> pa.RecordBatch:
        """Read one part."""
        if isinstance(part, KnownCells):
            content = read_known_content(storage.join(plan.uri, part.file.key), part)
            nothing = np.zeros(len(content), np.int64)
            return pa.record_batch([content, nothing.view(np.uint64), nothing + IN_PARENT, nothing], schema=CELLS)
        batch = from_section(read_checked(storage.join(plan.staging, part.name), *part.place), COPIES)
        rank = np.full(batch.num_rows, ranks[part.source], np.int64)
        return pa.record_batch([batch["content"], batch["cell_id"], rank, batch["row"]], schema=CELLS)

    with ThreadPoolExecutor(READERS, "hashes") as pool:
        return pa.Table.from_batches(pool.map(read, parts), CELLS)


def read_known_content(uri: str, part: KnownCells) -> UInt64:
    """Read the content hashes of a committed shard."""
    data = storage.read_bytes(uri, sha256=part.file.sha256)
    if not part.in_obs:
        return np.frombuffer(data, "<u8").astype(np.uint64, copy=False)
    return np.asarray(pq.read_table(io.BytesIO(data), columns=[CONTENT]).column(CONTENT).to_numpy())


def _candidates(table: pa.Table) -> _Candidates:
    return _Candidates(*(table.column(name).to_numpy() for name in CELLS.names))


def _copies_among(plan: IngestPlan, cells: _Candidates) -> npt.NDArray[np.int64]:
    """Find the cells that are copies of another one; CorpusError if the rules refuse them."""
    by_place = np.lexsort((cells.rows, cells.ranks, cells.content))
    content = cells.content[by_place]
    copy = np.concatenate([np.zeros(min(1, len(content)), bool), content[1:] == content[:-1]])
    copy &= cells.ranks[by_place] != IN_PARENT
    copies: npt.NDArray[np.int64] = by_place[copy]
    if len(copies) and plan.config.checks.rules.duplicate_cell == "error":
        raise _refusal(plan, cells, int(copies[0]), int(by_place[np.flatnonzero(copy)[0] - 1]))
    return copies


def _order(plan: IngestPlan) -> list[int]:
    """Return the sources' indices, sorted by identity."""
    return sorted(range(len(plan.sources)), key=lambda source: plan.sources[source].source.identity)


def _by_partition(plan: IngestPlan, cell_ids: UInt64, members: range) -> list[pa.Buffer]:
    """Sort cell ids into one section per partition of ``members``."""
    cell_ids = np.sort(cell_ids)
    partitions = partition_of(plan, cell_ids)
    order = np.argsort(partitions, kind="stable")
    borders = np.searchsorted(partitions[order], np.arange(members.start, members.stop + 1, dtype=np.uint64))
    return [pa.py_buffer(cell_ids[order[start:stop]]) for start, stop in itertools.pairwise(borders.tolist())]


def _refusal(plan: IngestPlan, cells: _Candidates, one: int, other: int) -> CorpusError:
    """Return the error for two equal cells."""
    order = _order(plan)

    def name(cell: int) -> str:
        """Name a cell by its row and source."""
        rank = int(cells.ranks[cell])
        if rank == IN_PARENT:
            return "a cell that the corpus already contains"
        return f"row {cells.rows[cell]:,} of {plan.sources[order[rank]].source.uri}"

    uri = plan.sources[order[int(cells.ranks[one])]].source.uri
    return CorpusError(
        f"{uri}: row {cells.rows[one]:,} has the same counts as {name(other)}.",
        remedy="Leave one of them out, or set checks.rules.duplicate_cell: drop to keep the first.",
        uri=uri,
        rule="duplicate_cell",
    )


def round_of(quarantined: Sequence[str], spills: Sequence[str]) -> str:
    """Return an identifier for the names of later passes' files; it depends on the sources left out and the spills."""
    return hashlib.sha256(json.dumps([sorted(quarantined), *spills]).encode()).hexdigest()[:8]
