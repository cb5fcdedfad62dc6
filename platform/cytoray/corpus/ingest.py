"""The Ray Data graph of an ingest: files -> checked cells -> spilled by partition -> shuffled shards -> manifest, last.

Which shard a cell goes to and where it stands there depend on (seed, cell id) alone, so the corpus is the same for any
number of workers, order of files, or retry. Every object is written whole and found again by a rerun; the version's
commit object is last.
"""

from __future__ import annotations

import functools
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import ray.data
from ray.exceptions import RayError

import cytoray
from cytoray import progress, storage
from cytoray.cluster import user_error
from cytoray.corpus.checking.checks import refuse_unrecoverable
from cytoray.corpus.checking.profile import SourceProfile
from cytoray.corpus.config import IngestConfig, SourceConfig
from cytoray.corpus.ingesting.dedupe import CopiesRecord, copies_uri, find_copies, num_buckets, round_of
from cytoray.corpus.ingesting.planning import IngestPlan, describe_source, dry_run, plan_ingest, quarantine
from cytoray.corpus.ingesting.read_pass import close_sources, load_spill, spill_ranges
from cytoray.corpus.ingesting.recount import profile_copies, recount_items
from cytoray.corpus.ingesting.write_pass import PartitionRecord, Round, section_items, write_shard
from cytoray.corpus.manifest import (
    CorpusManifest,
    IncrementRecord,
    QuarantineRecord,
    ShardRecord,
    SourceRecord,
    commit_manifest,
    corpus_uri,
    find_manifest,
    load_manifest,
)
from cytoray.corpus.readers.opening import open_source
from cytoray.corpus.reporting.report import CorpusFacts, DataReport, FileReport, Quarantined
from cytoray.corpus.reporting.report_text import log_report
from cytoray.errors import ConflictError, CorpusError, NotFoundError
from cytoray.tokens.vocabulary import GeneVocabulary

__all__ = ["IngestResult", "describe_source", "dry_run", "find_corpus", "ingest", "plan_in_tasks"]
logger = logging.getLogger(__name__)
TASK_CPUS = 0.5  # two tasks share a core: half of a task's time waits for the store
# Ranges of one source that a task reads one after another: between two tasks a worker waits for 0.2 s, and opens.
RANGES_A_TASK = 4
TASKS_A_WORKER = 4  # at least, or the last one to finish keeps the others waiting
FEW_SOURCES = 4  # that are opened in this process: a task's first start takes longer
READ_SHARE = 0.75  # of an ingest's time goes into the first pass (benchmarks/ingest.py)


@dataclass(frozen=True)
class IngestResult:
    """A committed corpus, and whether it was there already."""

    manifest: CorpusManifest
    uri: str
    skipped: bool


@dataclass(frozen=True)
class _Spill:
    """Where the sections of one complete spill lie."""

    source: int
    start: int
    num_cells: int
    borders: npt.NDArray[np.int64]
    checks: npt.NDArray[np.uint32]


@dataclass(frozen=True)
class _FirstPass:
    """What the first pass left."""

    spills: tuple[_Spill, ...]  # of the sources that are in
    profiles: dict[int, SourceProfile]  # by place of the source in the plan
    quarantined: tuple[QuarantineRecord, ...]


def ingest(
    config: IngestConfig, *, plan: IngestPlan | None = None, advance: progress.Advance = progress.silent
) -> IngestResult:
    """Ingest the sources of ``config`` into one committed corpus; a version committed by an equal ingest is returned.

    ``plan`` is what ``plan_in_tasks(config)`` gave, if that was asked before. ``advance`` is told of cells: three
    quarters of a cell when it is read, the rest when it is in its shard. Raises CorpusError for bad sources or a name
    taken by another ingest, ConflictError for a lost race.
    """
    plan = plan_in_tasks(config) if plan is None else plan
    there = find_corpus(plan)
    if there is not None:
        return IngestResult(there, plan.uri, skipped=True)
    try:
        manifest = _run(plan, advance)
    except (NotFoundError, RayError) as error:
        conflict = _conflict(plan, error)
        if conflict is None:
            raise
        raise conflict from error
    finally:
        close_sources()  # tasks that ran in this very process may have left one open
    storage.delete_prefix(plan.staging)
    return IngestResult(manifest, plan.uri, skipped=False)


