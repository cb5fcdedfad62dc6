"""Trace a model to its sources: bundle -> run -> configuration -> corpus versions -> files; without Ray or torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Any

from cytoray import storage
from cytoray.corpus.manifest import CorpusManifest, corpus_uri, list_versions, load_manifest
from cytoray.errors import ConfigError, CorpusError, NotFoundError, RegistryError, TrainingError
from cytoray.model.bundle_files import DIGESTS
from cytoray.registry.models import find_version
from cytoray.registry.models import list_versions as list_model_versions
from cytoray.registry.pinning import REGISTERED, RUN
from cytoray.runs import BundleRecord, Done, Which, done_uri, find_bundle, run_folder
from cytoray.tracking import TrackingConfig
from cytoray.training.record import RunRecord, load_run_record

WHICHES: tuple[Which, ...] = ("best", "last")


@dataclass(frozen=True)
class TracedModel:
    """A model that was found by its URI: what identifies its bundle, and what the bundle says of its origin."""

    uri: str
    digest: str
    lineage: dict[str, str]

    @property
    def run(self) -> str:
        """Name of the run that made it."""
        return self.lineage["run"]


@dataclass(frozen=True)
class TracedRun:
    """A training run as its store describes it, with the corpus and the model that it started from."""

    store: str
    record: RunRecord
    finished: Done
    bundle: BundleRecord
    which: Which
    corpus: CorpusManifest
    initial: str | None = None  # URI of a model that no run made, or run:NAME of the run before
    versions: dict[str, str] = field(default_factory=dict)  # of packages, as its checkpoint has them

    @property
    def name(self) -> str:
        """Name of the run."""
        return str(self.record.config["run"])

    @property
    def kind(self) -> str:
        """The stage that trained it."""
        return str(self.record.config["kind"])


@dataclass(frozen=True)
class Places:
    """Where models are looked up: the store of runs, and MLflow."""

    store: str | None = None
    tracking: TrackingConfig | None = None


@dataclass(frozen=True)
class Trace:
    """A model and the runs that lead to it, the first one first."""

    model: TracedModel
    runs: tuple[TracedRun, ...]
    tracking: TrackingConfig | None = None  # where a registered model was found


def trace_model(uri: str, *, places: Places) -> Trace:
    """Trace ``models:/…``, ``run:NAME`` or the URI of a bundle back to the sources of its cells.

    Raises RegistryError, TrainingError or CorpusError that name what the lineage lacks.
    """
    model = find_model(uri, places)
    if "run" not in model.lineage:
        raise RegistryError(
            f"{uri} was not made by a training run of cytoray, so it cannot be reproduced.",
            remedy="Its bundle names no run: it was imported, or registered from elsewhere.",
            uri=uri,
        )
    store = places.store or _store_in(model)
    runs: list[TracedRun] = []
    name: str | None = model.run
    digest = model.digest
    while name is not None:
        run = _find_run(store, name, step=model.lineage.get("step") if not runs else None, digest=digest)
        if any(run.name == later.name for later in runs):
            raise TrainingError(f"Run {name!r} starts from itself.", remedy="Its record was changed by hand.")
        run, name = _with_initial(run, places)
        digest = run.record.initial_digest
        runs.insert(0, run)
    return Trace(model, tuple(runs), places.tracking)


def find_model(uri: str, places: Places) -> TracedModel:
    """Find a bundle's digest and lineage."""
    if uri.startswith(REGISTERED):
        if places.tracking is None:
            problem = f"{uri} is a registered model, but no MLflow server is given."
            raise ConfigError(problem, remedy="Give --uri, or set MLFLOW_TRACKING_URI.")
        version = find_version(uri, tracking=places.tracking)
        return TracedModel(f"{REGISTERED}{version.name}/{version.version}", version.digest, version.lineage)
    if uri.startswith(RUN):
        if places.store is None:
            raise ConfigError(f"{uri} is a run, but no store is given.", remedy="Give --store as well.")
        record = find_bundle(places.store, uri.removeprefix(RUN))
        return TracedModel(uri, record.digest, record.lineage)
    lineage, listing = (storage.find_bytes(storage.join(uri, name)) for name in ("lineage.json", DIGESTS))
    if lineage is None or listing is None:
        raise NotFoundError(
            f"{uri} is not a bundle of cytoray: lineage.json or digests.json is missing.",
            remedy="Give models:/NAME@ALIAS, models:/NAME/VERSION, run:NAME, or the folder or s3:// URI of a bundle.",
        )
    return TracedModel(uri, hashlib.sha256(listing).hexdigest(), dict(json.loads(lineage)))


