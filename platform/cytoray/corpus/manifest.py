"""What an ingest wrote, committed last: sources, shards with digests, configuration. Its presence means done."""

from __future__ import annotations

import hashlib
import json
import uuid
from typing import Literal

from pydantic import Field, ValidationError

from cytoray import storage
from cytoray.config import Config
from cytoray.errors import CorpusError, NotFoundError
from cytoray.failpoints import failpoint

COMMIT = "COMMIT.json"


class SourceRecord(Config):
    """One source file as it was when it was read."""

    uri: str
    num_bytes: int
    version: str = Field(description="ETag, or size and mtime on a local disk.")
    matrix: str
    value_kind: str
    num_cells: int
    num_genes: int
    num_matched_genes: int
    num_kept_cells: int
    dropped: dict[str, int] = Field(description="Cells dropped, by rule.")


class ShardRecord(Config):
    """One shard file and the table of its cells."""

    key: str
    sha256: str
    num_bytes: int
    num_cells: int
    num_entries: int
    obs_key: str
    obs_sha256: str


class CorpusManifest(Config):
    """A committed corpus."""

    format: Literal[1] = 1
    name: str
    config_digest: str
    code_version: str
    vocabulary_digest: str
    values: Literal["counts", "expression"]
    binning: Literal["stored", "on_read"]
    n_bins: int
    seed: int
    sources: tuple[SourceRecord, ...]
    shards: tuple[ShardRecord, ...]

    @property
    def num_cells(self) -> int:
        """Cells over all shards."""
        return sum(shard.num_cells for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        """Bytes over all shards."""
        return sum(shard.num_bytes for shard in self.shards)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) that names these cells in this order."""
        return self.fingerprint()


class _Commit(Config):
    """The object whose appearance makes a corpus exist."""

    manifest_key: str
    manifest_sha256: str
    attempt: str


def corpus_uri(store: str, name: str) -> str:
    """Where a corpus lies in a store."""
    return storage.join(store, "corpora", name)


def commit_manifest(uri: str, manifest: CorpusManifest) -> None:
    """Write the manifest, then put COMMIT if absent; ConflictError when another ingest was first."""
    data = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True).encode()
    key = f"manifest-{manifest.digest[:16]}.json"
    digest = storage.write_bytes(storage.join(uri, key), data)
    failpoint("ingest.before_commit")
    commit = _Commit(manifest_key=key, manifest_sha256=digest, attempt=uuid.uuid4().hex)
    storage.put_if_absent(storage.join(uri, COMMIT), json.dumps(commit.model_dump()).encode())
    failpoint("ingest.after_commit")


def load_manifest(store: str, name: str) -> CorpusManifest:
    """The committed manifest of a corpus; CorpusError if there is none."""
    uri = corpus_uri(store, name)
    try:
        commit = _Commit.model_validate_json(storage.read_bytes(storage.join(uri, COMMIT)))
    except NotFoundError as error:
        raise CorpusError(
            f"There is no committed corpus {name!r} in {store}.",
            remedy="Ingest it first: python -m jobs.ingest --config configs/corpus/….yaml",
            store=store,
            corpus=name,
        ) from error
    except ValidationError as error:
        raise CorpusError(
            f"{storage.join(uri, COMMIT)} is damaged, or not by this version of cytoray.",
            remedy="Restore it from a copy, or ingest the corpus again under another name.",
            store=store,
            corpus=name,
        ) from error
    data = storage.read_bytes(storage.join(uri, commit.manifest_key), sha256=commit.manifest_sha256)
    return CorpusManifest.model_validate_json(data)


def find_manifest(store: str, name: str) -> CorpusManifest | None:
    """The committed manifest, or None."""
    if not storage.exists(storage.join(corpus_uri(store, name), COMMIT)):
        return None
    return load_manifest(store, name)


def content_name(stem: str, data: bytes, suffix: str) -> str:
    """A file name that carries its content's digest, so that a retry writes the same name and bytes."""
    return f"{stem}-{hashlib.sha256(data).hexdigest()[:16]}{suffix}"
