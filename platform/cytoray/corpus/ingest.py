"""The Ray Data graph of an ingest: files -> checked cells -> spilled by partition -> shuffled shards -> manifest, last.

Which shard a cell goes to and where it stands there depend on (seed, cell id) alone, so the corpus is the same for any
number of workers, order of files, or retry. Every object is written whole and found again by a rerun; COMMIT is last.
"""

# C cells, N non-zero entries

from __future__ import annotations

import functools
import hashlib
import io
import json
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

import cytoray
from cytoray import progress, storage
from cytoray.corpus.checks import CheckedCells, check_rows, map_source_genes
from cytoray.corpus.config import IngestConfig, SourceConfig
from cytoray.corpus.manifest import (
    CorpusManifest,
    ShardRecord,
    SourceRecord,
    commit_manifest,
    content_name,
    corpus_uri,
    find_manifest,
)
from cytoray.corpus.readers import H5adReader, SourceDescription, expand_sources
from cytoray.corpus.shards import Values, decode_shard, encode_shard
from cytoray.errors import CorpusError
from cytoray.failpoints import failpoint
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.keys import Purpose, combine
from cytoray.tokens.tokenizer import CellTokenizer
from cytoray.tokens.vocabulary import GeneVocabulary

logger = logging.getLogger(__name__)
TASK_CPUS = 0.5  # two tasks share a core: half of a task's time waits for the store


@dataclass(frozen=True)
class IngestResult:
    """A committed corpus, and whether it was there already."""

    manifest: CorpusManifest
    uri: str
    skipped: bool


@dataclass(frozen=True)
class _Plan:
    """All that a task needs to know; pickled into each."""

    config: IngestConfig
    sources: tuple[SourceConfig, ...]
    descriptions: tuple[SourceDescription, ...]
    num_matched_genes: tuple[int, ...]
    num_partitions: int
    values: Values
    uri: str
    staging: str


def ingest(config: IngestConfig, *, advance: progress.Advance = progress.silent) -> IngestResult:
    """Ingest the sources of ``config`` into one committed corpus; a corpus committed by an equal ingest is returned.

    ``advance`` is told of cells read. Raises CorpusError for bad sources or a name taken by another ingest.
    """
    uri = corpus_uri(config.store, config.corpus)
    plan = _plan(config, uri)
    there = find_manifest(config.store, config.corpus)
    if there is not None:
        return IngestResult(_same_or_refuse(there, plan), uri, skipped=True)
    spills = _run_spill(plan, advance)
    kept = [spill["uri"] for spill in spills if spill["num_cells"]]
    if not kept:
        raise CorpusError(f"Corpus {config.corpus!r}: no cell passed the checks.", remedy="Look at checks.min_genes.")
    shards = _run_shards(plan, kept)
    manifest = _manifest(plan, spills, shards)
    commit_manifest(uri, manifest)
    storage.delete_prefix(plan.staging)
    return IngestResult(manifest, uri, skipped=False)


def _plan(config: IngestConfig, uri: str) -> _Plan:
    """Open every source's metadata, refuse what cannot be used, lay out the work."""
    sources = tuple(sorted(expand_sources(config.sources), key=lambda source: source.uri))
    vocabulary, checks = GeneVocabulary.load_default(), config.checks
    descriptions, matched = [], []
    for source in sources:
        with H5adReader(source) as reader:
            descriptions.append(reader.describe())
            matched.append(int((map_source_genes(reader, vocabulary, checks).ids >= 0).sum()))
            missing = [column for column in config.obs_columns if column not in reader.obs]
            if missing:
                reader.labels(missing[0])  # raises with the columns there
        logger.info("%s: %s", source.uri, describe_source(descriptions[-1], matched[-1]))
    kinds = {description.value_kind for description in descriptions}
    values: Values = "counts" if kinds <= {"counts", "recoverable"} else "expression"
    num_cells = sum(description.num_cells for description in descriptions)
    identity = json.dumps([config.fingerprint(), [(d.uri, d.version) for d in descriptions], cytoray.__version__])
    staging = storage.join(uri, "staging", hashlib.sha256(identity.encode()).hexdigest()[:16])
    partitions = max(1, round(num_cells / config.cells_per_shard))
    return _Plan(config, sources, tuple(descriptions), tuple(matched), partitions, values, uri, staging)


