"""Plan an ingest from the headers of its sources: which cells it reads, how many shards it writes."""

# C cells

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

import cytoray
from cytoray import storage
from cytoray.corpus.checking.checks import SLAB_ROWS, RowChecks, check_rows
from cytoray.corpus.checking.source_checks import corpus_values, map_source_genes, source_findings
from cytoray.corpus.config import IngestConfig, SourceConfig
from cytoray.corpus.ingesting.modalities import judge_modality, modality_notes
from cytoray.corpus.ingesting.obs_tables import column_types, unite_types
from cytoray.corpus.ingesting.shuffle import Groups
from cytoray.corpus.manifest import (
    CorpusManifest,
    FileRecord,
    QuarantineRecord,
    ShardRecord,
    corpus_uri,
    find_manifest,
)
from cytoray.corpus.readers.base import CellReader, SourceDescription
from cytoray.corpus.readers.finding import NotRead, find_sources, log_not_read
from cytoray.corpus.readers.opening import open_source
from cytoray.corpus.reporting.report import Quarantined
from cytoray.corpus.shards import Values
from cytoray.errors import CorpusError
from cytoray.tokens.cells import Int32
from cytoray.tokens.mapping import GeneMapping
from cytoray.tokens.vocabulary import GeneVocabulary

logger = logging.getLogger(__name__)
STAGING = 2  # version of what lies in a staging area: an ingest resumes only what it can read
FOLDERS = ("zarr", "10x_mtx", "scb")  # formats whose version is not that of one object
READERS = 8  # requests for the versions of known sources at a time
# Of pass one and two together on one core of 2.5 GHz, gzip h5ad to shards (benchmarks/ingest.py).
ENTRIES_PER_SECOND = 20e6
BYTES_PER_ENTRY, BYTES_PER_CELL = 1.02, 40  # of a shard with its obs


@dataclass(frozen=True)
class PlannedSource:
    """A source that can be read, with the facts in its header."""

    source: SourceConfig
    description: SourceDescription
    num_matched_genes: int
    obs_types: dict[str, str]
    features: dict[str, tuple[str, ...]]  # of each further modality
    whole: dict[str, bool]  # whether a sample of each further modality holds integers only


Described = tuple[PlannedSource, Int32]  # with the ids of its genes, ascending
Run = Callable[
    [Callable[[SourceConfig], Described | CorpusError], Sequence[SourceConfig]], Iterable[Described | CorpusError]
]


@dataclass(frozen=True)
class Modality:
    """A further matrix of the corpus."""

    features: tuple[str, ...]
    values: Values


@dataclass(frozen=True)
class KnownCells:
    """Where the content hashes of a committed shard lie: in a file of their own, or in the obs of an older corpus."""

    file: FileRecord
    num_cells: int
    in_obs: bool

    @staticmethod
    def of(shard: ShardRecord) -> KnownCells:
        """Locate the hashes of a shard."""
        return KnownCells(shard.hashes or shard.obs, shard.num_cells, in_obs=shard.hashes is None)


@dataclass(frozen=True)
class IngestPlan:
    """The plan of an ingest, pickled into each task."""

    config: IngestConfig
    sources: tuple[PlannedSource, ...]  # to be read, sorted by uri
    quarantined: tuple[QuarantineRecord, ...]
    values: Values
    modalities: dict[str, Modality]
    obs_types: dict[str, str]
    genes: Int32  # ascending ids of the genes of all sources; shards number genes by their index here
    num_partitions: int
    uri: str
    staging: str
    version: int
    known: tuple[KnownCells, ...]  # cells of the parent version
    not_read: tuple[NotRead, ...] = ()  # files below a prefix

    @property
    def groups(self) -> Groups:
        """How the partitions are grouped between the passes."""
        return Groups.of(self.num_partitions)

    @property
    def num_cells(self) -> int:
        """Number of cells to be read."""
        return sum(planned.description.num_cells for planned in self.sources)


@dataclass(frozen=True)
class DryRun:
    """The work of an ingest, estimated from headers."""

    num_sources: int
    num_quarantined: int
    num_cells: int
    num_bytes_read: int
    num_bytes_written: int
    num_shards: int
    seconds: float


