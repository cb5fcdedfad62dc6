"""Identify an assessment by everything that its report depends on: settings, content of files, model and code."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from cytoray import provenance, storage
from cytoray.corpus.readers.companions import find_parts, is_mtx
from cytoray.corpus.readers.problems import UnreadableError
from cytoray.errors import NotFoundError, StorageError
from cytoray.registry.opening import find_digest
from cytoray.tasks.assessing import AssessConfig
from cytoray.tasks.networks.config import InferNetworksConfig


@dataclass(frozen=True)
class AssessmentKey:
    """The digest that identifies an assessment, and that of its model's bundle (None without a model)."""

    digest: str
    model_digest: str | None


def find_key(task: str, config: AssessConfig | InferNetworksConfig) -> AssessmentKey:
    """Read the inputs that ``config`` names and return the key; local files are hashed, which takes a second per GB.

    Raises NotFoundError, TrainingError or RegistryError for an unknown model. A missing file of cells is left to its
    reader.
    """
    model = None
    if config.model is not None:
        model = find_digest(
            config.model, store=config.store, tracking=config.tracking, cache_folder=config.cache_folder
        )
    named = {name: getattr(config, name) for name in config.inputs}
    identity = {
        "task": task,
        "settings": config.fingerprint(),
        "inputs": {name: _digests(value) for name, value in named.items() if value is not None},
        "model": model,
        "code": provenance.source_digest(),
    }
    return AssessmentKey(hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(), model)


def _digests(value: str | tuple[str, ...]) -> str | list[str]:
    """Return the digest of the content of a file, or of each of several."""
    return content_digest(value) if isinstance(value, str) else [content_digest(uri) for uri in value]


def content_digest(uri: str) -> str:
    """Return a digest of the content of a file or folder of cells: of the bytes, or of the ETags in an object store.

    A MatrixMarket file includes its tables. A missing file has the digest ``missing``.
    """
    try:
        return _digest_all([storage.info(uri), *_companions(uri)])
    except NotFoundError:
        return "missing"
    except StorageError as error:
        if not error.details.get("is_folder"):
            raise
    return _digest_all(storage.list_objects(uri))


def _companions(uri: str) -> list[storage.ObjectInfo]:
    """Return the tables beside a MatrixMarket file."""
    if not is_mtx(uri):
        return []
    folder, _, name = uri.rpartition("/")
    beside = {entry.uri.rpartition("/")[2]: entry for entry in storage.list_objects(folder)}
    with contextlib.suppress(UnreadableError):  # the reader describes what is wrong with them
        return [beside[part] for part in sorted(find_parts(beside, name).values()) if part != name]
    return []


def _digest_all(files: list[storage.ObjectInfo]) -> str:
    found = hashlib.sha256()
    for file in files:
        content = file.version if storage.is_remote(file.uri) else _hash(storage.local_path(file.uri))
        found.update(f"{file.uri}\0{content}\0".encode())
    return found.hexdigest()


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