def describe_source(description: SourceDescription, num_matched_genes: int) -> str:
    """One line that says what a file holds and what will be done with it."""
    done = {
        "counts": "raw counts, kept exactly",
        "recoverable": "log-normalised values whose counts are recoverable, restored cell by cell",
        "expression": "expression that is no count, kept as float32 (bins depend on ranks only)",
        "negative": "values below zero, which will be refused",
    }[description.value_kind]
    return (
        f"{description.num_cells:,} cells, {num_matched_genes:,} of {description.num_genes:,} genes in the vocabulary, "
        f"{description.matrix}: {done}"
    )


def _same_or_refuse(there: CorpusManifest, plan: _Plan) -> CorpusManifest:
    """The committed manifest, if it came from this configuration and these bytes."""
    same_sources = {(s.uri, s.version) for s in there.sources} == {(d.uri, d.version) for d in plan.descriptions}
    if there.config_digest == plan.config.fingerprint() and same_sources:
        return there
    what = "configuration" if same_sources else "source files"
    raise CorpusError(
        f"Corpus {plan.config.corpus!r} is already committed in {plan.config.store}, from another {what}.",
        remedy="Give this ingest another corpus name; committed corpora never change.",
        uri=plan.uri,
    )


def _run_spill(plan: _Plan, advance: progress.Advance) -> list[dict[str, Any]]:
    """First pass: read, check and encode row ranges, each spilled as one object."""
    items = []
    for index, description in enumerate(plan.descriptions):
        for start in range(0, description.num_cells, plan.config.rows_per_task):
            stop = min(start + plan.config.rows_per_task, description.num_cells)
            items.append({"source": index, "start": start, "stop": stop})
    results = []
    for row in _map_tasks(items, functools.partial(_spill_rows, plan=plan), plan.config.read_concurrency):
        results.append(row)
        advance(row["stop"] - row["start"])
    return results


def _run_shards(plan: _Plan, spills: list[str]) -> list[ShardRecord]:
    """Second pass: gather each partition, shuffle it, write its shard."""
    items = [{"partition": partition} for partition in range(plan.num_partitions)]
    work = functools.partial(_write_shard, plan=plan, spills=sorted(spills))
    rows = sorted(_map_tasks(items, work, plan.config.read_concurrency), key=lambda row: int(row["partition"]))
    return [ShardRecord.model_validate_json(row["record"]) for row in rows if row["record"]]


def _map_tasks(items: list[dict[str, Any]], work: Any, concurrency: int) -> Iterable[dict[str, Any]]:
    """One Ray Data task an item, results as they come."""
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    compute = ray.data.TaskPoolStrategy(size=min(concurrency, len(items)))
    mapped: Iterable[dict[str, Any]] = dataset.map(work, compute=compute, num_cpus=TASK_CPUS).iter_rows()
    return mapped


def _spill_rows(item: dict[str, Any], *, plan: _Plan) -> dict[str, Any]:
    """Read and check one row range; leave its cells and their obs in the staging area."""
    uri = storage.join(plan.staging, f"spill-{item['source']:05d}-{item['start']:010d}")
    if storage.exists(f"{uri}.json"):  # written last: this range was done before a restart
        done: dict[str, Any] = json.loads(storage.read_bytes(f"{uri}.json"))
        return done
    source, description = plan.sources[item["source"]], plan.descriptions[item["source"]]
    with H5adReader(source) as reader:
        if reader.info.version != description.version:
            raise CorpusError(f"{source.uri}: the file changed while it was read.", remedy="Start the ingest again.")
        mapping = map_source_genes(reader, GeneVocabulary.load_default(), plan.config.checks)
        checked = check_rows(reader, mapping, plan.config.checks, start=item["start"], stop=item["stop"])
        obs = _obs_table(reader, checked, plan)
    storage.write_bytes(f"{uri}.cells", encode_shard(checked.cells, values=plan.values))
    storage.write_bytes(f"{uri}.obs", _parquet(obs))
    failpoint("ingest.after_spill")
    done = {**item, "uri": uri, "num_cells": checked.cells.num_cells, "dropped": json.dumps(checked.dropped)}
    storage.write_bytes(f"{uri}.json", json.dumps(done).encode())
    return done


def _obs_table(reader: H5adReader, checked: CheckedCells, plan: _Plan) -> pa.Table:
    """The kept cells' rows of obs, categories as strings; cell id, source and name in front, ``_`` sets them apart."""
    frame = reader.obs.iloc[checked.rows]
    wanted = plan.config.obs_columns or tuple(str(column) for column in frame.columns)
    columns: dict[str, Any] = {
        "_cell_id": pa.array(checked.cells.cell_ids),
        "_source": pa.array([reader.source.uri] * len(frame)),
        "_obs_name": pa.array([str(name) for name in frame.index]),
    }
    for name in wanted:
        values = frame[name]
        if values.dtype.kind in "biuf":
            columns[name] = pa.array(values, from_pandas=True)  # NaN is a missing value
        else:
            texts = [None if gone else str(value) for value, gone in zip(values, values.isna(), strict=True)]
            columns[name] = pa.array(texts, type=pa.string())
    return pa.table(columns)