def plan_ingest(config: IngestConfig, *, run: Run = map, only: frozenset[str] | None = None) -> IngestPlan:
    """Open every source's metadata, refuse sources that cannot be used, and plan the work.

    With ``append``, sources already in the corpus are left out, and new ones must fit it. Raises CorpusError for a bad
    source unless ``checks.max_bad_files`` lets it be quarantined. ``run`` calls a function with each source, as ``map``
    does: opening one takes a tenth of a second, and there may be thousands. With ``only``, sources with other URIs are
    left out: files that have come below a prefix since a version was ingested.
    """
    parent = find_manifest(config.store, config.corpus) if config.append else None
    known = {record.uri: record.identity for record in parent.sources} if parent else {}
    found = find_sources(config.sources, known=known)
    log_not_read(found)
    sources = sorted((s for s in found.sources if only is None or s.uri in only), key=lambda source: source.uri)
    planned, quarantined, genes = _describe_all(config, _unknown(sources, parent), run)
    values = corpus_values([p.description.value_kind for p in planned], config.checks)
    if parent is not None and planned:
        _refuse_misfit(config, values, parent)
        values = parent.values
    num_cells = sum(p.description.num_cells for p in planned)
    uri = corpus_uri(config.store, config.corpus)
    versions = [(p.source.uri, p.description.version) for p in planned]
    identity = json.dumps([config.fingerprint(), versions, cytoray.__version__, STAGING, parent and parent.digest])
    return IngestPlan(
        config=config,
        sources=tuple(planned),
        quarantined=tuple(quarantined),
        values=values,
        modalities=_unite_modalities(planned, parent),
        obs_types=unite_types([parent.obs_columns if parent else {}, *(p.obs_types for p in planned)]),
        genes=genes,
        num_partitions=max(1, round(num_cells / config.cells_per_shard)),
        uri=uri,
        staging=storage.join(uri, "staging", hashlib.sha256(identity.encode()).hexdigest()[:16]),
        version=1 if parent is None else parent.version + 1,
        known=tuple(KnownCells.of(shard) for shard in parent.shards if shard.num_cells) if parent else (),
        not_read=found.not_read,
    )


def dry_run(config: IngestConfig) -> DryRun:
    """Estimate the work of ``ingest(config)`` without reading any cells; raises CorpusError as ``ingest`` does."""
    plan = plan_ingest(config)
    read = sum(planned.description.num_bytes for planned in plan.sources)
    known = [planned.description.num_entries for planned in plan.sources]
    # If a format does not record it: about the size of a count and its column after gzip.
    entries = sum(
        read_bytes // 2 if count is None else count
        for count, read_bytes in zip(known, (p.description.num_bytes for p in plan.sources), strict=True)
    )
    return DryRun(
        num_sources=len(plan.sources),
        num_quarantined=len(plan.quarantined),
        num_cells=plan.num_cells,
        num_bytes_read=read,
        num_bytes_written=round(BYTES_PER_ENTRY * entries + BYTES_PER_CELL * plan.num_cells),
        num_shards=plan.num_partitions if plan.num_cells else 0,
        seconds=entries / ENTRIES_PER_SECOND / config.read_concurrency,
    )


def quarantine(config: IngestConfig, record: QuarantineRecord, *, so_far: int) -> QuarantineRecord:
    """Leave out a bad source if ``checks.max_bad_files`` allows one more than ``so_far``; otherwise raise."""
    if so_far >= config.checks.max_bad_files:
        problem = f"{record.uri}: {record.reason}"
        if so_far:
            problem = f"{problem} This is bad file number {so_far + 1}; checks.max_bad_files is {so_far}."
        raise CorpusError(problem, remedy=record.remedy, uri=record.uri, rule=record.rule, key=record.key)
    logger.warning("%s is left out: %s", record.uri, record.reason)
    return record


def refused(uri: str, error: CorpusError) -> QuarantineRecord:
    """Return the record of a source that ``error`` refused."""
    return QuarantineRecord(**dataclasses.asdict(Quarantined.of(uri, error)))


def describe_source(description: SourceDescription, num_matched_genes: int) -> str:
    """Describe in one line what a file contains and how it will be used."""
    done = {
        "counts": "raw counts, kept exactly",
        "near_counts": "counts with floating-point noise, rounded",
        "recoverable": "log-normalised values whose counts are recoverable, restored cell by cell",
        "expression": "expression, not counts, kept as float32 (bins depend on ranks only)",
        "negative": "values below zero, which will be refused",
    }[description.value_kind]
    return (
        f"{description.num_cells:,} cells, {num_matched_genes:,} of {description.num_genes:,} genes in the vocabulary, "
        f"{description.matrix}: {done}"
    )


def _unknown(sources: Sequence[SourceConfig], parent: CorpusManifest | None) -> list[SourceConfig]:
    """Return the sources missing from ``parent``; CorpusError if one of its own changed or its name is taken."""
    known = {record.identity: record for record in parent.sources} if parent else {}
    fresh, old = [], []
    for source in sources:
        record = known.get(source.identity)
        if record is None:
            fresh.append(source)
        elif record.uri != source.uri or record.config_digest != source.fingerprint():
            raise CorpusError(
                f"{source.uri}: the corpus has cells of a source called {source.identity!r} already ({record.uri}), "
                "read from elsewhere or with other settings.",
                remedy="Give this source another `name`, or leave it out.",
                uri=source.uri,
            )
        else:
            old.append((source, record))
    with ThreadPoolExecutor(READERS, "versions") as pool:
        versions = list(pool.map(lambda pair: source_version(pair[0], pair[1].format), old))
    for (source, record), version in zip(old, versions, strict=True):
        if version != record.version:
            raise CorpusError(
                f"{source.uri}: the file is not the one that the corpus was made from.",
                remedy="Leave it out, or ingest everything under another name; committed cells never change.",
                uri=source.uri,
            )
    return fresh


