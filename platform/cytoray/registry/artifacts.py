"""Upload a bundle's files to a run's artifacts, and download them into a local cache named by digest."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cytoray.errors import RegistryError
from cytoray.registry.cache import WantedBundle, load_cached
from cytoray.registry.recorded import RecordedAssessment
from cytoray.tracking.server import explained

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from cytoray.model.bundle import ModelBundle

DIGEST_TAG = "cytoray.bundle_digest"
# Tags with the origin of a version: those of its bundle, and those added when it was registered.
LINEAGE = (
    "run",
    "run_id",
    "corpus",
    "corpus_manifest_digest",
    "config_digest",
    "git_revision",
    "code_version",
    "checkpoint",
    "step",
    "parent_bundle_digest",
    "parent_version",
)


@dataclass(frozen=True)
class RegisteredVersion:
    """One version of a registered model; ``digest`` is that of its bundle, empty if cytoray did not register it.

    ``lineage`` are those of the ``LINEAGE`` that are known, without an order.
    """

    name: str
    version: int
    digest: str
    source_uri: str
    run_id: str | None
    aliases: tuple[str, ...] = ()
    assessments: tuple[RecordedAssessment, ...] = ()
    lineage: dict[str, str] = field(default_factory=dict, hash=False)


def upload_bundle(client: MlflowClient, folder: Path, *, run_id: str, digest: str) -> str:
    """Store the bundle with the run, unless it is already there, and return its artifact URI.

    The listing is compared afterwards, so that no version is created from incomplete files.
    """
    path = f"bundle-{digest[:16]}"
    local = {file.relative_to(folder).as_posix(): file.stat().st_size for file in folder.rglob("*") if file.is_file()}
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
    """List the size in bytes of each file below ``path``, by its path from there."""
    found: dict[str, int] = {}
    folders = [path]
    while folders:
        for file in client.list_artifacts(run_id, folders.pop()):
            if file.is_dir:
                folders.append(file.path)
            else:
                found[Path(file.path).relative_to(path).as_posix()] = int(file.file_size or 0)
    return found


def fetch_bundle(version: RegisteredVersion, *, tracking_uri: str, cache_folder: Path) -> ModelBundle:
    """Load the version's bundle from the cache, downloading it first if necessary; a damaged cache is replaced.

    The download appears in the cache only when complete and verified. Raises DigestError, RegistryError.
    """
    if not re.fullmatch("[0-9a-f]{64}", version.digest):  # it becomes the name of a folder
        remedy = "Register the bundle with cytoray."
        raise RegistryError(f"{version.name} {version.version} was not registered by cytoray.", remedy=remedy)
    remedy = "Its stored files were changed or lost: use another version, or register the bundle again."
    wanted = WantedBundle(version.digest, label=f"{version.name} version {version.version}", remedy=remedy)

    def fetch(draft: Path) -> Path:
        """Download the bundle."""
        from mlflow.artifacts import download_artifacts

        with explained(tracking_uri):
            arrived = download_artifacts(
                artifact_uri=version.source_uri, dst_path=str(draft), tracking_uri=tracking_uri
            )
        return Path(arrived)

    return load_cached(wanted, cache_folder=cache_folder, fetch=fetch)


def fetch_file(version: RegisteredVersion, name: str, *, tracking_uri: str) -> bytes:
    """Return one small file of the version's bundle, as MLflow has it; raises RegistryError."""
    from mlflow.artifacts import download_artifacts

    with tempfile.TemporaryDirectory(prefix="cytoray-model-") as scratch, explained(tracking_uri):
        uri = f"{version.source_uri.rstrip('/')}/{name}"
        return Path(download_artifacts(artifact_uri=uri, dst_path=scratch, tracking_uri=tracking_uri)).read_bytes()
