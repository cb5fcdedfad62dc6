"""Manifests of corpora: sources, shards with digests, configuration. A version exists once its commit object does.

``corpora/NAME/versions/000001.json`` is put if absent and names a manifest, which names every other object, each with
its digest. Versions never change; an appended one names the shards of its parent beside its own.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from cytoray import storage
from cytoray.config import Config
from cytoray.errors import ConflictError, CorpusError
from cytoray.failpoints import failpoint

FORMAT = 2
_VERSION_FILE = re.compile(r"/versions/(\d{6,})\.json$")


class FileRecord(Config):
    """One object of a corpus; ``key`` is relative to the corpus's folder."""

    key: str
    sha256: str
    num_bytes: int


class RowGroupRecord(Config):
    """The range-read unit of a shard: bytes ``offset`` to ``offset + num_bytes`` of its file.

    The first one starts at byte 0, so that all of them and the frame (the rest, a parquet footer) make up the file.
    """

    offset: int
    num_bytes: int
    num_cells: int
    num_entries: int
    sha256: str


class CellFileRecord(FileRecord):
    """A file of encoded cells: a shard's genes, or the same cells in a further modality."""

    num_cells: int
    num_entries: int = Field(description="Non-zero values.")
    frame_sha256: str = Field(description="Of what follows the row groups.")
    row_groups: tuple[RowGroupRecord, ...]


class ShardRecord(CellFileRecord):
    """One shard: its cells, the table of their obs in the same order, and their further modalities."""

    obs: FileRecord
    modalities: dict[str, CellFileRecord] = Field({}, description="By name; cells and row groups as in the shard.")
    cell_id_sum: int = Field(description="Sum of the cell ids modulo 2**64.")
    hashes: FileRecord | None = Field(
        None,
        exclude_if=lambda hashes: hashes is None,  # which leaves the digests of older corpora as they were
        description="Content hashes of the cells, uint64 each, in the shard's order; null in older corpora.",
    )

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """Every object of this shard."""
        return (self, self.obs, *self.modalities.values(), *([self.hashes] if self.hashes else ()))


class SourceRecord(Config):
    """A source file as it was when it was read."""

    uri: str
    identity: str = Field(description="Distinguishes its cells from those of other sources, in cell ids.")
    config_digest: str = Field(description="Digest of its settings.")
    version: str = Field(description="ETag, or size and mtime on a local disk.")
    num_bytes: int
    format: str
    matrix: str
    value_kind: str
    num_cells: int
    num_genes: int
    num_matched_genes: int
    num_kept_cells: int
    dropped: dict[str, int] = Field(description="Number of cells dropped, by rule.")
    warned: dict[str, int] = Field(description="Number of cells, genes or files that a rule warned of.")


class QuarantineRecord(Config):
    """A source that was left out, with the reason."""

    uri: str
    key: str = Field(description="The place in the file; empty if it is the file itself.")
    rule: str = Field(description="The rule it broke, or malformed.")
    reason: str
    remedy: str


class IncrementRecord(Config):
    """The changes that one version added."""

    version: int
    config_digest: str
    code_version: str
    num_sources: int
    num_shards: int
    num_cells: int
    report_key: str | None = Field(None, description="Folder with report.html and report.json.")
    config: dict[str, Any] | None = Field(
        None,
        exclude_if=lambda config: config is None,
        description="The configuration of the ingest, without its places; null in older corpora.",
    )