def source_version(source: SourceConfig, format: str) -> str:
    """Return a source's version as it is stored now; for a single file this takes one request and does not open it."""
    if format not in FOLDERS:
        return storage.info(source.uri).version
    with open_source(source) as reader:
        return reader.version


def _describe_all(
    config: IngestConfig, sources: Sequence[SourceConfig], run: Run
) -> tuple[list[PlannedSource], list[QuarantineRecord], Int32]:
    """Return the usable sources, the others, and the ids of all genes of usable ones, ascending."""
    planned: list[PlannedSource] = []
    quarantined: list[QuarantineRecord] = []
    genes = np.empty(0, np.int32)
    for source, outcome in zip(sources, run(functools.partial(_describe_or_refuse, config), sources), strict=True):
        if isinstance(outcome, CorpusError):
            if config.checks.max_bad_files == 0:
                raise outcome
            quarantined.append(quarantine(config, refused(source.uri, outcome), so_far=len(quarantined)))
            continue
        described, its_genes = outcome
        logger.info("%s: %s", source.uri, describe_source(described.description, described.num_matched_genes))
        planned.append(described)
        genes = np.union1d(genes, its_genes)
    counts = Counter(p.source.identity for p in planned)
    assert not counts or max(counts.values()) == 1, "find_sources refuses equal identities"
    return planned, quarantined, genes


def _describe_or_refuse(config: IngestConfig, source: SourceConfig) -> Described | CorpusError:
    try:
        return _describe(config, source)
    except CorpusError as error:
        return error


def _describe(config: IngestConfig, source: SourceConfig) -> Described:
    """Open one source; return its description and the ids of its genes, ascending. CorpusError if it is unusable."""
    vocabulary = GeneVocabulary.load_default()
    with open_source(source) as reader:
        description = reader.describe()
        mapping = map_source_genes(reader, vocabulary, config.checks)
        source_findings(reader, mapping, config.checks)
        if description.value_kind == "negative" and config.checks.rules.negative == "error":
            _refuse_negative(reader, mapping, config, description.num_cells)
        for column in config.obs_columns:
            if column not in reader.obs:
                reader.labels(column)  # raises with the columns there
        genes = mapping.measured
        num_matched = mapping.num_matched
        features = {name: tuple(reader.modality_features(name)) for name in description.modalities}
        whole = {name: judge_modality(reader, name, num_cells=description.num_cells) for name in features}
        obs_types = column_types(reader.obs, config.obs_columns)
    notes = (*description.notes, *modality_notes(features, whole))
    described = dataclasses.replace(description, notes=notes)
    return PlannedSource(source, described, num_matched, obs_types, features, whole), genes


def _refuse_negative(reader: CellReader, mapping: GeneMapping, config: IngestConfig, num_cells: int) -> None:
    """Read up to the negative value that the sample showed, and raise a CorpusError that names its cell."""
    options = RowChecks(config.checks, config.filter, "expression")
    for start in range(0, num_cells, SLAB_ROWS):
        check_rows(reader, mapping, options, start=start, stop=min(start + SLAB_ROWS, num_cells))


def _unite_modalities(planned: Sequence[PlannedSource], parent: CorpusManifest | None) -> dict[str, Modality]:
    """Unite the features of each modality over all sources; those of ``parent`` keep their indices."""
    united: dict[str, Modality] = {}
    for name in sorted({*(parent.modalities if parent else ()), *(name for p in planned for name in p.features)}):
        old = parent.modalities.get(name, ()) if parent else ()
        new = {feature for p in planned for feature in p.features.get(name, ())} - set(old)
        whole = all(p.whole.get(name, True) for p in planned)
        values: Values = "counts" if whole else "expression"
        if old and parent:
            values = parent.modality_values[name]
            if values == "counts" and not whole:
                raise CorpusError(
                    f"Modality {name!r} of the corpus holds counts; these sources hold other values.",
                    remedy="Name the raw counts in sources.modalities.",
                )
        united[name] = Modality((*old, *sorted(new)), values)
    return united


def _refuse_misfit(config: IngestConfig, values: Values, parent: CorpusManifest) -> None:
    """Raise CorpusError if new cells would not mean the same as those in the corpus."""
    here = {
        "values": (values, parent.values),
        "binning": (config.binning, parent.binning),
        "tokenizer.n_bins": (config.tokenizer.n_bins, parent.n_bins),
        "seed": (config.seed, parent.seed),
        "gene vocabulary": (GeneVocabulary.load_default().digest(), parent.vocabulary_digest),
    }
    if values == "counts" and parent.values == "expression":
        del here["values"]  # counts are expression too
    differing = [f"{name} ({new}, there {old})" for name, (new, old) in here.items() if new != old]
    if differing:
        raise CorpusError(
            f"Corpus {config.corpus!r} cannot take these sources: {', '.join(differing)} differ.",
            remedy="Make the configuration agree, or ingest them under another name.",
            corpus=config.corpus,
        )
