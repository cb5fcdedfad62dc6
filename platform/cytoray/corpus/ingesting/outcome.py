"""The last objects of an ingest: the manifest of the new version and its data report."""

from __future__ import annotations

from collections.abc import Iterator

import cytoray
from cytoray import storage
from cytoray.corpus.checking.profile import SourceProfile
from cytoray.corpus.ingesting.planning import IngestPlan
from cytoray.corpus.manifest import (
    CorpusManifest,
    IncrementRecord,
    QuarantineRecord,
    ShardRecord,
    SourceRecord,
    load_manifest,
)
from cytoray.corpus.reporting.report import CorpusFacts, DataReport, FileReport, Quarantined
from cytoray.corpus.reporting.report_text import log_report
from cytoray.tokens.vocabulary import GeneVocabulary


def build_manifest(
    plan: IngestPlan,
    profiles: dict[int, SourceProfile],
    quarantined: tuple[QuarantineRecord, ...],
    shards: list[ShardRecord],
) -> CorpusManifest:
    """Build the manifest: the sources and shards of the parent version, then the new ones."""
    config = plan.config
    parent = load_manifest(config.store, f"{config.corpus}@{plan.version - 1}") if plan.version > 1 else None
    sources = tuple(_source_records(plan, profiles))
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
        quarantined=quarantined,
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
        config=config.model_dump(mode="json", exclude=set(config.places)),
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


def write_data_report(plan: IngestPlan, manifest: CorpusManifest, profiles: dict[int, SourceProfile]) -> None:
    """Write and log the data report on what this version added, beside its shards."""
    from cytoray.corpus.reporting.report_page import write_report  # matplotlib: only if a report is written

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
    title = f"Corpus {manifest.name}, version {manifest.version}"
    report = DataReport(title, tuple(files), quarantined, facts, plan.not_read)
    folder = manifest.increments[-1].report_key
    assert folder is not None, "an ingest names its report"
    log_report(report)
    write_report(storage.join(plan.uri, folder), report)
