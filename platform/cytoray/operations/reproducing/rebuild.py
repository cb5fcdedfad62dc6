"""Rebuild a model step by step in a new store: a step that is done is found again, so a killed rebuild continues."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cytoray import progress, storage
from cytoray.config import build_from
from cytoray.corpus.ingest import ingest, plan_in_tasks
from cytoray.corpus.manifest import find_manifest
from cytoray.errors import ConfigError, ConflictError, TrainingError
from cytoray.operations.reproducing.compare import Comparison, compare_bundles, compare_corpora
from cytoray.operations.reproducing.plan import CorpusStep, Plan, RunStep, check_out, refuse_bad_sources
from cytoray.registry.opening import open_model
from cytoray.registry.pinning import REGISTERED, RUN
from cytoray.runs import find_bundle
from cytoray.stages.find import find_stage
from cytoray.tasks import learning_stages
from cytoray.tracking import TrackingConfig
from cytoray.training.config import RunConfig

MARKER, REPORT = "reproduction.json", "report.json"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reproduction:
    """The result: a comparison per step and, last, of the model; ``equal`` if nothing that matters differs."""

    model: str
    out: str
    store: str
    bundle: str
    comparisons: tuple[Comparison, ...]
    warnings: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether the corpora and the model are equal to the originals, bit by bit."""
        return all(comparison.equal for comparison in self.comparisons)


@dataclass(frozen=True)
class Target:
    """Where a model is rebuilt: a local folder of its own, and a store, by default in it."""

    out: Path
    store: str
    tracking: TrackingConfig


def open_target(plan: Plan, out: Path, *, store: str | None = None) -> Target:
    """Claim a new folder, and store, for the rebuilding of one model; an earlier, interrupted one continues there.

    Raises ConfigError for a folder or store that has anything else, which is never overwritten.
    """
    folder = check_out(out)
    place = store or str(folder / "store")
    marker = json.dumps({"model": plan.trace.model.digest}).encode()
    for where, words in ((str(folder), "--out"), (place, "--into")):
        if where == place and storage.find_bytes(storage.join(str(folder), MARKER)) == marker and store is None:
            continue
        there = storage.find_bytes(storage.join(where, MARKER))
        if there is None and storage.list_files(where):
            raise ConfigError(
                f"{where} has other files, which a reproduction does not overwrite.",
                remedy=f"Name a new place by {words}.",
            )
        if there is not None and there != marker:
            raise ConfigError(f"{where} is the reproduction of another model.", remedy=f"Name a new place by {words}.")
        try:
            storage.put_if_absent(storage.join(where, MARKER), marker)
        except ConflictError:
            logger.info("%s: an earlier reproduction continues", where)
    tracking = TrackingConfig(
        uri=f"sqlite:///{folder / 'mlflow.db'}", experiment="reproduction", journal_folder=str(folder / "journal")
    )
    return Target(folder, place, tracking)


def rebuild(plan: Plan, target: Target) -> Reproduction:
    """Do every step and compare it with the original; to be called where Ray is ``cluster.available``.

    Raises CorpusError before anything is rebuilt if a source has changed or is gone, and TrainingError if a corpus was
    rebuilt with other cells, since training on them would show nothing.
    """
    refuse_bad_sources(plan)
    comparisons: list[Comparison] = []
    for step in plan.steps:
        found = _rebuild_corpus(step, target) if isinstance(step, CorpusStep) else _rebuild_run(step, target)
        comparisons.append(found)
        logger.info("%s: %s", found.what, "equal" if found.equal else "different")
        if isinstance(step, CorpusStep) and not found.equal:
            break
    else:
        comparisons.append(_compare_model(plan, target))
    result = Reproduction(
        plan.trace.model.uri,
        str(target.out),
        target.store,
        _bundle_uri(plan.trace.runs[-1].name, plan, target) if len(comparisons) > len(plan.steps) else "",
        tuple(comparisons),
        plan.warnings,
    )
    _save_report(result, target)
    return result


def _rebuild_corpus(step: CorpusStep, target: Target) -> Comparison:
    """Ingest a version again, from exactly the sources that it was ingested from."""
    config = step.config.model_copy(update={"store": target.store})
    rebuilt = find_manifest(target.store, step.title)
    if rebuilt is None:
        planned = plan_in_tasks(config, only=step.only)
        with progress.stage(f"ingest {step.title}", total=planned.num_cells, unit="cells") as advance:
            rebuilt = ingest(config, plan=planned, advance=advance).manifest
    return compare_corpora(step.manifest, rebuilt)


