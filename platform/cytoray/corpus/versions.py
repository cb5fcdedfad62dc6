"""Maintain corpora: list and compare versions, verify every byte, delete objects that no version names."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cytoray import progress, storage
from cytoray.corpus.claims import Marks, mark_uri, marked
from cytoray.corpus.manifest import (
    CellFileRecord,
    CorpusManifest,
    FileRecord,
    ShardRecord,
    corpus_uri,
    list_versions,
    load_commit,
    load_manifest,
    load_version,
    version_uri,
)
from cytoray.corpus.shards import read_shard
from cytoray.errors import CorpusError, DigestError, NotFoundError, StorageError
from cytoray.failpoints import failpoint

READERS = 4  # files checked at a time
DELETED_AT_ONCE = 16  # objects: a store answers each request in some 20 ms
GRACE_S = 24 * 3600.0  # longer than any ingest takes from its first write to its commit
_COMMIT = re.compile(r"/corpora/([^/]+)/versions/(\d{6,})\.json$")


@dataclass(frozen=True)
class CorpusSummary:
    """One corpus of a store."""

    name: str
    versions: tuple[int, ...]
    latest: CorpusManifest


@dataclass(frozen=True)
class CorpusDiff:
    """The differences of two versions; the first of each pair is the older one's."""

    num_cells: tuple[int, int]
    num_bytes: tuple[int, int]
    num_shared_shards: int
    added_shards: tuple[str, ...]
    removed_shards: tuple[str, ...]
    added_sources: tuple[str, ...]
    removed_sources: tuple[str, ...]
    changed_sources: tuple[str, ...]  # the same uri, other bytes or other cells kept
    settings: dict[str, tuple[str, str]]  # values, binning, seed, obs columns, … that differ

    @property
    def same_cells(self) -> bool:
        """Whether both contain the same cells in the same order."""
        return not self.added_shards and not self.removed_shards


@dataclass(frozen=True)
class Damage:
    """An object that differs from what was written."""

    uri: str
    problem: str


@dataclass(frozen=True)
class VerifyReport:
    """The result of a verification."""

    num_versions: int
    num_files: int
    num_bytes: int
    damaged: tuple[Damage, ...]


@dataclass(frozen=True)
class GcReport:
    """Objects that no version names, and whether they were deleted."""

    orphans: tuple[str, ...]
    num_young: int  # kept: an ingest under way may need them
    deleted: bool


def list_corpora(store: str) -> list[CorpusSummary]:
    """List the corpora of a store that have a committed version, by name."""
    found: dict[str, list[int]] = {}
    for uri in storage.list_files(storage.join(store, "corpora")):
        match = _COMMIT.search(uri)
        if match:
            found.setdefault(match[1], []).append(int(match[2]))
    return [
        CorpusSummary(name, tuple(sorted(versions)), load_manifest(store, name))
        for name, versions in sorted(found.items())
    ]


def diff(older: CorpusManifest, newer: CorpusManifest) -> CorpusDiff:
    """Compare two versions, of one corpus or of two."""
    shards = [{shard.sha256: shard.key for shard in manifest.shards} for manifest in (older, newer)]
    sources = [{source.uri: source for source in manifest.sources} for manifest in (older, newer)]
    names = ("name", "version", "values", "binning", "n_bins", "seed", "vocabulary_digest", "obs_columns", "modalities")
    pairs = {name: (getattr(older, name), getattr(newer, name)) for name in names}
    return CorpusDiff(
        num_cells=(older.num_cells, newer.num_cells),
        num_bytes=(older.num_bytes, newer.num_bytes),
        num_shared_shards=len(shards[0].keys() & shards[1].keys()),
        added_shards=tuple(key for digest, key in shards[1].items() if digest not in shards[0]),
        removed_shards=tuple(key for digest, key in shards[0].items() if digest not in shards[1]),
        added_sources=tuple(uri for uri in sources[1] if uri not in sources[0]),
        removed_sources=tuple(uri for uri in sources[0] if uri not in sources[1]),
        changed_sources=tuple(
            uri for uri in sources[0].keys() & sources[1].keys() if sources[0][uri] != sources[1][uri]
        ),
        settings={name: (_short(one), _short(two)) for name, (one, two) in pairs.items() if one != two},
    )


def verify(store: str, name: str, *, advance: progress.Advance = progress.silent) -> VerifyReport:
    """Read every object of a corpus again: all versions of ``NAME``, or ``NAME@VERSION`` alone.

    Every damaged or missing object is reported, not the first one only. ``advance`` counts bytes read.
    """
    uri = corpus_uri(store, name)
    plain, _, asked = name.partition("@")
    versions = [int(asked)] if asked else list_versions(uri)
    if asked or not versions:
        load_commit(uri, load_manifest(store, name).version)  # raises if the version does not exist
    damaged: list[Damage] = []
    files: dict[str, tuple[FileRecord, ShardRecord | None]] = {}
    for version in versions:
        try:
            manifest = load_manifest(store, f"{plain}@{version}")
        except (CorpusError, StorageError) as error:
            damaged.append(Damage(version_uri(uri, version), error.problem))
            continue
        for shard in manifest.shards:
            files.update({file.key: (file, shard) for file in shard.files})

    def check(entry: tuple[FileRecord, ShardRecord | None]) -> Damage | None:
        """Verify one file."""
        damage = _check_file(uri, *entry)
        advance(entry[0].num_bytes)
        return damage

    with ThreadPoolExecutor(READERS, "verify") as pool:
        damaged += [damage for damage in pool.map(check, files.values()) if damage is not None]
    num_bytes = sum(file.num_bytes for file, _ in files.values())
    return VerifyReport(len(versions), len(files) + 2 * len(versions), num_bytes, tuple(damaged))