class CorpusManifest(Config):
    """A committed version of a corpus."""

    format: Literal[2] = 2
    name: str
    version: int = Field(1, ge=1)
    parent: str | None = Field(None, description="Digest of the parent version's manifest.")
    increments: tuple[IncrementRecord, ...] = ()
    vocabulary_digest: str
    values: Literal["counts", "expression"]
    binning: Literal["stored", "on_read"]
    n_bins: int
    seed: int
    modalities: dict[str, tuple[str, ...]] = Field({}, description="Feature names of each further modality, in order.")
    modality_values: dict[str, Literal["counts", "expression"]] = Field(
        {}, description="How the values of each are stored."
    )
    obs_columns: dict[str, str] = Field({}, description="Columns of the obs tables and their Arrow types.")
    sources: tuple[SourceRecord, ...]
    quarantined: tuple[QuarantineRecord, ...] = ()
    shards: tuple[ShardRecord, ...]

    @model_validator(mode="after")
    def _modalities_agree(self) -> Self:
        for shard in self.shards:
            if not shard.modalities.keys() <= self.modalities.keys():
                raise ValueError(f"{shard.key} has modalities that the corpus does not")
        return self

    @property
    def num_cells(self) -> int:
        """Number of cells over all shards."""
        return sum(shard.num_cells for shard in self.shards)

    @property
    def num_entries(self) -> int:
        """Number of non-zero values over all shards."""
        return sum(shard.num_entries for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        """Number of bytes of all shards with their obs, hashes and modalities."""
        return sum(file.num_bytes for shard in self.shards for file in shard.files)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) that names this version: these cells in this order, from these sources.

        Text for people is excluded: the reason why a source was left out names the rows that one task read. So are the
        configurations, of which the digests are included.
        """
        others = {"quarantined": {"__all__": {"reason", "remedy"}}, "increments": {"__all__": {"config"}}}
        return hashlib.sha256(self.model_dump_json(exclude=others).encode()).hexdigest()

    @property
    def content_digest(self) -> str:
        """SHA-256 (hex) of the cells alone: equal for equal cells in equal order, wherever their files lay."""
        files = [
            [shard.sha256, *(file.sha256 for _, file in sorted(shard.modalities.items()))] for shard in self.shards
        ]
        parts = [self.vocabulary_digest, self.values, self.binning, self.n_bins, sorted(self.modalities.items()), files]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class _Commit(Config):
    """The object whose appearance makes a version exist."""

    manifest_key: str
    manifest_sha256: str
    attempt: str
    check: str = ""

    def sealed(self) -> bytes:
        """Serialise it with a digest of itself, so that every flipped bit is noticed."""
        bare = self.model_copy(update={"check": ""})
        check = hashlib.sha256(bare.model_dump_json().encode()).hexdigest()
        return self.model_copy(update={"check": check}).model_dump_json().encode()


def corpus_uri(store: str, name: str) -> str:
    """Return where a store keeps a corpus; of ``NAME@VERSION`` only the name counts."""
    return storage.join(store, "corpora", name.partition("@")[0])


def version_uri(uri: str, version: int) -> str:
    """Return where the commit object of a version of the corpus at ``uri`` is stored."""
    return storage.join(uri, "versions", f"{version:06d}.json")


def list_versions(uri: str) -> list[int]:
    """List the committed versions of the corpus at ``uri``, ascending."""
    found = (_VERSION_FILE.search(name) for name in storage.list_files(storage.join(uri, "versions")))
    return sorted(int(match[1]) for match in found if match)


def commit_manifest(uri: str, manifest: CorpusManifest) -> None:
    """Write the manifest, then put its version if absent; ConflictError, naming the winner, if another was first."""
    data = manifest.model_dump_json(indent=1).encode()
    digest = hashlib.sha256(data).hexdigest()
    key = f"manifests/{digest}.json"
    failpoint("ingest.before_manifest")
    storage.write_bytes(storage.join(uri, key), data)
    failpoint("ingest.after_manifest")
    commit = _Commit(manifest_key=key, manifest_sha256=digest, attempt=uuid.uuid4().hex)
    failpoint("ingest.before_commit")
    try:
        storage.put_if_absent(version_uri(uri, manifest.version), commit.sealed())
    except ConflictError as error:
        _, winner = load_version(uri, manifest.version)
        raise ConflictError(
            f"Version {manifest.version} of corpus {manifest.name!r} was committed by another ingest first "
            f"(manifest {winner.digest[:16]}, {winner.num_cells:,} cells).",
            remedy="Use that version, or run this ingest again: it returns that version.",
            uri=uri,
            winner=winner.digest,
        ) from error
    failpoint("ingest.after_commit")


def load_manifest(store: str, name: str) -> CorpusManifest:
    """Load a corpus's manifest: the latest version of ``NAME``, or ``NAME@VERSION``; CorpusError if missing."""
    manifest = find_manifest(store, name)
    if manifest is not None:
        return manifest
    plain, _, asked = name.partition("@")
    versions = list_versions(corpus_uri(store, plain)) if asked else []
    problem = f"There is no committed corpus {plain!r} in {store}."
    remedy = "Ingest it first: cytoray data ingest --config configs/corpus/….yaml"
    if versions:
        problem = f"Corpus {plain!r} in {store} has no version {asked}."
        remedy = f"It has {', '.join(map(str, versions))}: write {plain}@{versions[-1]}, or {plain} for the latest."
    raise CorpusError(problem, remedy=remedy, store=store, corpus=name)


def find_manifest(store: str, name: str) -> CorpusManifest | None:
    """Load a manifest as ``load_manifest`` does, but return None if there is no such corpus or version."""
    plain, _, asked = name.partition("@")
    uri = corpus_uri(store, plain)
    versions = list_versions(uri)
    if asked and not asked.isdecimal():
        raise CorpusError(f"{name!r}: a version is a number.", remedy=f"Write {plain}@1, or {plain} for the latest.")
    version = int(asked) if asked else max(versions, default=0)
    return load_version(uri, version)[1] if version in versions else None


def load_commit(uri: str, version: int) -> FileRecord:
    """Find the manifest of a version of the corpus at ``uri``; CorpusError if the commit object is damaged."""
    where = version_uri(uri, version)
    data = storage.read_bytes(where)
    try:
        commit = _Commit.model_validate_json(data)
    except ValidationError as error:
        raise _damaged(where) from error
    if commit.sealed() != data:
        raise _damaged(where)
    return FileRecord(key=commit.manifest_key, sha256=commit.manifest_sha256, num_bytes=0)


def load_version(uri: str, version: int) -> tuple[FileRecord, CorpusManifest]:
    """Load the commit and the manifest of an existing version of the corpus at ``uri``, without a listing.

    Raises CorpusError if one of them is damaged.
    """
    commit = load_commit(uri, version)
    where = storage.join(uri, commit.key)
    data = storage.read_bytes(where, sha256=commit.sha256)
    try:
        return commit, CorpusManifest.model_validate_json(data)
    except ValidationError as error:
        raise CorpusError(
            f"{where} is not a manifest that this version of cytoray can read.",
            remedy=f"It reads format {FORMAT}: ingest the corpus again under another name.",
            uri=where,
        ) from error


def _damaged(where: str) -> CorpusError:
    """Return the error for a damaged commit object."""
    return CorpusError(
        f"{where} is damaged, or was not written by this version of cytoray.",
        remedy="Restore it from a copy, or ingest the corpus again under another name.",
        uri=where,
    )


def content_key(folder: str, stem: str, sha256: str, suffix: str) -> str:
    """Build a key that contains its content's digest, so that a retry writes the same name and bytes."""
    return f"{folder}/{stem}-{sha256[:16]}{suffix}"