def _rebuild_run(step: RunStep, target: Target) -> Comparison:
    """Train a run again, unless its bundle is there, and compare its bundle."""
    run = step.run
    config = _run_config(step, target)
    try:
        find_bundle(target.store, run.name, which=run.which)
    except TrainingError:
        find_stage(run.kind)(config)
    rebuilt = find_bundle(target.store, run.name, which=run.which)
    return compare_bundles(f"run {run.name}", run.bundle.uri, rebuilt.uri)


def _run_config(step: RunStep, target: Target) -> RunConfig:
    """Return the configuration of a run with the places and the initial model of the reproduction."""
    run = step.run
    kind = learning_stages()[run.kind].config.load()
    values = run.record.config | {
        "store": target.store,
        "corpus": step.corpus,
        "tracking": target.tracking.model_dump(mode="json"),
        "allow_changes": [],
    }
    if run.initial is not None:
        values["initial"] = run.initial
    config = build_from(kind, values, source=f"the record of run {run.name}")
    assert isinstance(config, RunConfig), "a stage that learns has the configuration of a run"
    _check_inputs(step, config)
    return config


def _check_inputs(step: RunStep, config: RunConfig) -> None:
    """Raise TrainingError if a file, or an initial model that no run made, is not the one that the run had."""
    record = step.run.record
    for key, wanted in record.input_digests.items():
        uri = getattr(config, key)
        data = storage.find_bytes(uri)
        if data is None or hashlib.sha256(data).hexdigest() != wanted:
            raise TrainingError(
                f"{uri} ({key}) of run {step.run.name!r} {'is gone' if data is None else 'has changed'}.",
                remedy=f"Restore the file with SHA-256 {wanted}.",
                key=key,
            )
    initial = step.run.initial
    if initial is None or initial.startswith(RUN) or not record.initial_digest:
        return
    seen = open_model(initial, tracking=_tracking_of(step) if initial.startswith(REGISTERED) else None).digest
    if seen != record.initial_digest:
        raise TrainingError(
            f"{initial}, from which run {step.run.name!r} started, is now the model {seen[:16]}; it was "
            f"{record.initial_digest[:16]}.",
            remedy="Restore it at the same place.",
        )


def _tracking_of(step: RunStep) -> TrackingConfig:
    """Return the MLflow that the original run was recorded in."""
    return TrackingConfig.model_validate(step.run.record.config["tracking"])


def _bundle_uri(run: str, plan: Plan, target: Target) -> str:
    return find_bundle(target.store, run, which=plan.trace.runs[-1].which).uri


def _compare_model(plan: Plan, target: Target) -> Comparison:
    """Compare the model that was asked for: a registered one is fetched, with its bytes verified."""
    model, last = plan.trace.model, plan.trace.runs[-1]
    rebuilt = _bundle_uri(last.name, plan, target)
    if not model.uri.startswith((REGISTERED, RUN)):
        return compare_bundles(model.uri, model.uri, rebuilt)
    if model.digest == last.bundle.digest:
        return compare_bundles(model.uri, last.bundle.uri, rebuilt)
    with tempfile.TemporaryDirectory(prefix="cytoray-reproduce-") as cache:
        tracking = plan.trace.tracking
        opened = open_model(model.uri, store=last.store, tracking=tracking, cache_folder=cache)
        with opened.as_folder() as folder:
            return compare_bundles(model.uri, str(folder), rebuilt)


def _save_report(result: Reproduction, target: Target) -> None:
    """Write the report beside what was rebuilt."""
    storage.write_bytes(storage.join(str(target.out), REPORT), json.dumps(report(result), indent=1).encode())


def report(result: Reproduction) -> dict[str, Any]:
    """Return the result as JSON data."""
    return {"equal": result.equal, **asdict(result)}


def report_lines(result: Reproduction) -> Iterator[str]:
    """Describe the result in lines for people."""
    for found in result.comparisons:
        verdict = "equal" if found.equal else "DIFFERENT"
        seen = "" if found.expected == found.seen else f", rebuilt {found.seen[:16]}"
        yield f"{verdict:<10}{found.what}  {found.expected[:16]}{seen}"
        yield from (f"          {line}" for line in found.differences)
        if found.max_difference is not None:
            yield f"          weights differ by up to {found.max_difference:.3g}"
    yield f"{result.model}: {'reproduced bit by bit' if result.equal else 'NOT reproduced'}, in {result.store}"