def _check_file(uri: str, file: FileRecord, shard: ShardRecord | None) -> Damage | None:
    """Read one object; a file of cells is decoded too and compared with its record."""
    where = storage.join(uri, file.key)
    try:
        if not isinstance(file, CellFileRecord):
            storage.read_bytes(where, sha256=file.sha256)
            return None
        cells = read_shard(where, file)
    except (DigestError, NotFoundError, CorpusError, StorageError) as error:
        return Damage(where, error.problem)
    sums = int(cells.cell_ids.sum(dtype="uint64"))
    seen = (cells.num_cells, len(cells.values), sums)
    expected = (file.num_cells, file.num_entries, shard.cell_id_sum if shard is not None else sums)
    return None if seen == expected else Damage(where, f"{where}: contains {seen}, its record says {expected}.")


def gc(store: str, *, dry_run: bool = True, grace_s: float = GRACE_S) -> GcReport:
    """Find (and with ``dry_run=False`` delete) what no committed version of any corpus of the store names.

    Objects younger than ``grace_s`` seconds stay, and so does everything of a corpus where an ingest began, was
    resumed or wrote to its staging area since then: it may rely on objects of any age. With ``grace_s=0`` no ingest may
    be under way. Raises CorpusError, and deletes nothing, if a version cannot be read.
    """
    # Listings of a local disk are absolute, and what is named must compare equal to what is listed.
    store = store if storage.is_remote(store) else str(storage.local_path(store))
    named = _Named(store)
    orphans, num_young = _find_orphans(named, grace_s)
    if not dry_run and orphans:
        with marked(sorted({_corpus_of(uri, store) for uri in orphans})) as marks:
            still, num_young = _find_orphans(named, grace_s)  # a version or an ingest may have come meanwhile
            found = set(orphans)
            orphans = [uri for uri in still if uri in found]
            _delete_all(orphans, marks)
    return GcReport(tuple(orphans), num_young, deleted=not dry_run)


def _delete_all(orphans: Sequence[str], marks: Marks) -> None:
    """Delete records one by one, in their order; then what they named, several objects at a time."""
    failpoint("gc.before_first_delete")
    with ThreadPoolExecutor(DELETED_AT_ONCE) as threads:
        for (_, is_data), group in itertools.groupby(orphans, key=lambda uri: _records_first(uri)[:2]):
            for uris in _chunks(list(group), DELETED_AT_ONCE if is_data else 1):
                marks.renew()
                list(threads.map(storage.delete, uris))
                failpoint("gc.after_deletes")


def _chunks(uris: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(uris), size):
        yield uris[start : start + size]


def _find_orphans(named: _Named, grace_s: float) -> tuple[list[str], int]:
    """Return the objects that may be deleted, in that order, and how many other unnamed ones there are."""
    store, now = named.store, time.time()
    ages = {entry.uri: now - entry.modified_s for entry in _objects(store)}
    named.add_versions(ages)
    loose = [uri for uri in ages if uri not in named and uri != mark_uri(_corpus_of(uri, store))]
    busy = {
        corpus
        for uri, age in ages.items()
        if age < grace_s and uri.startswith(f"{(corpus := _corpus_of(uri, store))}/staging/")
    }
    orphans = [uri for uri in loose if ages[uri] >= grace_s and _corpus_of(uri, store) not in busy]
    return sorted(orphans, key=_records_first), len(loose) - len(orphans)


def _objects(store: str) -> list[storage.ObjectInfo]:
    """List everything below the corpora of a store, including temporary files of dead writers."""
    return storage.list_objects(storage.join(store, "corpora"), temporary=True)


def _records_first(uri: str) -> tuple[bool, bool, str]:
    """Sort key: what names an object goes before that object, so that no rerun trusts a record of what is gone."""
    return "/staging/" not in uri, not uri.endswith(".json"), uri


def _corpus_of(uri: str, store: str) -> str:
    """Return the folder of the corpus that an object of a store belongs to."""
    inside = uri.removeprefix(storage.join(store, "corpora") + "/")
    return corpus_uri(store, inside.partition("/")[0])


class _Named:
    """Every object of ``store`` that some version names, and the folders of their reports.

    A version never changes, so that each is read once. What versions share is held once: memory grows with the objects.
    """

    def __init__(self, store: str) -> None:
        self.store = store
        self._uris: set[str] = set()

    def __contains__(self, uri: str) -> bool:
        return uri in self._uris or uri.rpartition("/")[0] in self._uris

    def add_versions(self, uris: Iterable[str]) -> None:
        """Read the versions among the objects of the store that were not read before; CorpusError for a damaged one."""
        for match in filter(None, map(_COMMIT.search, uris)):
            name, version = match[1], int(match[2])
            uri = corpus_uri(self.store, name)
            if version_uri(uri, version) in self._uris:
                continue
            commit, manifest = load_version(uri, version)
            self._uris |= {version_uri(uri, version), storage.join(uri, commit.key)}
            self._uris |= {storage.join(uri, key) for key in _keys(manifest)}


def _keys(manifest: CorpusManifest) -> Iterator[str]:
    for shard in manifest.shards:
        yield from (file.key for file in shard.files)
    for increment in manifest.increments:
        if increment.report_key is not None:
            yield increment.report_key


def _short(value: object) -> str:
    """Format a setting for people; a long one is cut."""
    text = ", ".join(map(str, value)) if isinstance(value, dict) else str(value)
    return text if len(text) <= 80 else text[:77] + "…"
