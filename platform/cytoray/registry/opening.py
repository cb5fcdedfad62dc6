"""Open any model by its URI: a run's bundle, a registered version, a bundle, or a public scGPT checkpoint."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cytoray import storage
from cytoray.config import build_config
from cytoray.errors import ConfigError, CytorayError, NotFoundError
from cytoray.model.bundle import DIGESTS, ModelBundle, compute_digest, save_bundle
from cytoray.model.public_checkpoint import WEIGHTS, load_public_checkpoint, names_heads
from cytoray.registry.artifacts import RegisteredVersion, fetch_bundle
from cytoray.registry.cache import WantedBundle, load_cached, load_verified
from cytoray.registry.models import find_version, list_models
from cytoray.registry.pinning import REGISTERED as REGISTERED  # it is imported from here too
from cytoray.registry.pinning import RUN as RUN
from cytoray.registry.pinning import UNREGISTERED
from cytoray.runs import BundleRecord, describe_runs, find_bundle
from cytoray.tracking import TrackingConfig

logger = logging.getLogger(__name__)
CACHE_FOLDER = "~/.cache/cytoray/models"
FORMS = (
    "run:NAME (a finished run of the store), models:/NAME@ALIAS, models:/NAME/VERSION, or the folder or s3:// URI of a "
    "bundle or of a public scGPT checkpoint"
)


@dataclass(frozen=True)
class OpenedModel:
    """A model that was found by its URI, verified, on the CPU; with what identifies it."""

    bundle: ModelBundle
    uri: str  # as it was asked for
    name: str  # in the registry, of the run, or of the folder
    version: str  # in the registry, else UNREGISTERED
    digest: str
    folder: Path | None = None  # the bundle's files; None if it was made of a public checkpoint
    record: BundleRecord | None = None  # of a run
    registered: RegisteredVersion | None = None

    @contextlib.contextmanager
    def as_folder(self) -> Iterator[Path]:
        """Give the bundle as a local folder, with the bytes it was opened from, for the length of a ``with`` block."""
        if self.folder is not None:
            yield self.folder
            return
        with tempfile.TemporaryDirectory(prefix="cytoray-model-") as scratch:
            save_bundle(self.bundle, Path(scratch) / "bundle")
            yield Path(scratch) / "bundle"

    def store_in(self, uri: str) -> None:
        """Copy the bundle to a folder or prefix, unless it is there already; its listing arrives last."""
        if not storage.exists(storage.join(uri, DIGESTS)):
            with self.as_folder() as folder:
                storage.upload_folder(folder, uri, last=DIGESTS)


def open_model(
    uri: str,
    *,
    store: str | None = None,
    tracking: TrackingConfig | None = None,
    cache_folder: str | Path = CACHE_FOLDER,
    num_heads: int | None = None,
) -> OpenedModel:
    """Open the model that ``uri`` names, in one of the ``FORMS``.

    ``store`` is where run:NAME is looked up, ``tracking`` where models:/… is (default: $MLFLOW_TRACKING_URI). Bundles
    from elsewhere are kept in ``cache_folder`` by digest; local ones are used in place. ``num_heads`` is used for a
    public checkpoint whose args.json does not give it. Raises NotFoundError, TrainingError or RegistryError that list
    the models there are, DigestError for changed bytes, ModelError for content that does not fit together.
    """
    cache = Path(cache_folder).expanduser()
    if uri.startswith(REGISTERED):
        return _open_registered(uri, resolve_tracking(uri, tracking), cache)
    if uri.startswith(RUN):
        return _open_run(uri, _store_of(uri, store), cache)
    if not storage.is_remote(uri):
        folder = storage.local_path(uri)
        if (folder / DIGESTS).exists():
            return _open_bundle(uri, None, cache)
        if (folder / WEIGHTS).exists():
            return _open_public(uri, folder, num_heads)
        raise _not_found(uri, store, tracking)
    if storage.exists(storage.join(uri, DIGESTS)):
        return _open_bundle(uri, None, cache)
    if not storage.exists(storage.join(uri, WEIGHTS)):
        raise _not_found(uri, store, tracking)
    with tempfile.TemporaryDirectory(prefix="cytoray-model-") as scratch:
        storage.download_folder(uri, Path(scratch) / "model")
        return _open_public(uri, Path(scratch) / "model", num_heads)


def find_digest(
    uri: str,
    *,
    store: str | None = None,
    tracking: TrackingConfig | None = None,
    cache_folder: str | Path = CACHE_FOLDER,
) -> str:
    """Return the digest of the bundle that ``uri`` names now; only a public checkpoint is loaded for that."""
    if uri.startswith(REGISTERED):
        return find_version(uri, tracking=resolve_tracking(uri, tracking)).digest
    if uri.startswith(RUN):
        return find_bundle(_store_of(uri, store), uri.removeprefix(RUN)).digest
    listing = storage.find_bytes(storage.join(uri, DIGESTS))
    if listing is not None:
        return hashlib.sha256(listing).hexdigest()
    return open_model(uri, store=store, tracking=tracking, cache_folder=cache_folder).digest


def _open_registered(uri: str, tracking: TrackingConfig, cache: Path) -> OpenedModel:
    version = find_version(uri, tracking=tracking)
    bundle = fetch_bundle(version, tracking_uri=tracking.uri, cache_folder=cache)
    folder = cache / version.digest
    return OpenedModel(
        bundle, uri, version.name, str(version.version), version.digest, folder=folder, registered=version
    )


def _open_run(uri: str, store: str, cache: Path) -> OpenedModel:
    return _open_bundle(uri, find_bundle(store, uri.removeprefix(RUN)), cache)


def _open_bundle(uri: str, record: BundleRecord | None, cache: Path) -> OpenedModel:
    """Open a bundle's folder in place, or from the cache if it is remote; a run's must be the one it exported."""
    place = uri if record is None else record.uri
    if record is not None:
        remedy = "Export it again from the run's checkpoint: this is not the bundle that the run exported."
        wanted = WantedBundle(record.digest, label=place, remedy=remedy)
    else:
        listing = storage.read_bytes(storage.join(place, DIGESTS))
        remedy = "Copy the bundle again from its source, whole and alone in its folder."
        wanted = WantedBundle(hashlib.sha256(listing).hexdigest(), label=place, remedy=remedy)

    def fetch(draft: Path) -> Path:
        """Download the bundle."""
        storage.download_folder(place, draft / "bundle")
        return draft / "bundle"

    if storage.is_remote(place):
        folder = cache / wanted.digest
        bundle = load_cached(wanted, cache_folder=cache, fetch=fetch)
    else:
        folder = storage.local_path(place)
        bundle = load_verified(folder, wanted)
    name = uri.removeprefix(RUN) if record is not None else _last_part(uri)
    return OpenedModel(bundle, uri, name, UNREGISTERED, wanted.digest, folder=folder, record=record)


def _open_public(uri: str, folder: Path, num_heads: int | None) -> OpenedModel:
    # Tensors do not show the number of heads: if args.json does not give it, the user must.
    overrides = {"num_heads": num_heads} if num_heads is not None and not names_heads(folder) else None
    checkpoint = load_public_checkpoint(folder, overrides=overrides)
    logger.info("%s: %s", uri, checkpoint.report.text())
    bundle = checkpoint.to_bundle()
    bundle.digest = compute_digest(bundle)
    return OpenedModel(bundle, uri, _last_part(uri), UNREGISTERED, bundle.digest)


def resolve_tracking(uri: str, tracking: TrackingConfig | None) -> TrackingConfig:
    """Return the MLflow that was given, or that of the environment; ConfigError, which names ``uri``, without any."""
    if tracking is not None:
        return tracking
    server = os.environ.get("MLFLOW_TRACKING_URI")
    if server is None:
        raise ConfigError(
            f"{uri} is a registered model, but no MLflow server is given.",
            remedy="Give tracking_uri (http://host:port or sqlite:///mlflow.db), or set MLFLOW_TRACKING_URI.",
        )
    return build_config(TrackingConfig, overrides=[f"uri={server}"])


def _store_of(uri: str, store: str | None) -> str:
    if store is None:
        raise ConfigError(
            f"{uri} is a run, but no store is given.", remedy="Give store (s3://bucket/prefix or a folder) as well."
        )
    return store


def _not_found(uri: str, store: str | None, tracking: TrackingConfig | None) -> NotFoundError:
    """Describe a name without a model: what the place holds, the forms allowed, and the models that exist."""
    holds = ""
    if not storage.is_remote(uri):
        folder = storage.local_path(uri)
        holds = "; it does not exist"
        if folder.is_dir():
            names = sorted(path.name for path in folder.iterdir())
            holds = f"; it holds {', '.join(names[:10]) or 'nothing'}"
    there = []
    if store is not None:
        there.append(f"Runs: {describe_runs(store)}.")
    if tracking is not None:
        with contextlib.suppress(CytorayError):  # MLflow may be away, which is not what is wrong here
            there.append(f"Registered models: {', '.join(list_models(tracking=tracking)) or 'none'}.")
    return NotFoundError(
        f"model: {uri} is neither a bundle ({DIGESTS}) nor a public checkpoint ({WEIGHTS}){holds}.",
        remedy=" ".join([f"Give {FORMS}.", *there]),
        model=uri,
    )


def _last_part(uri: str) -> str:
    return uri.rstrip("/").rpartition("/")[2]
