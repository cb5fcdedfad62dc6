"""One flipped bit anywhere in anything that a version names is found when it is read."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cytoray import storage
from cytoray.corpus import shards
from cytoray.corpus.ingest import IngestResult
from cytoray.corpus.manifest import corpus_uri, load_commit, load_manifest
from cytoray.corpus.shards import open_shard, read_shard
from cytoray.corpus.streaming.obs import read_tables
from cytoray.corpus.synthetic import SynthConfig, synthesise
from cytoray.corpus.versions import verify
from cytoray.errors import CorpusError, DigestError, NotFoundError, StorageError

from .conftest import make_config

pytestmark = pytest.mark.faults
FOUND = (DigestError, CorpusError, StorageError, NotFoundError)


@pytest.fixture
def tiny(tmp_path: Path, ingest_here: Callable[..., IngestResult]) -> str:
    """The store of a corpus of 24 cells in two shards: some 20 kB in all."""
    synthesise(tmp_path / "files", SynthConfig(num_cells=24, num_files=1, num_genes=60, mean_genes=8.0, num_donors=2))
    ingest_here(make_config(tmp_path / "store", tmp_path / "files", cells_per_shard=256))
    return str(tmp_path / "store")


def _readers(store: str) -> Iterator[tuple[str, str, Callable[[], object]]]:
    """What each stored file is read by: (kind, uri, reading)."""
    manifest, uri = load_manifest(store, "cells"), corpus_uri(store, "cells")
    yield "commit", storage.join(uri, "versions", "000001.json"), lambda: load_manifest(store, "cells")
    yield "manifest", storage.join(uri, load_commit(uri, 1).key), lambda: load_manifest(store, "cells")
    for shard in manifest.shards:
        where = storage.join(uri, shard.key)
        yield "shard, read whole", where, lambda where=where, shard=shard: read_shard(where, shard)
        groups = range(len(shard.row_groups))
        yield (
            "shard, read by range",
            where,
            lambda where=where, shard=shard, groups=groups: [open_shard(where, shard).read_group(i) for i in groups],
        )
        yield "obs", storage.join(uri, shard.obs.key), lambda: list(read_tables(store, manifest, ["donor"]))


@pytest.mark.timeout(900)
def test_every_byte_flipped_is_found(tiny: str, monkeypatch, outcome):
    monkeypatch.setattr(storage.logger, "warning", lambda *args: None)  # tens of thousands of them
    positions, missed = Counter[str](), []
    for kind, uri, read in _readers(tiny):
        path = Path(uri)
        content = path.read_bytes()
        for place in range(len(content)):
            damaged = bytearray(content)
            damaged[place] ^= 1 << (place % 8)
            path.write_bytes(damaged)
            shards._load_footer.cache_clear()
            try:
                read()
            except FOUND:
                positions[kind] += 1
            else:
                missed.append((kind, place))
        path.write_bytes(content)
        shards._load_footer.cache_clear()
        read()
    assert missed == []
    for kind, number in positions.items():
        outcome(f"F7 each byte of a {kind} flipped", number, "every one found on read")


def test_verify_reports_each_damaged_file(tiny: str, outcome):
    paths = sorted({uri for _, uri, _ in _readers(tiny)})
    for uri in paths[:]:
        content = Path(uri).read_bytes()
        damaged = bytearray(content)
        damaged[len(damaged) // 2] ^= 16
        Path(uri).write_bytes(damaged)
        found = verify(tiny, "cells").damaged
        assert len(found) == 1
        assert Path(found[0].uri).name == Path(uri).name or "manifests" in uri
        Path(uri).write_bytes(content)
    assert verify(tiny, "cells").damaged == ()
    outcome("F7 one flipped bit in each stored file, in turn", len(paths), "verify names that file")


def test_verify_reports_all_damaged_files_at_once(tiny: str, tmp_path, outcome):
    manifest, uri = load_manifest(tiny, "cells"), corpus_uri(tiny, "cells")
    files = [storage.join(uri, file.key) for shard in manifest.shards for file in shard.files]
    for name in files:
        Path(name).write_bytes(Path(name).read_bytes()[:-1])
    assert sorted(damage.uri for damage in verify(tiny, "cells").damaged) == sorted(files)
    outcome("F7 every data file cut by a byte", len(files), "verify names all of them")


def test_without_the_guard_flips_go_unseen(tiny: str, monkeypatch, outcome):
    """The first test would fail if digests were not checked: here they are not."""
    real = storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda uri, sha256=None, **ranges: real(uri, **ranges))
    manifest, uri = load_manifest(tiny, "cells"), corpus_uri(tiny, "cells")
    shard = manifest.shards[0]
    path = Path(storage.join(uri, shard.key))
    content, unseen = path.read_bytes(), 0
    for place in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        shards._load_footer.cache_clear()
        try:
            read_shard(str(path), shard)
        except (CorpusError, StorageError, OSError, ValueError, LookupError):
            continue
        unseen += 1
    shards._load_footer.cache_clear()
    shutil.rmtree(tiny)
    outcome("F7 known-bad patch: no digest checked on read", unseen, "flips go unseen, as feared: the guard matters")
