"""The Ray Data graph of an ingest: files -> checked cells -> spilled by partition -> shuffled shards -> manifest, last.

Which shard a cell goes to and where it stands there depend on (seed, cell id) alone, so the corpus is the same for any
number of workers, order of files, or retry. Every object is written whole and found again by a rerun; the version's
commit object is last.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cytoray import cluster, progress, storage
from cytoray.cluster import user_error
from cytoray.corpus.checking.checks import refuse_unrecoverable
from cytoray.corpus.checking.profile import SourceProfile
from cytoray.corpus.claims import claim_staging
from cytoray.corpus.config import IngestConfig, SourceConfig
from cytoray.corpus.ingesting import metrics
from cytoray.corpus.ingesting.dedupe import (
    CopiesRecord,
    HashPart,
    SpillHashes,
    cut_hashes,
    find_copies,
    join_copies,
    num_buckets,
    round_of,
)
from cytoray.corpus.ingesting.outcome import build_manifest, write_data_report
from cytoray.corpus.ingesting.planning import IngestPlan, describe_source, dry_run, plan_ingest, quarantine
from cytoray.corpus.ingesting.read_pass import SpillRecord, close_sources, spill_name, spill_ranges
from cytoray.corpus.ingesting.runs import RunRecord, write_run
from cytoray.corpus.ingesting.shuffle import (
    Piece,
    hash_items,
    partition_items,
    read_items,
    run_items,
    section_item,
)
from cytoray.corpus.ingesting.write_pass import PartitionRecord, Round, write_shard
from cytoray.corpus.manifest import (
    CorpusManifest,
    QuarantineRecord,
    commit_manifest,
    corpus_uri,
    find_manifest,
)
from cytoray.corpus.readers.opening import open_source
from cytoray.errors import ConflictError, CorpusError, NotFoundError

__all__ = ["IngestResult", "describe_source", "dry_run", "find_corpus", "ingest", "plan_in_tasks"]
logger = logging.getLogger(__name__)
TASK_CPUS = 0.5  # two tasks share a core: half of a task's time waits for the store
FEW_SOURCES = 4  # that are opened in this process: a task's first start takes longer
MANY_SOURCES = 64  # for which Ray is started if it is not running yet
READ_SHARE = 0.75  # of an ingest's time goes into the first pass (benchmarks/ingest.py)


@dataclass(frozen=True)
class IngestResult:
    """A committed corpus, and whether it existed before."""

    manifest: CorpusManifest
    uri: str
    skipped: bool


@dataclass(frozen=True)
class _FirstPass:
    """The result of the first pass; spills and hashes are those of the sources in the corpus."""

    spills: tuple[Piece, ...]
    hashes: tuple[SpillHashes, ...]
    profiles: dict[int, SourceProfile]  # by place of the source in the plan
    quarantined: tuple[QuarantineRecord, ...]

    @property
    def num_kept(self) -> int:
        """Number of cells that passed the checks."""
        return sum(part.num_cells for part in self.hashes)

    @property
    def round_id(self) -> str:
        """Identifier in the names of what later passes write."""
        return round_of([record.uri for record in self.quarantined], [spill.name for spill in self.spills])


def ingest(
    config: IngestConfig, *, plan: IngestPlan | None = None, advance: progress.Advance = progress.silent
) -> IngestResult:
    """Ingest the sources of ``config`` into one committed corpus; return the version of an equal ingest if it exists.

    ``plan`` is the result of ``plan_in_tasks(config)``, if the caller has it. ``advance`` counts cells: three quarters
    of a cell when it is read, the rest when it is in its shard. Raises CorpusError for bad sources or a name taken by
    another ingest, ConflictError for a lost race or a ``gc`` that is deleting objects of this corpus.
    """
    plan = plan_in_tasks(config) if plan is None else plan
    there = find_corpus(plan)
    if there is not None:
        return IngestResult(there, plan.uri, skipped=True)
    claim_staging(plan.uri, staging=plan.staging)
    try:
        manifest = _run(plan, advance)
    except _errors_of_a_race() as error:
        conflict = _conflict(plan, error)
        if conflict is None:
            raise
        raise conflict from error
    finally:
        metrics.note_end(plan)
        close_sources()  # tasks that ran in this process may have left one open
    storage.delete_prefix(plan.staging)
    return IngestResult(manifest, plan.uri, skipped=False)


def _errors_of_a_race() -> tuple[type[Exception], ...]:
    """Return what an ingest raises whose staging area another one, or a gc, has deleted; known when Ray was used."""
    return NotFoundError, *cluster.ray_errors()


def plan_in_tasks(config: IngestConfig, *, only: frozenset[str] | None = None) -> IngestPlan:
    """Run ``plan_ingest``, opening the sources in Ray tasks if there are several; ``only`` is passed on."""

    def run(describe: Callable[[SourceConfig], Any], sources: Sequence[SourceConfig]) -> Iterator[Any]:
        """Describe the sources, many of them by Ray tasks."""
        if len(sources) < (FEW_SOURCES if cluster.is_running() else MANY_SOURCES):
            yield from map(describe, sources)
            return
        import ray

        cluster.start()
        work, call = ray.put(describe), ray.remote(num_cpus=1)(_call)
        for described in [call.remote(work, source) for source in sources]:
            try:
                yield ray.get(described)
            except cluster.ray_errors() as error:
                raise user_error(error) or error from error

    return plan_ingest(config, run=run, only=only)


def _call(work: Callable[[SourceConfig], Any], source: SourceConfig) -> Any:
    return work(source)


def find_corpus(plan: IngestPlan) -> CorpusManifest | None:
    """Return the latest version if it contains all that this plan would add; CorpusError if the name is taken."""
    latest = find_manifest(plan.config.store, plan.config.corpus)
    if latest is None or (plan.config.append and plan.sources):
        return None
    if plan.config.append:
        return latest
    first = find_manifest(plan.config.store, f"{latest.name}@1")
    assert first is not None, "a corpus has a first version"
    read = {(source.uri, source.version) for source in first.sources}
    planned = {(p.source.uri, p.description.version) for p in plan.sources}
    left_out = {record.uri for record in first.quarantined}
    same_sources = read == {(uri, version) for uri, version in planned if uri not in left_out}
    if first.increments[0].config_digest == plan.config.fingerprint() and same_sources:
        return latest
    what = "configuration" if same_sources else "source files"
    raise CorpusError(
        f"Corpus {plan.config.corpus!r} is already committed in {plan.config.store}, from another {what}.",
        remedy="Add to it with append: true (`--append`), or give this ingest another corpus name; "
        "committed versions never change.",
        uri=plan.uri,
    )


def _run(plan: IngestPlan, advance: progress.Advance) -> CorpusManifest:
    """Run both passes and commit."""
    if not plan.sources:
        raise CorpusError("Every source is in quarantine.", remedy="Mend the files, or lower the rules' severity.")
    first = _read_all(plan, advance)
    records = _find_all_copies(plan, first)
    counts: Counter[int] = Counter()
    for record in records:
        counts.update(record.by_source)
    num_kept = first.num_kept
    if plan.config.checks.rules.duplicate_cell == "drop":
        num_kept -= counts.total()
    if num_kept == 0:
        raise CorpusError(
            f"Corpus {plan.config.corpus!r}: no cell passed the checks.",
            remedy="Look at checks.min_genes and the filters; `cytoray data validate` reports which rule dropped them.",
        )
    label_columns = {source: tuple(profile.labels) for source, profile in first.profiles.items()}
    round_ = Round(first.round_id, _join_all_copies(plan, first, records), label_columns)
    written = _write_all(plan, first, round_, advance, scale=plan.num_cells / num_kept)
    profiles = _with_copies(plan, first.profiles, counts, written)
    manifest = build_manifest(plan, profiles, first.quarantined, [record.shard for record in written if record.shard])
    write_data_report(plan, manifest, profiles)
    commit_manifest(plan.uri, manifest)
    return manifest


def _read_all(plan: IngestPlan, advance: progress.Advance) -> _FirstPass:
    """First pass: read, check and spill row ranges; put bad sources in quarantine."""
    items = read_items(
        [planned.description.num_cells for planned in plan.sources],
        rows_per_task=plan.config.rows_per_task,
        concurrency=plan.config.read_concurrency,
    )
    bad: dict[int, tuple[int, QuarantineRecord]] = {}
    profiles = {source: SourceProfile() for source in range(len(plan.sources))}
    found: list[tuple[Piece, SpillHashes]] = []
    rows = _map(plan, items, functools.partial(spill_ranges, plan=plan))
    metrics.note_start(plan)
    for row in rows:
        source, start = int(row["source"]), int(row["start"])
        if row["refused"] and (source not in bad or start < bad[source][0]):
            bad[source] = start, QuarantineRecord.model_validate_json(row["refused"])
        for record in map(SpillRecord.model_validate_json, row["records"]):
            profiles[source] = profiles[source].merge(SourceProfile.from_json(record.profile))
            found.append(_parts(record))
        metrics.note_cells(plan, "read", row["num_rows"])
        advance(READ_SHARE * row["num_rows"])
    quarantined = list(plan.quarantined)
    for source, (_, refusal) in sorted(bad.items()):
        quarantined.append(quarantine(plan.config, refusal, so_far=len(quarantined)))
        del profiles[source]
    metrics.note_quarantined(plan, len(quarantined))
    _refuse_unrecoverable(plan, profiles)
    spilled = sorted((pair for pair in found if pair[1].source not in bad), key=lambda pair: pair[0].name)
    return _FirstPass(
        tuple(spill for spill, _ in spilled), tuple(hashes for _, hashes in spilled), profiles, tuple(quarantined)
    )


def _parts(record: SpillRecord) -> tuple[Piece, SpillHashes]:
    """Locate the cells of a spill and their content hashes."""
    name = spill_name(record.source, record.start, record.stop)
    spill = Piece.of(name, record.sections)
    place = (*spill.borders[-2:].tolist(), int(spill.checks[-1]))
    return spill, SpillHashes(name, place, record.source, record.num_cells)


def _refuse_unrecoverable(plan: IngestPlan, profiles: dict[int, SourceProfile]) -> None:
    """Check each whole source as each range was checked: short ranges are not judged by themselves."""
    for source, profile in profiles.items():
        if profile.dropped.get("not_recoverable"):
            with open_source(plan.sources[source].source) as reader:
                refuse_unrecoverable(reader, profile, plan.config.checks)


def _find_all_copies(plan: IngestPlan, first: _FirstPass) -> list[CopiesRecord]:
    """Find the copies of cells, bucket by bucket."""
    if plan.config.checks.rules.duplicate_cell == "off" or first.num_kept == 0:
        return []
    parts: list[HashPart] = [part for part in first.hashes if part.num_cells]
    parts += plan.known
    sizes = [part.num_cells for part in parts]
    buckets = num_buckets(sum(sizes))
    work = functools.partial(find_copies, plan=plan, parts=parts, round_id=first.round_id)
    items: list[dict[str, Any]] = [{"bucket": 0}]
    if buckets == 1:
        rows: Iterable[dict[str, Any]] = map(work, items)  # takes a second or two: not worth the start of a pipeline
    else:
        cut = functools.partial(cut_hashes, plan=plan, parts=parts, round_id=first.round_id)
        cuts = _map(plan, hash_items(sizes, num_buckets=buckets), cut)
        runs = _pieces(cuts)[0]
        items = [{"bucket": bucket, **section_item(runs, bucket)} for bucket in range(buckets)]
        rows = _map(plan, items, work)
    return sorted((CopiesRecord.model_validate_json(row["record"]) for row in rows), key=lambda record: record.bucket)


def _join_all_copies(plan: IngestPlan, first: _FirstPass, records: Sequence[CopiesRecord]) -> dict[int, Piece]:
    """Collect the cells to leave out, by group of partitions."""
    groups = {group: plan.groups.members(group) for group in range(plan.groups.num_groups)}
    if len(records) == 1:
        whole = Piece.of(records[0].name, records[0].sections)
        return {group: whole.part(members) for group, members in groups.items()}
    records = [record for record in records if record.sections.borders[-1]]
    items = [{"group": group} for group in groups] if records else []
    work = functools.partial(join_copies, plan=plan, records=records, round_id=first.round_id)
    joined = _pieces(_map(plan, items, work))
    return {group: piece for group, (piece,) in joined.items()}


def _write_all(
    plan: IngestPlan, first: _FirstPass, round_: Round, advance: progress.Advance, *, scale: float
) -> list[PartitionRecord]:
    """Second pass: gather each partition, shuffle it, write its shard."""
    gather = functools.partial(write_run, plan=plan, round_id=round_.name)
    runs = _pieces(_map(plan, run_items(first.spills, plan.groups), gather))
    work = functools.partial(write_shard, plan=plan, round_=round_)
    records = []
    for row in _map(plan, partition_items(first.spills, runs, plan.groups), work):
        records.append(PartitionRecord.model_validate_json(row["record"]))
        shard = records[-1].shard
        num_cells = shard.num_cells if shard else 0
        metrics.note_cells(plan, "write", num_cells)
        advance((1 - READ_SHARE) * scale * num_cells)
    return sorted(records, key=lambda record: record.partition)


def _pieces(rows: Iterable[dict[str, Any]]) -> dict[int, list[Piece]]:
    """Collect the runs that tasks wrote, by group, in the order of their names."""
    runs: dict[int, list[Piece]] = defaultdict(list)
    for row in rows:
        record = RunRecord.model_validate_json(row["record"])
        runs[int(row.get("group", 0))].append(Piece.of(record.name, record.sections))
    return defaultdict(list, {group: sorted(pieces, key=lambda piece: piece.name) for group, pieces in runs.items()})


def _map(plan: IngestPlan, items: list[dict[str, Any]], work: Any) -> Iterable[dict[str, Any]]:
    """Do the work on each item: in this process if the ingest is small and Ray is not running, else in Ray's tasks."""
    if cluster.is_small(plan.num_cells):
        return map(work, items)
    return _map_tasks(items, work, plan.config.read_concurrency)