def plan_in_tasks(config: IngestConfig) -> IngestPlan:
    """``plan_ingest``, the sources being opened by Ray's tasks where there are several."""

    def run(describe: Callable[[SourceConfig], Any], sources: Sequence[SourceConfig]) -> Iterator[Any]:
        if len(sources) < FEW_SOURCES or not ray.is_initialized():
            yield from map(describe, sources)
            return
        work = ray.put(describe)
        for described in [_call.remote(work, source) for source in sources]:
            try:
                yield ray.get(described)
            except RayError as error:
                raise user_error(error) or error from error

    return plan_ingest(config, run=run)


@ray.remote(num_cpus=1)
def _call(work: Callable[[SourceConfig], Any], source: SourceConfig) -> Any:
    return work(source)


def find_corpus(plan: IngestPlan) -> CorpusManifest | None:
    """The latest version, if all that this plan would add is in; CorpusError if the name is taken by something else."""
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
    """Both passes and the commit."""
    if not plan.sources:
        raise CorpusError("Every source is in quarantine.", remedy="Mend the files, or lower the rules' severity.")
    first = _read_all(plan, advance)
    num_kept = sum(spill.num_cells for spill in first.spills)
    copies = _find_all_copies(plan, first, num_kept)
    counts: Counter[int] = Counter()
    for record in copies:
        counts.update(record.by_source)
    if plan.config.checks.rules.duplicate_cell == "drop":
        num_kept -= counts.total()
    if num_kept == 0:
        raise CorpusError(
            f"Corpus {plan.config.corpus!r}: no cell passed the checks.",
            remedy="Look at checks.min_genes and the filters; `cytoray data validate` tells what dropped them.",
        )
    shards = _write_all(plan, first, copies, advance, scale=plan.num_cells / num_kept)
    uris = [copies_uri(plan, _round_name(first), record.bucket) for record in copies]
    profiles = _with_copies(plan, first.profiles, counts, uris)
    manifest = _manifest(plan, replace(first, profiles=profiles), shards)
    _write_report(plan, manifest, profiles)
    commit_manifest(plan.uri, manifest)
    return manifest


