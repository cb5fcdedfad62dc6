"""A local cache of bundles from elsewhere, named by digest: each is downloaded once, verified, and stays readable.

A bundle's attachments are read from its folder when they are asked for, so that folder has to last.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cytoray.errors import DigestError, NotFoundError, StorageError
from cytoray.failpoints import failpoint
from cytoray.model.bundle_files import ATTACHMENTS

if TYPE_CHECKING:
    from cytoray.model.bundle import ModelBundle

_logger = logging.getLogger(__name__)
_DRAFT = re.compile(r"\.[0-9a-f]{64}\.[0-9a-f]{32}")
DEAD_AFTER_S = 24 * 3600.0  # without a write; longer than any download


@dataclass(frozen=True)
class WantedBundle:
    """A bundle by its digest, with its name and the remedy for messages."""

    digest: str
    label: str
    remedy: str


def load_cached(wanted: WantedBundle, *, cache_folder: Path, fetch: Callable[[Path], Path]) -> ModelBundle:
    """Load a bundle from ``cache_folder/DIGEST``; if it is missing or damaged there, download it first.

    ``fetch`` copies the bundle into the folder it is given and returns where it lies. A download appears in the cache
    whole and verified or not at all. Raises DigestError that names the bundle if it was changed at its source.
    """
    cached = cache_folder / wanted.digest
    if cached.is_dir():
        try:
            return load_verified(cached, wanted)
        except DigestError as error:
            _logger.warning("the cached bundle %s is damaged and will be downloaded again: %s", cached, error)
            shutil.rmtree(cached, ignore_errors=True)
    draft = cache_folder / f".{wanted.digest}.{uuid.uuid4().hex}"
    _make_folder(draft)
    _remove_dead_drafts(cache_folder)
    try:
        arrived = fetch(draft)
        failpoint("swap.after_download")
        bundle = load_verified(arrived, wanted)
        failpoint("swap.before_cached")
        try:
            arrived.rename(cached)
        except OSError:
            if not cached.is_dir():  # otherwise another process was faster with the same bytes
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    failpoint("swap.after_cached")
    moved = {name: replace(one, source=cached / ATTACHMENTS / name) for name, one in bundle.attachments.items()}
    return replace(bundle, attachments=moved)


def load_verified(folder: Path, wanted: WantedBundle) -> ModelBundle:
    """Load a bundle's folder; DigestError if it is damaged or has another digest than the wanted one."""
    from cytoray.model.bundle import load_bundle  # imports torch, which looking up a version does not need

    try:
        bundle = load_bundle(folder)
    except (DigestError, NotFoundError) as error:
        raise DigestError(f"{wanted.label}: {error.problem}", remedy=wanted.remedy, **error.details) from error
    if bundle.digest != wanted.digest:
        problem = f"{wanted.label} holds the bundle {bundle.digest}, expected {wanted.digest}."
        raise DigestError(problem, remedy=wanted.remedy, expected=wanted.digest, seen=bundle.digest)
    return bundle


def _remove_dead_drafts(cache_folder: Path) -> None:
    """Remove the downloads of processes that were killed: those that nothing was written to for a day."""
    for draft in cache_folder.glob(".*.*"):
        if _DRAFT.fullmatch(draft.name) and time.time() - _last_write(draft) > DEAD_AFTER_S:
            shutil.rmtree(draft, ignore_errors=True)


def _last_write(folder: Path) -> float:
    """Return when anything in a folder was last written, in seconds since 1970; now if it is disappearing."""
    try:
        return max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
    except FileNotFoundError:
        return time.time()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise StorageError(
            f"{folder.parent}: the cache for models cannot be written ({error.strerror}).",
            remedy="Set cache_folder to a local folder that can be written.",
        ) from error