def _map_tasks(items: list[dict[str, Any]], work: Any, concurrency: int) -> Iterable[dict[str, Any]]:
    """Run one Ray Data task per item and yield results as they come."""
    if not items:
        return ()
    import ray.data

    cluster.start()
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    compute = ray.data.TaskPoolStrategy(size=min(concurrency, len(items)))
    mapped: Iterable[dict[str, Any]] = dataset.map(work, compute=compute, num_cpus=TASK_CPUS).iter_rows()
    return mapped


def _with_copies(
    plan: IngestPlan, profiles: dict[int, SourceProfile], counts: Counter[int], written: Sequence[PartitionRecord]
) -> dict[int, SourceProfile]:
    """Return the profiles of the sources after their copies (``counts`` by source) were found, or left out."""
    if plan.config.checks.rules.duplicate_cell != "drop":
        warned = {source: SourceProfile(warned={"duplicate_cell": count}) for source, count in counts.items() if count}
        return {source: profile.merge(warned.get(source, SourceProfile())) for source, profile in profiles.items()}
    copies = {source: SourceProfile() for source in profiles}
    for record in written:
        for source, found in record.copies.items():
            copies[source] = copies[source].merge(SourceProfile.from_json(found))
    return {source: profile.without(copies[source]) for source, profile in profiles.items()}


def _conflict(plan: IngestPlan, error: Exception) -> ConflictError | None:
    """Return the error to raise if an object is missing because another ingest of this name finished and cleaned up."""
    if not isinstance(user_error(error), NotFoundError):
        return None
    winner = find_manifest(plan.config.store, f"{plan.config.corpus}@{plan.version}")
    if winner is None:
        return None
    return ConflictError(
        f"Version {plan.version} of corpus {plan.config.corpus!r} was committed by another ingest first "
        f"(manifest {winner.digest[:16]}, {winner.num_cells:,} cells).",
        remedy="Use that version, or run this ingest again: it returns that version.",
        uri=corpus_uri(plan.config.store, plan.config.corpus),
        winner=winner.digest,
    )
