"""Upload a bundle's files to a run's artifacts, and download them into a local cache named by digest."""

from __future__ import annotations

import logging
import re
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cytoray.errors import DigestError, NotFoundError, RegistryError
from cytoray.model.bundle import ModelBundle, load_bundle
from cytoray.tracking.server import explained

if TYPE_CHECKING:
    from mlflow import MlflowClient

DIGEST_TAG = "cytoray.bundle_digest"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RegisteredVersion:
    """One version of a registered model; ``digest`` is that of its bundle, empty if cytoray did not register it."""

    name: str
    version: int
    digest: str
    source_uri: str
    run_id: str | None
    aliases: tuple[str, ...] = ()


def upload_bundle(client: MlflowClient, folder: Path, *, run_id: str, digest: str) -> str:
    """Store the bundle with the run, unless it is already there, and return its artifact URI.

    The listing is compared afterwards, so that no version is created from incomplete files.
    """
    path = f"bundle-{digest[:16]}"
    local = {file.name: file.stat().st_size for file in folder.iterdir()}
    if _stored_files(client, run_id, path) != local:
        client.log_artifacts(run_id, str(folder), path)
    stored = _stored_files(client, run_id, path)
    if stored != local:
        remedy = "Check the artifact store of the experiment, then register again."
        raise RegistryError(
            f"The bundle was not stored completely in run {run_id}.", remedy=remedy, local=local, stored=stored
        )
    return f"{client.get_run(run_id).info.artifact_uri.rstrip('/')}/{path}"


def _stored_files(client: MlflowClient, run_id: str, path: str) -> dict[str, int]:
    """Return name and size in bytes of each file below ``path``."""
    return {Path(file.path).name: int(file.file_size or 0) for file in client.list_artifacts(run_id, path)}


def fetch_bundle(version: RegisteredVersion, *, tracking_uri: str, cache_folder: Path) -> ModelBundle:
    """Load the version's bundle from the cache, downloading it first if necessary; a damaged cache is replaced.

    The download appears in the cache only when complete and verified. Raises DigestError, RegistryError.
    """
    if not re.fullmatch("[0-9a-f]{64}", version.digest):  # it becomes the name of a folder
        remedy = "Register the bundle with cytoray."
        raise RegistryError(f"{version.name} {version.version} was not registered by cytoray.", remedy=remedy)
    cached = cache_folder / version.digest
    if cached.is_dir():
        try:
            return _load_verified(cached, version)
        except DigestError as error:
            _logger.warning("the cached bundle %s is damaged and will be downloaded again: %s", cached, error)
            shutil.rmtree(cached, ignore_errors=True)
    return _download(version, tracking_uri=tracking_uri, cached=cached)


def _download(version: RegisteredVersion, *, tracking_uri: str, cached: Path) -> ModelBundle:
    from mlflow.artifacts import download_artifacts

    draft = cached.parent / f".{version.digest}.{uuid.uuid4().hex}"
    draft.mkdir(mode=0o700, parents=True)
    try:
        with explained(tracking_uri):
            arrived = download_artifacts(
                artifact_uri=version.source_uri, dst_path=str(draft), tracking_uri=tracking_uri
            )
        bundle = _load_verified(Path(arrived), version)
        try:
            Path(arrived).rename(cached)
        except OSError:
            if not cached.is_dir():  # otherwise another process has stored the same bytes
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return bundle


def _load_verified(folder: Path, version: RegisteredVersion) -> ModelBundle:
    """Load the bundle and compare its digest with the registered one."""
    label = f"{version.name} version {version.version}"
    remedy = "Its stored files were changed or lost: use another version, or register the bundle again."
    try:
        bundle = load_bundle(folder)
    except (DigestError, NotFoundError) as error:
        raise DigestError(f"{label}: {error.problem}", remedy=remedy, **error.details) from error
    if bundle.digest != version.digest:
        problem = f"{label} holds the bundle {bundle.digest}, but {version.digest} was registered."
        raise DigestError(problem, remedy=remedy, expected=version.digest, seen=bundle.digest)
    return bundle
