"""Second pass of an ingest: one partition out of all spills, in its keyed order, becomes a shard with its obs."""

# C cells of the partition

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from cytoray import storage
from cytoray.config import Config
from cytoray.corpus.checking.profile import SourceProfile
from cytoray.corpus.ingesting.gathering import gather
from cytoray.corpus.ingesting.obs_tables import obs_schema, to_parquet
from cytoray.corpus.ingesting.planning import IngestPlan
from cytoray.corpus.ingesting.read_pass import spill_schema
from cytoray.corpus.ingesting.recount import profile_copies
from cytoray.corpus.ingesting.shuffle import Piece
from cytoray.corpus.ingesting.spill import CELL_ID, CONTENT, from_table, read_checked, read_table
from cytoray.corpus.manifest import CellFileRecord, FileRecord, ShardRecord, content_key
from cytoray.corpus.shards import Values, encode_shard
from cytoray.errors import NotFoundError
from cytoray.failpoints import failpoint
from cytoray.tokens.cells import UInt64
from cytoray.tokens.keys import Purpose, combine
from cytoray.tokens.packed import PackedCells, with_bins
from cytoray.tokens.tokenizer import CellTokenizer
from cytoray.tokens.vocabulary import GeneVocabulary


class PartitionRecord(Config):
    """The result of writing one partition; ``shard`` is null if no cell fell into it."""

    partition: int
    shard: ShardRecord | None = Field(description="Its presence means that every file it names was written.")
    copies: dict[int, dict[str, Any]] = Field({}, description="Profiles of the cells left out as copies, by source.")


@dataclass(frozen=True)
class Round:
    """The second pass: the same for each partition."""

    name: str
    copies: dict[int, Piece]  # by group: cell ids to leave out, a section per partition of the group
    label_columns: dict[int, tuple[str, ...]]  # by source: columns of obs whose values its report counts


def write_shard(item: dict[str, Any], *, plan: IngestPlan, round_: Round) -> dict[str, Any]:
    """Gather one partition, put it in its keyed order, write shard, modalities and obs, unless that was done before.

    The item contains the partition and the places of its sections.
    """
    partition = int(item["partition"])
    where = storage.join(plan.staging, f"shard-{round_.name}-{partition:05d}.json")
    done = _done_before(where, plan)
    if done is not None:
        return {"record": done.model_dump_json()}
    table = read_table(plan.staging, item, spill_schema(plan))
    cell_ids = table.column(CELL_ID).to_numpy()
    order = np.argsort(combine(plan.config.seed, int(Purpose.ORDER), cell_ids), kind="stable")
    left_out = _copies_of(plan, round_, partition)
    copies: dict[int, SourceProfile] = {}
    if len(left_out):
        is_copy = np.isin(cell_ids, left_out)
        copies = profile_copies(table.filter(pa.array(is_copy)), plan=plan, label_columns=round_.label_columns)
        order = order[~is_copy[order]]
    table = gather(table, order)  # the one copy of all streams
    failpoint("ingest.before_shard")
    record = PartitionRecord(
        partition=partition,
        shard=_write(plan, partition, table) if len(table) else None,
        copies={source: profile.to_json() for source, profile in copies.items()},
    )
    failpoint("ingest.before_shard_record")
    storage.write_bytes(where, record.model_dump_json().encode())
    failpoint("ingest.after_shard_record")
    pa.default_memory_pool().release_unused()
    return {"record": record.model_dump_json()}


def _copies_of(plan: IngestPlan, round_: Round, partition: int) -> UInt64:
    """Read the cell ids of a partition that are to be left out."""
    group = partition // plan.groups.width
    piece = round_.copies.get(group)
    if piece is None:
        return np.empty(0, np.uint64)
    place = partition - plan.groups.members(group).start
    start, stop = piece.borders[place : place + 2].tolist()
    data = read_checked(storage.join(plan.staging, piece.name), start, stop, int(piece.checks[place]))
    return np.frombuffer(data, np.uint64)


def _done_before(where: str, plan: IngestPlan) -> PartitionRecord | None:
    """Return the record of an earlier attempt, if every file it names still exists."""
    try:
        record = PartitionRecord.model_validate_json(storage.read_bytes(where))
        for file in record.shard.files if record.shard else ():
            if storage.info(storage.join(plan.uri, file.key)).num_bytes != file.num_bytes:
                return None
    except NotFoundError:
        return None
    return record


def _write(plan: IngestPlan, partition: int, table: pa.Table) -> ShardRecord:
    """Write the files of a shard, each under a name that carries its content."""
    stem = f"{plan.version:06d}-{partition:05d}"
    cells = from_table(table, counts=plan.values == "counts", gene_table=plan.genes)
    if plan.config.binning == "stored":
        tokenizer = CellTokenizer(GeneVocabulary.load_default(), plan.config.tokenizer)
        cells = with_bins(cells, tokenizer.bin_cells(cells, epoch=0))
    main = _write_cells(plan, "shards", stem, cells, plan.values)
    modalities = {
        name: _write_cells(
            plan,
            f"modalities/{name}",
            stem,
            from_table(table, counts=modality.values == "counts", name=name),
            modality.values,
        )
        for name, modality in plan.modalities.items()
    }
    data = to_parquet(table.select(obs_schema(plan.obs_types).names))
    digest = hashlib.sha256(data).hexdigest()
    obs = FileRecord(key=content_key("obs", stem, digest, ".parquet"), sha256=digest, num_bytes=len(data))
    storage.write_bytes(storage.join(plan.uri, obs.key), data)
    failpoint("ingest.after_obs")
    hashes = _write_hashes(plan, stem, table)
    cell_id_sum = int(cells.cell_ids.sum(dtype=np.uint64))
    return ShardRecord(**main.model_dump(), obs=obs, modalities=modalities, cell_id_sum=cell_id_sum, hashes=hashes)


def _write_cells(plan: IngestPlan, folder: str, stem: str, cells: PackedCells, values: Values) -> CellFileRecord:
    encoded = encode_shard(cells, values=values)
    record = encoded.record(content_key(folder, stem, encoded.sha256, ".parquet"))
    storage.write_bytes(storage.join(plan.uri, record.key), encoded.data)
    failpoint("ingest.after_shard")
    return record


def _write_hashes(plan: IngestPlan, stem: str, table: pa.Table) -> FileRecord:
    """Write the content hashes once more in a file of their own: an append reads all of them, and nothing else."""
    data = table.column(CONTENT).to_numpy().astype("<u8").tobytes()
    digest = hashlib.sha256(data).hexdigest()
    record = FileRecord(key=content_key("obs", stem, digest, ".hashes"), sha256=digest, num_bytes=len(data))
    storage.write_bytes(storage.join(plan.uri, record.key), data)
    return record