def _store_in(model: TracedModel) -> str:
    """Return the store that the lineage names: it holds the checkpoint."""
    store, separator, _ = model.lineage.get("checkpoint", "").rpartition(f"/runs/{model.run}/checkpoints/")
    if not separator:
        raise TrainingError(f"The lineage of {model.uri} does not name its store.", remedy="Give it with --store.")
    return store


def _find_run(store: str, name: str, *, step: str | None, digest: str) -> TracedRun:
    """Read what the store keeps of a run: its record, its bundle of that step or digest, and its corpus."""
    try:
        record = load_run_record(store, name)
    except NotFoundError as error:
        raise TrainingError(
            f"Run {name!r} is no longer in {store}.",
            remedy="If the store was moved, name its new place with --store; without the run's record, its "
            "configuration is unknown.",
            run=name,
        ) from error
    bundle, which = _find_bundle(store, name, step=step, digest=digest)
    done = storage.find_bytes(done_uri(store, name))
    finished = Done.model_validate_json(done) if done is not None else Done(mlflow_run_id=None)
    checkpoint = bundle.lineage["checkpoint"].rpartition("/")[2]
    state = storage.find_bytes(storage.join(run_folder(store, name), "checkpoints", checkpoint, "state.json"))
    known: dict[str, Any] = json.loads(state) if state is not None else {}
    return TracedRun(
        store,
        record,
        finished,
        bundle,
        which,
        corpus=_find_corpus(store, str(record.config["corpus"]), record.manifest_digest),
        versions=known.get("versions", {}),
    )


def _find_bundle(store: str, run: str, *, step: str | None, digest: str) -> tuple[BundleRecord, Which]:
    """Find which of a run's bundles is meant: the one with the digest, else the one of the step, else the best."""
    found: dict[Which, BundleRecord] = {}
    for which in WHICHES:
        try:
            found[which] = find_bundle(store, run, which=which)
        except TrainingError:
            if which == "best":
                raise
    for which, record in found.items():
        if record.digest == digest:
            return record, which
    for which, record in found.items():
        if step is not None and record.lineage.get("step") == step:
            return record, which
    return found["best"], "best"


def _find_corpus(store: str, corpus: str, digest: str) -> CorpusManifest:
    """Find the version of a corpus by its digest."""
    name = corpus.partition("@")[0]
    for version in reversed(list_versions(corpus_uri(store, name))):
        manifest = load_manifest(store, f"{name}@{version}")
        if manifest.digest == digest:
            return manifest
    raise CorpusError(
        f"Corpus {name!r} in {store} has no version with the manifest digest {digest[:16]} of the run.",
        remedy="If the store was moved, name its new place with --store.",
        corpus=name,
        digest=digest,
    )


def _with_initial(run: TracedRun, places: Places) -> tuple[TracedRun, str | None]:
    """Return the run with the model that it started from, and the name of the run that made this model, if any."""
    initial = run.record.config.get("initial")
    if initial is None:
        return run, None
    if initial.startswith(RUN):
        return replace(run, initial=initial), str(initial).removeprefix(RUN)
    if initial.startswith(REGISTERED):
        lineage = _find_registered(initial, run, places)
        if "run" in lineage:
            return replace(run, initial=f"{RUN}{lineage['run']}"), lineage["run"]
    return replace(run, initial=initial), None


def _find_registered(initial: str, run: TracedRun, places: Places) -> dict[str, str]:
    """Return the lineage of the registered version that a run started from, by digest: an alias may have moved."""
    tracking = places.tracking or TrackingConfig.model_validate(run.record.config["tracking"])
    name = initial.removeprefix(REGISTERED).partition("@")[0].partition("/")[0]
    wanted = run.record.initial_digest
    for version in list_model_versions(name, tracking=tracking):
        if version.digest == wanted:
            return version.lineage
    raise RegistryError(
        f"No version of {name!r} has the bundle {wanted[:16]} that run {run.name!r} started from.",
        remedy="Its version was deleted; without it this model cannot be reproduced.",
        run=run.name,
        digest=wanted,
    )


def listing_of(uri: str) -> dict[str, str]:
    """Return the SHA-256 of each file of a bundle at ``uri``."""
    return dict(json.loads(storage.read_bytes(storage.join(uri, DIGESTS)))["files"])