def _read_all(plan: IngestPlan, advance: progress.Advance) -> _FirstPass:
    """First pass: read, check and spill row ranges; put bad sources in quarantine."""
    ranges = [_cut_rows(planned.description.num_cells, plan.config.rows_per_task) for planned in plan.sources]
    together = min(RANGES_A_TASK, max(1, sum(map(len, ranges)) // (TASKS_A_WORKER * plan.config.read_concurrency)))
    items = [
        {"source": source, "borders": borders[first : first + together + 1]}
        for source, borders in enumerate(ranges)
        for first in range(0, len(borders) - 1, together)
    ]
    bad: dict[int, tuple[int, QuarantineRecord]] = {}
    for row in _map_tasks(items, functools.partial(spill_ranges, plan=plan), plan.config.read_concurrency):
        source, start = int(row["source"]), int(row["start"])
        if row["refused"] and (source not in bad or start < bad[source][0]):
            bad[source] = start, QuarantineRecord.model_validate_json(row["refused"])
        advance(READ_SHARE * row["num_rows"])
    quarantined = list(plan.quarantined)
    for _, (_, record) in sorted(bad.items()):
        quarantined.append(quarantine(plan.config, record, so_far=len(quarantined)))
    spills, profiles = [], {source: SourceProfile() for source in range(len(plan.sources)) if source not in bad}
    for spill in (load_spill(plan, source, start) for source in profiles for start in ranges[source][:-1]):
        borders = np.array(spill.sections.borders, np.int64)
        checks = np.array(spill.sections.checks, np.uint32)
        spills.append(_Spill(spill.source, spill.start, spill.num_cells, borders, checks))
        profiles[spill.source] = profiles[spill.source].merge(SourceProfile.from_json(spill.profile))
    _refuse_unrecoverable(plan, profiles)
    return _FirstPass(tuple(spills), profiles, tuple(quarantined))


def _cut_rows(num_rows: int, at_most: int) -> list[int]:
    """Borders of equal ranges that cover the rows of a source; without any row there is no range."""
    num_ranges = -(-num_rows // at_most)
    return [num_rows * number // num_ranges for number in range(num_ranges + 1)] if num_rows else []


def _refuse_unrecoverable(plan: IngestPlan, profiles: dict[int, SourceProfile]) -> None:
    """What each range was asked, asked of each whole source: short ranges are not judged by themselves."""
    for source, profile in profiles.items():
        if profile.dropped.get("not_recoverable"):
            with open_source(plan.sources[source].source) as reader:
                refuse_unrecoverable(reader, profile, plan.config.checks)


def _find_all_copies(plan: IngestPlan, first: _FirstPass, num_kept: int) -> list[CopiesRecord]:
    """The copies of cells, bucket by bucket."""
    if plan.config.checks.rules.duplicate_cell == "off" or num_kept == 0:
        return []
    buckets = num_buckets(num_kept + sum(file.num_bytes > 0 for file in plan.known_obs) * plan.config.cells_per_shard)
    name = _round_name(first)
    items = [{"bucket": bucket, "num_buckets": buckets, "round": name} for bucket in range(buckets)]
    spills = [(spill.source, spill.start) for spill in first.spills]
    work = functools.partial(find_copies, plan=plan, spills=spills)
    # One bucket takes a second or two: not worth the start of a pipeline.
    rows = _map_tasks(items, work, plan.config.read_concurrency) if buckets > 1 else map(work, items)
    return sorted((CopiesRecord.model_validate_json(row["record"]) for row in rows), key=lambda record: record.bucket)


def _write_all(
    plan: IngestPlan, first: _FirstPass, copies: Sequence[CopiesRecord], advance: progress.Advance, *, scale: float
) -> list[ShardRecord]:
    """Second pass: gather each partition, shuffle it, write its shard."""
    spills = [spill for spill in first.spills if spill.num_cells]
    round_ = Round(_round_name(first), tuple((spill.source, spill.start) for spill in spills), tuple(copies))
    items = [
        section_items(
            partition,
            [(spill.borders[partition], spill.borders[partition + 1]) for spill in spills],
            [spill.checks[partition] for spill in spills],
        )
        for partition in range(plan.num_partitions)
    ]
    work = functools.partial(write_shard, plan=plan, round_=round_)
    records = []
    for row in _map_tasks(items, work, plan.config.read_concurrency):
        records.append(PartitionRecord.model_validate_json(row["record"]))
        shard = records[-1].shard
        advance((1 - READ_SHARE) * scale * (shard.num_cells if shard else 0))
    return [record.shard for record in sorted(records, key=lambda record: record.partition) if record.shard]


def _map_tasks(items: list[dict[str, Any]], work: Any, concurrency: int) -> Iterable[dict[str, Any]]:
    """One Ray Data task an item, results as they come."""
    if not items:
        return ()
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    compute = ray.data.TaskPoolStrategy(size=min(concurrency, len(items)))
    mapped: Iterable[dict[str, Any]] = dataset.map(work, compute=compute, num_cpus=TASK_CPUS).iter_rows()
    return mapped


def _round_name(first: _FirstPass) -> str:
    return round_of([record.uri for record in first.quarantined])


def _with_copies(
    plan: IngestPlan, profiles: dict[int, SourceProfile], counts: Counter[int], uris: Sequence[str]
) -> dict[int, SourceProfile]:
    """The profiles of the sources after their copies were found; ``uris`` are the lists of cells left out."""
    if plan.config.checks.rules.duplicate_cell != "drop":
        warned = {source: {"duplicate_cell": count} for source, count in counts.items() if count}
        return {
            source: profile.merge(SourceProfile(warned=warned.get(source, {}))) for source, profile in profiles.items()
        }
    copied = {source: profile for source, profile in profiles.items() if profile.num_kept == counts[source]}
    sources = [source for source in profiles if counts[source] and source not in copied]
    items = [item for source in sources for item in recount_items(plan.sources[source].description.num_cells, source)]
    work = functools.partial(profile_copies, plan=plan, uris=uris)
    for row in _map_tasks(items, work, plan.config.read_concurrency):
        found = SourceProfile.from_json(json.loads(row["profile"]))
        copied[int(row["source"])] = copied.get(int(row["source"]), SourceProfile()).merge(found)
    return {source: profile.without(copied.get(source, SourceProfile())) for source, profile in profiles.items()}


def _manifest(plan: IngestPlan, first: _FirstPass, shards: list[ShardRecord]) -> CorpusManifest:
    """Put together what was read and written, behind what the version before has."""
    config = plan.config
    parent = load_manifest(config.store, f"{config.corpus}@{plan.version - 1}") if plan.version > 1 else None
    sources = tuple(_source_records(plan, first.profiles))
    manifest = CorpusManifest(
        name=config.corpus,
        version=plan.version,
        parent=parent.digest if parent else None,
        vocabulary_digest=GeneVocabulary.load_default().digest(),
        values=plan.values,
        binning=config.binning,
        n_bins=config.tokenizer.n_bins,
        seed=config.seed,
        modalities={name: modality.features for name, modality in plan.modalities.items()},
        modality_values={name: modality.values for name, modality in plan.modalities.items()},
        obs_columns=plan.obs_types,
        sources=(*(parent.sources if parent else ()), *sources),
        quarantined=first.quarantined,
        shards=(*(parent.shards if parent else ()), *shards),
    )
    increment = IncrementRecord(
        version=plan.version,
        config_digest=config.fingerprint(),
        code_version=cytoray.__version__,
        num_sources=len(sources),
        num_shards=len(shards),
        num_cells=sum(shard.num_cells for shard in shards),
        report_key=f"reports/{plan.version:06d}-{manifest.content_digest[:16]}",
    )
    return manifest.model_copy(update={"increments": (*(parent.increments if parent else ()), increment)})


def _source_records(plan: IngestPlan, profiles: dict[int, SourceProfile]) -> Iterator[SourceRecord]:
    for index, profile in profiles.items():
        planned = plan.sources[index]
        description = planned.description
        yield SourceRecord(
            uri=description.uri,
            identity=planned.source.identity,
            config_digest=planned.source.fingerprint(),
            version=description.version,
            num_bytes=description.num_bytes,
            format=description.format,
            matrix=description.matrix,
            value_kind=description.value_kind,
            num_cells=description.num_cells,
            num_genes=description.num_genes,
            num_matched_genes=planned.num_matched_genes,
            num_kept_cells=profile.num_kept,
            dropped=dict(sorted(profile.dropped.items())),
            warned=dict(sorted(profile.warned.items())),
        )


def _write_report(plan: IngestPlan, manifest: CorpusManifest, profiles: dict[int, SourceProfile]) -> None:
    """Write and log the data report on what this version added, beside its shards."""
    from cytoray.corpus.reporting.report_page import write_report  # matplotlib: only where a report is written

    files = [FileReport(plan.sources[index].description, profile) for index, profile in profiles.items()]
    facts = CorpusFacts(
        name=manifest.name,
        version=manifest.version,
        digest=manifest.digest,
        num_cells=manifest.num_cells,
        num_bytes=manifest.num_bytes,
        num_shards=len(manifest.shards),
    )
    quarantined = tuple(Quarantined(**record.model_dump()) for record in manifest.quarantined)
    report = DataReport(f"Corpus {manifest.name}, version {manifest.version}", tuple(files), quarantined, facts)
    folder = manifest.increments[-1].report_key
    assert folder is not None, "an ingest names its report"
    log_report(report)
    write_report(storage.join(plan.uri, folder), report)


def _conflict(plan: IngestPlan, error: NotFoundError | RayError) -> ConflictError | None:
    """What to say where an object is gone because another ingest of this name has finished and cleared up."""
    if not isinstance(user_error(error), NotFoundError):
        return None
    winner = find_manifest(plan.config.store, f"{plan.config.corpus}@{plan.version}")
    if winner is None:
        return None
    return ConflictError(
        f"Version {plan.version} of corpus {plan.config.corpus!r} was committed by another ingest first "
        f"(manifest {winner.digest[:16]}, {winner.num_cells:,} cells).",
        remedy="Use that version, or run this ingest again: it finds what is there.",
        uri=corpus_uri(plan.config.store, plan.config.corpus),
        winner=winner.digest,
    )
