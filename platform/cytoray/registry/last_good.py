"""The version that served last under an alias, kept beside the cache of bundles for a start while MLflow is away."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from pathlib import Path

from cytoray.drafts import replace_file
from cytoray.errors import RegistryUnavailableError
from cytoray.registry.pinning import PinnedModel, Sources, is_alias, pin_model

logger = logging.getLogger(__name__)
FOLDER = "last-good"


def remember(uri: str, pinned: PinnedModel, *, sources: Sources) -> None:
    """Record that ``pinned`` serves under ``uri``; if that cannot be written, this is logged."""
    path = _path(uri, sources)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(path, json.dumps(dataclasses.asdict(pinned)).encode())
    except OSError as error:
        logger.warning("%s: the version that serves cannot be recorded (%s)", path, error.strerror)


def recall(uri: str, *, sources: Sources) -> PinnedModel | None:
    """Return the version that served last under ``uri``, if its bundle is still in the cache."""
    try:
        pinned = PinnedModel(**json.loads(_path(uri, sources).read_bytes()))
    except (OSError, ValueError, TypeError):  # none, or written by another version of cytoray
        return None
    return pinned if (Path(sources.cache_folder).expanduser() / pinned.digest).is_dir() else None


def pin_or_recall(uri: str, *, sources: Sources) -> PinnedModel:
    """Pin a model; while MLflow does not answer, an alias gives the version that served last from this cache.

    Raises as ``pinning.pin_model``.
    """
    try:
        return pin_model(uri, sources=sources)
    except RegistryUnavailableError as error:
        found = recall(uri, sources=sources) if is_alias(uri) else None
        if found is None:
            raise
        logger.warning("%s Version %s of %s, which served last, is used.", error.problem, found.version, found.name)
        return found


def _path(uri: str, sources: Sources) -> Path:
    server = "" if sources.tracking is None else sources.tracking.uri
    name = hashlib.sha256(f"{server} {uri}".encode()).hexdigest()[:32]
    return Path(sources.cache_folder).expanduser() / FOLDER / f"{name}.json"
