"""Pin a model: find which bundle a URI names now, so that processes started later all open that one.

An alias may move, and a folder may be overwritten, between the start of one replica and that of the next. Looking up
needs neither torch nor the bytes of the model.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cytoray import storage
from cytoray.errors import DigestError
from cytoray.model.bundle_files import DIGESTS, read_verified
from cytoray.registry.cache import WantedBundle, load_verified
from cytoray.registry.models import find_checked
from cytoray.runs import find_bundle
from cytoray.tracking import TrackingConfig

if TYPE_CHECKING:
    from cytoray.registry.opening import OpenedModel

REGISTERED, RUN = "models:/", "run:"
UNREGISTERED = "unregistered"  # the version of a model that is not in the registry


@dataclass(frozen=True)
class PinnedModel:
    """A model whose URI no longer depends on an alias, its identity, and what a registered one is checked with."""

    uri: str
    name: str  # in the registry, of the run, or of the folder
    version: str  # in the registry, else UNREGISTERED
    digest: str
    golden: str = field(default="", repr=False)  # golden cells, as text; empty if none were recorded
    num_bytes: int = 0  # of the bundle; 0 if unknown
    replaced: str = ""  # the version that was champion before, if this one is a champion


@dataclass(frozen=True)
class Sources:
    """Where models are looked up and kept: the store of runs, MLflow, and the local cache."""

    store: str | None
    tracking: TrackingConfig | None
    cache_folder: str


def pin_model(uri: str, *, sources: Sources) -> PinnedModel:
    """Find which model ``uri`` names now; only a public checkpoint is loaded for that.

    A local bundle, which is used in place, is verified, so that a damaged one is reported before processes are started
    for it. Raises as ``opening.open_model``, except for damaged bytes of a remote bundle: they are not read.
    """
    if uri.startswith(REGISTERED) and sources.tracking is not None:
        checked = find_checked(uri, tracking=sources.tracking)
        found = checked.version
        return PinnedModel(
            f"{REGISTERED}{found.name}/{found.version}",
            found.name,
            str(found.version),
            found.digest,
            golden=checked.golden,
            num_bytes=checked.num_bytes,
            replaced=checked.replaced,
        )
    if uri.startswith(RUN) and sources.store is not None:
        name = uri.removeprefix(RUN)
        record = find_bundle(sources.store, name)
        _verify_local(record.uri)
        return PinnedModel(uri, name, UNREGISTERED, record.digest)
    listing = storage.find_bytes(storage.join(uri, DIGESTS))
    if listing is not None:
        _verify_local(uri)
        name = uri.rstrip("/").rpartition("/")[2]
        return PinnedModel(uri, name, UNREGISTERED, hashlib.sha256(listing).hexdigest())
    opened = _open(uri, sources)
    return PinnedModel(uri, opened.name, opened.version, opened.digest)


def is_alias(uri: str) -> bool:
    """Return whether ``uri`` names a model by an alias, which may move."""
    return uri.startswith(REGISTERED) and "@" in uri


def open_pinned(pinned: PinnedModel, *, sources: Sources) -> OpenedModel:
    """Open a pinned model; if the cache has it, neither MLflow nor the store is asked for it.

    Raises as ``opening.open_model``, and DigestError if the model has changed since it was pinned.
    """
    from cytoray.registry.opening import OpenedModel

    remedy = "Deploy again: the model has changed since it was deployed."
    wanted = WantedBundle(pinned.digest, label=pinned.uri, remedy=remedy)
    folder = Path(sources.cache_folder).expanduser() / pinned.digest
    if pinned.digest and folder.is_dir():
        with contextlib.suppress(DigestError):  # it is downloaded again below
            bundle = load_verified(folder, wanted)
            return OpenedModel(bundle, pinned.uri, pinned.name, pinned.version, pinned.digest, folder=folder)
    opened = _open(pinned.uri, sources)
    if opened.digest != pinned.digest:
        problem = f"{pinned.uri} holds the bundle {opened.digest}, expected {pinned.digest}."
        raise DigestError(problem, remedy=remedy, expected=pinned.digest, seen=opened.digest)
    return opened


def _verify_local(place: str) -> None:
    """Raise DigestError or ModelError for a local bundle that is damaged."""
    if not storage.is_remote(place):
        read_verified(storage.local_path(place))


def _open(uri: str, sources: Sources) -> OpenedModel:
    from cytoray.registry.opening import open_model  # imports torch

    return open_model(uri, store=sources.store, tracking=sources.tracking, cache_folder=sources.cache_folder)
