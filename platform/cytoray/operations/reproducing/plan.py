"""Plan the rebuilding of a model: its sources as they are now, the steps in order, and what may differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cytoray import provenance, storage
from cytoray.config import load_config
from cytoray.corpus.config import IngestConfig, SourceConfig
from cytoray.corpus.manifest import CorpusManifest, IncrementRecord, SourceRecord, load_manifest
from cytoray.errors import ConfigError, CorpusError, CytorayError, NotFoundError
from cytoray.operations.reproducing.lineage import Trace, TracedRun

SourceState = Literal["unchanged", "touched", "changed", "missing"]
STARTED = "started with "  # of an event, then the number of workers
CODE = ("cytoray", "git_revision", "source_digest")  # of an environment, beside packages


@dataclass(frozen=True)
class SourceCheck:
    """A source of a corpus version, and whether it is what it was.

    ``touched``: a local file of the same size whose time of change differs; the corpus's content shows if it changed.
    """

    uri: str
    num_bytes: int
    recorded: str  # ETag, or size and mtime
    state: SourceState
    reason: str = ""


@dataclass(frozen=True)
class CorpusStep:
    """Ingest one version of a corpus again."""

    store: str  # where the original is
    manifest: CorpusManifest  # of the original
    config: IngestConfig  # as it was, with the original's store
    sources: tuple[SourceCheck, ...]

    @property
    def title(self) -> str:
        """Name and version."""
        return f"{self.manifest.name}@{self.manifest.version}"

    @property
    def only(self) -> frozenset[str]:
        """URIs of what was read, the sources in quarantine included."""
        return frozenset(
            [*(source.uri for source in self.manifest.sources), *(bad.uri for bad in self.manifest.quarantined)]
        )


@dataclass(frozen=True)
class RunStep:
    """Train one run again."""

    run: TracedRun
    corpus: str  # NAME@VERSION, or as it was configured if that is the same

    @property
    def title(self) -> str:
        """Stage and name."""
        return f"{self.run.kind} {self.run.name}"


Step = CorpusStep | RunStep


@dataclass(frozen=True)
class Plan:
    """The steps that rebuild a model, and what may make the result differ."""

    trace: Trace
    steps: tuple[Step, ...]
    warnings: tuple[str, ...]

    @property
    def bad_sources(self) -> tuple[SourceCheck, ...]:
        """Sources that have changed or are gone."""
        corpora = (step for step in self.steps if isinstance(step, CorpusStep))
        return tuple(source for step in corpora for source in step.sources if source.state in ("changed", "missing"))


def plan_reproduction(trace: Trace, *, ingests: Sequence[Path] = ()) -> Plan:
    """Plan the steps; ``ingests`` are the configurations of corpora that do not record them.

    Every source is looked up, which takes one request each. Raises CorpusError for a corpus whose configuration is
    neither recorded nor given.
    """
    given = [load_config(IngestConfig, file) for file in ingests]
    steps: list[Step] = []
    done: dict[str, int] = {}  # versions of each corpus that the steps so far have
    for run in trace.runs:
        name, version = run.corpus.name, run.corpus.version
        for number in range(done.get(name, 0) + 1, version + 1):
            steps.append(_corpus_step(run.store, f"{name}@{number}", given))  # noqa: PERF401 - of two kinds
        done[name] = max(version, done.get(name, 0))
        asked = str(run.record.config["corpus"])
        steps.append(RunStep(run, asked if done[name] == version else f"{name}@{version}"))
    return Plan(trace, tuple(steps), tuple(_warnings(trace, steps)))


def _corpus_step(store: str, corpus: str, given: Sequence[IngestConfig]) -> CorpusStep:
    manifest = load_manifest(store, corpus)
    increment = manifest.increments[-1]
    config = _ingest_config(store, manifest, increment, given)
    parent = load_manifest(store, f"{manifest.name}@{manifest.version - 1}") if manifest.version > 1 else None
    old = {source.uri for source in parent.sources} if parent is not None else set()
    fresh = [source for source in manifest.sources if source.uri not in old]
    return CorpusStep(store, manifest, config, tuple(check_source(source, config) for source in fresh))


def _ingest_config(
    store: str, manifest: CorpusManifest, increment: IncrementRecord, given: Sequence[IngestConfig]
) -> IngestConfig:
    """Return the configuration that a version was ingested with."""
    places: dict[str, Any] = {"store": store, "append": manifest.version > 1}
    for config in given:
        if config.fingerprint() == increment.config_digest:
            return config.model_copy(update=places)
    if increment.config is None:
        raise CorpusError(
            f"{manifest.name}@{manifest.version} was ingested by a version of cytoray that did not record the "
            "configuration of an ingest.",
            remedy=f"Give the YAML file that it was ingested with by --ingest FILE (its fingerprint, which `cytoray "
            f"config check` prints, begins with {increment.config_digest[:12]}).",
            corpus=manifest.name,
            config_digest=increment.config_digest,
        )
    config = IngestConfig.model_validate_json(json.dumps(increment.config | places))
    if config.fingerprint() != increment.config_digest:
        raise CorpusError(
            f"The configuration that {manifest.name}@{manifest.version} records is not the one it was ingested with.",
            remedy="This version of cytoray has other settings; use the version that the lineage names.",
        )
    return config


def check_source(record: SourceRecord, config: IngestConfig) -> SourceCheck:
    """Compare a source with its record by size and version; nothing is read but its description."""
    from cytoray.corpus.ingesting.planning import source_version  # imports readers of all formats

    source = _source_config(record, config)
    state: SourceState = "unchanged"
    reason = ""
    try:
        now = source_version(source, record.format)
        if now != record.version:
            is_local = not storage.is_remote(record.uri)
            same_size = is_local and now.partition("-")[0] == record.version.partition("-")[0]
            state, reason = ("touched" if same_size else "changed"), f"it was {record.version}, now it is {now}"
    except NotFoundError:
        state, reason = "missing", "there is no such file"
    except CytorayError as error:
        state, reason = "missing", error.problem
    return SourceCheck(record.uri, record.num_bytes, record.version, state, reason)


def _source_config(record: SourceRecord, config: IngestConfig) -> SourceConfig:
    """Return the entry of the configuration that a source is of, as that of this file alone."""
    entries = [entry for entry in config.sources if record.uri.startswith(entry.uri.rstrip("/"))]
    entry = max(entries, key=lambda each: len(each.uri), default=SourceConfig(uri=record.uri))
    return entry.model_copy(update={"uri": record.uri, "name": record.identity})


def _warnings(trace: Trace, steps: Sequence[Step]) -> Iterator[str]:
    """Describe what may make the weights or the digests differ, as far as it is known before the start."""
    here = provenance.environment()
    for run in trace.runs:
        yield from (f"run {run.name}: {line}" for line in _run_warnings(run, here))
    for step in steps:
        if not isinstance(step, CorpusStep):
            continue
        for source in step.sources:
            if source.state == "touched":
                yield f"{source.uri}: {source.reason}; the content of the corpus will show whether its cells changed"
        code = step.manifest.increments[-1].code_version
        if code != here["cytoray"]:
            yield f"corpus {step.title} was ingested by cytoray {code}, this is {here['cytoray']}"


def _run_warnings(run: TracedRun, here: dict[str, str]) -> Iterator[str]:
    there = run.record.environment or {
        **run.versions,
        "git_revision": run.bundle.lineage.get("git_revision", "unknown"),
    }
    if not run.record.environment:
        yield "it records neither the code nor all packages it was trained with, as older runs do not"
    same_code = "source_digest" in there and there["source_digest"] == here["source_digest"]
    differing = [
        f"{name} {there[name]}, this is {here[name]}"
        for name in there.keys() & here.keys()
        if there[name] != here[name]
        and not (name in CODE and (same_code or name == "source_digest"))
        and there[name] != "unknown"
    ]
    if not same_code and "source_digest" in there and not any(line.startswith(CODE[:2]) for line in differing):
        differing.append("the files of cytoray differ from those it was trained with")
    for line in sorted(differing):
        yield f"{line}: weights may differ in their last bits"
    workers = run.record.config["workers"]
    devices = {worker["gpu"] for worker in run.finished.hardware if "gpu" in worker}
    if devices or workers["use_gpu"]:
        yield f"it was trained on GPUs ({', '.join(sorted(devices)) or 'unknown'}): weights agree up to rounding only"
    chips = {worker.get("processor", "") for worker in run.finished.hardware} - {""}
    if chips and chips != {provenance.processor()}:
        trained_on = ", ".join(sorted(chips))
        yield f"it was trained on {trained_on}, this is {provenance.processor()}: sums may round differently"
    starts = [event for event in run.finished.events if event.startswith(STARTED)]
    if len({event.removeprefix(STARTED).partition(" ")[0] for event in starts}) > 1:
        yield f"its number of workers changed: {'; '.join(starts)}"
    yield from (event for event in run.finished.events if event not in starts)


def refuse_bad_sources(plan: Plan) -> None:
    """Raise CorpusError that names every source which has changed or is gone."""
    bad = plan.bad_sources
    if not bad:
        return
    lines = [f"{source.uri} ({source.state}: {source.reason})" for source in bad]
    raise CorpusError(
        f"{len(bad)} of the sources that {plan.trace.model.uri} was made from are not what they were: "
        f"{'; '.join(lines[:10])}{'; …' if len(lines) > 10 else ''}.",
        remedy="Restore them, for example from an earlier version in the bucket, at the same URIs.",
        sources=[source.uri for source in bad],
    )


def check_out(out: Path) -> Path:
    """Return the absolute folder; ConfigError if it is a file."""
    folder = out.expanduser().absolute()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file.", remedy="Name a new folder with --out.")
    return folder
