"""Second pass of an ingest: one partition out of all spills, in its keyed order, becomes a shard with its obs."""

# C cells of the partition

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from cytoray import storage
from cytoray.config import Config
from cytoray.corpus.ingesting.dedupe import CopiesRecord, copies_of
from cytoray.corpus.ingesting.obs_tables import obs_schema, to_parquet
from cytoray.corpus.ingesting.planning import IngestPlan
from cytoray.corpus.ingesting.read_pass import spill_schema, spill_uri
from cytoray.corpus.ingesting.spill import CELL_ID, from_section, from_table, read_checked
from cytoray.corpus.manifest import CellFileRecord, FileRecord, ShardRecord, content_key
from cytoray.corpus.shards import Values, encode_shard
from cytoray.errors import NotFoundError
from cytoray.failpoints import failpoint
from cytoray.tokens.keys import Purpose, combine
from cytoray.tokens.packed import PackedCells, with_bins
from cytoray.tokens.tokenizer import CellTokenizer
from cytoray.tokens.vocabulary import GeneVocabulary

READERS = 4  # sections fetched at a time: on an object store the time to the first byte dominates


class PartitionRecord(Config):
    """What became of one partition; ``shard`` is null where no cell fell into it."""

    partition: int
    shard: ShardRecord | None = Field(description="Its presence means that every file it names was written.")


@dataclass(frozen=True)
class Round:
    """What the second pass works on: the same for each partition."""

    name: str
    spills: tuple[tuple[int, int], ...]  # (source, start) of each range that is in
    copies: tuple[CopiesRecord, ...]


def write_shard(item: dict[str, Any], *, plan: IngestPlan, round_: Round) -> dict[str, Any]:
    """Gather one partition, put it in its keyed order, write shard, modalities and obs, unless that was done before.

    The item holds the partition and, for each spill, where its section lies and its check.
    """
    partition = int(item["partition"])
    where = storage.join(plan.staging, f"shard-{round_.name}-{partition:05d}.json")
    done = _done_before(where, plan)
    if done is not None:
        return {"record": done.model_dump_json()}
    table = _gather(plan, round_, item)
    left_out = copies_of(plan, round_.name, round_.copies, partition)
    if len(left_out):
        table = table.filter(pa.array(~np.isin(table.column(CELL_ID).to_numpy(), left_out)))
    keys = combine(plan.config.seed, int(Purpose.ORDER), table.column(CELL_ID).to_numpy())
    table = table.take(pa.array(np.argsort(keys, kind="stable")))
    failpoint("ingest.before_shard")
    record = PartitionRecord(partition=partition, shard=_write(plan, partition, table) if len(table) else None)
    failpoint("ingest.before_shard_record")
    storage.write_bytes(where, record.model_dump_json().encode())
    failpoint("ingest.after_shard_record")
    pa.default_memory_pool().release_unused()
    return {"record": record.model_dump_json()}


def _done_before(where: str, plan: IngestPlan) -> PartitionRecord | None:
    """The record of an earlier attempt, if all that it names is still there."""
    try:
        record = PartitionRecord.model_validate_json(storage.read_bytes(where))
        for file in record.shard.files if record.shard else ():
            if storage.info(storage.join(plan.uri, file.key)).num_bytes != file.num_bytes:
                return None
    except NotFoundError:
        return None
    return record


def _gather(plan: IngestPlan, round_: Round, item: dict[str, Any]) -> pa.Table:
    """The cells of one partition, spill after spill."""
    schema = spill_schema(plan)
    places = np.frombuffer(item["places"], np.int64).reshape(-1, 2)
    checks = np.frombuffer(item["checks"], np.uint32)

    def fetch(number: int) -> pa.RecordBatch:
        start, stop = places[number].tolist()
        uri = spill_uri(plan, *round_.spills[number])
        return from_section(read_checked(uri, start, stop, int(checks[number])), schema)

    with ThreadPoolExecutor(READERS, "gather") as pool:
        return pa.Table.from_batches(pool.map(fetch, range(len(places))), schema)


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
    cell_id_sum = int(cells.cell_ids.sum(dtype=np.uint64))
    return ShardRecord(**main.model_dump(), obs=obs, modalities=modalities, cell_id_sum=cell_id_sum)


def _write_cells(plan: IngestPlan, folder: str, stem: str, cells: PackedCells, values: Values) -> CellFileRecord:
    encoded = encode_shard(cells, values=values)
    record = encoded.record(content_key(folder, stem, encoded.sha256, ".parquet"))
    storage.write_bytes(storage.join(plan.uri, record.key), encoded.data)
    failpoint("ingest.after_shard")
    return record


def section_items(partition: int, places: Sequence[tuple[int, int]], checks: Sequence[int]) -> dict[str, Any]:
    """The item of ``write_shard`` for one partition."""
    return {
        "partition": partition,
        "places": np.array(places, np.int64).tobytes(),
        "checks": np.array(checks, np.uint32).tobytes(),
    }