def _write_shard(item: dict[str, Any], *, plan: _Plan, spills: list[str]) -> dict[str, Any]:
    """Gather one partition out of all spills, put it in its keyed order, write shard and obs."""
    partition, config = int(item["partition"]), plan.config
    cells, obs = _gather(plan, spills, partition)
    if cells.num_cells == 0:
        return {"partition": partition, "record": ""}
    order = np.argsort(combine(config.seed, int(Purpose.ORDER), cells.cell_ids), kind="stable")
    cells, obs = cells.take(order), obs.take(pa.array(order))
    bins = None
    if config.binning == "stored":
        bins = CellTokenizer(GeneVocabulary.load_default(), config.tokenizer).bin_cells(cells, epoch=0)
    data, table = encode_shard(cells, values=plan.values, bins=bins), _parquet(obs)
    key, obs_key = (
        content_name(f"{stem}-{partition:05d}", body, ".parquet") for stem, body in (("shard", data), ("obs", table))
    )
    record = ShardRecord(
        key=key,
        sha256=storage.write_bytes(storage.join(plan.uri, key), data),
        num_bytes=len(data),
        num_cells=cells.num_cells,
        num_entries=len(cells.values),
        obs_key=obs_key,
        obs_sha256=storage.write_bytes(storage.join(plan.uri, obs_key), table),
    )
    failpoint("ingest.after_shard")
    return {"partition": partition, "record": record.model_dump_json()}


def _gather(plan: _Plan, spills: list[str], partition: int) -> tuple[SparseCells, pa.Table]:
    """The cells of one partition, and their obs rows, from every spill."""
    parts, tables = [], []
    for uri in spills:
        cells = decode_shard(storage.read_bytes(f"{uri}.cells")).cells
        key = combine(plan.config.seed, int(Purpose.PARTITION), cells.cell_ids)
        rows = np.flatnonzero(key % np.uint64(plan.num_partitions) == partition)
        parts.append(cells.take(rows))
        tables.append(pq.read_table(pa.BufferReader(storage.read_bytes(f"{uri}.obs"))).take(pa.array(rows)))
    return SparseCells.concatenate(parts), pa.concat_tables(_alike(tables), promote_options="permissive")


def _alike(tables: list[pa.Table]) -> list[pa.Table]:
    """Columns that are numbers in one table and text or flags in another, made text in all."""
    families: dict[str, set[str]] = {}
    for field in (field for table in tables for field in table.schema):
        kind = "text" if pa.types.is_string(field.type) else "flag" if pa.types.is_boolean(field.type) else "number"
        families.setdefault(field.name, set()).add(kind)
    mixed = {name for name, kinds in families.items() if len(kinds) > 1}
    return [
        table.cast(
            pa.schema([field.with_type(pa.string()) if field.name in mixed else field for field in table.schema])
        )
        for table in tables
    ]


def _parquet(table: pa.Table) -> bytes:
    """A table as the bytes of a parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _manifest(plan: _Plan, spills: list[dict[str, Any]], shards: list[ShardRecord]) -> CorpusManifest:
    """Put together what was read and written."""
    config = plan.config
    sources = []
    for index, description in enumerate(plan.descriptions):
        mine = [spill for spill in spills if spill["source"] == index]
        dropped: Counter[str] = Counter()
        for spill in mine:
            dropped.update(json.loads(spill["dropped"]))
        sources.append(
            SourceRecord(
                uri=description.uri,
                num_bytes=description.num_bytes,
                version=description.version,
                matrix=description.matrix,
                value_kind=description.value_kind,
                num_cells=description.num_cells,
                num_genes=description.num_genes,
                num_matched_genes=plan.num_matched_genes[index],
                num_kept_cells=sum(spill["num_cells"] for spill in mine),
                dropped=dict(sorted(dropped.items())),
            )
        )
    return CorpusManifest(
        name=config.corpus,
        config_digest=config.fingerprint(),
        code_version=cytoray.__version__,
        vocabulary_digest=GeneVocabulary.load_default().digest(),
        values=plan.values,
        binning=config.binning,
        n_bins=config.tokenizer.n_bins,
        seed=config.seed,
        sources=tuple(sources),
        shards=tuple(shards),
    )
