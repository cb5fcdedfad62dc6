"""Ingests that die, run out of disk or lose a worker: nothing half done is visible, and a rerun completes the same."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import pytest

import cytoray.corpus
from cytoray import storage
from cytoray.corpus import ingest as ingest_module
from cytoray.corpus import versions
from cytoray.corpus.config import IngestConfig, SourceConfig
from cytoray.corpus.ingest import ingest
from cytoray.corpus.manifest import CorpusManifest, find_manifest, load_manifest
from cytoray.corpus.versions import gc, verify
from cytoray.errors import ConflictError, StorageError

INGEST = (
    "ingest.before_spill", "ingest.before_spill_index", "ingest.after_spill", "ingest.before_copies_index",
    "ingest.after_dedupe", "ingest.before_shard", "ingest.after_shard", "ingest.after_obs",
    "ingest.before_shard_record", "ingest.after_shard_record", "ingest.before_manifest", "ingest.after_manifest",
    "ingest.before_commit", "ingest.after_commit",
)  # fmt: skip
GC = ("gc.before_first_delete", "gc.after_deletes")

# The same tasks one after another in one process, which a failpoint kills.
DRIVER = """
import sys
from cytoray.corpus import ingest
from cytoray.corpus.config import IngestConfig

ingest._map_tasks = lambda items, work, concurrency: map(work, items)
ingest.ingest(IngestConfig.model_validate_json(sys.argv[1], strict=False))
"""


def test_every_failpoint_of_ingest_and_gc_is_tried_here():
    folder = Path(cytoray.corpus.__file__).parent
    found = {name for path in folder.rglob("*.py") for name in re.findall(r'failpoint\("(.+?)"\)', path.read_text())}
    assert {name for name in found if name.startswith(("ingest.", "gc."))} == {*INGEST, *GC}


@pytest.fixture(scope="module")
def sources(plant, build_adata, save, tmp_path_factory) -> tuple[SourceConfig, ...]:
    folder = tmp_path_factory.mktemp("sources")
    return tuple(
        SourceConfig(uri=save(build_adata(plant(seed, num_cells=250)), folder / f"{seed}.h5ad")) for seed in (1, 2)
    )


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_module, "_map_tasks", lambda items, work, concurrency: map(work, items))


def configure(store: Path, sources: tuple[SourceConfig, ...]) -> IngestConfig:
    """Four ranges of rows, two shards."""
    return IngestConfig(store=str(store), corpus="cells", sources=sources, rows_per_task=130, cells_per_shard=256)


@pytest.fixture(scope="module")
def clean(sources, tmp_path_factory) -> CorpusManifest:
    """What an ingest makes that nothing happens to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest_module, "_map_tasks", lambda items, work, concurrency: map(work, items))
        return ingest(configure(tmp_path_factory.mktemp("clean"), sources)).manifest


def run_with(failpoints: str, config: IngestConfig) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", DRIVER, config.model_dump_json()], env={**os.environ, "CYTORAY_FAILPOINTS": failpoints},
        capture_output=True, timeout=280, check=False,
    )  # fmt: skip


DEFAULT = {("ingest.before_spill_index", 2), ("ingest.after_shard", 2), ("ingest.before_commit", 1)}
KILLS = [(point, nth) for point in INGEST for nth in ((1, 2) if "spill" in point or "shard" in point else (1,))]


@pytest.mark.parametrize(
    ("point", "nth"),
    [pytest.param(*kill, marks=() if kill in DEFAULT else pytest.mark.faults) for kill in KILLS],
)
def test_killed_at_any_point_and_run_again_it_is_the_same_corpus(
    point: str, nth: int, sources, clean, tmp_path, in_process, monkeypatch
):
    config = configure(tmp_path, sources)
    done = run_with(f"{point}=kill@{nth}", config)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    visible = find_manifest(config.store, "cells")
    assert visible == (clean if point == "ingest.after_commit" else None)
    if visible is None:
        with pytest.raises(StorageError):
            storage.read_bytes(str(tmp_path / "corpora/cells/versions/000001.json"))
    reads = count_reads(monkeypatch)
    rerun = ingest(config)
    assert rerun.skipped == (point == "ingest.after_commit")
    assert rerun.manifest == clean
    assert not verify(config.store, "cells").damaged
    # Of the four ranges of rows, those whose record was written are not read again.
    expected = {"ingest.before_spill": 5 - nth, "ingest.before_spill_index": 5 - nth, "ingest.after_spill": 4 - nth}
    assert len(reads) == expected.get(point, 0)
    left = gc(config.store, dry_run=False, grace_s=0).orphans
    assert all("/staging/" in uri for uri in left)
    assert bool(left) == (point == "ingest.after_commit")  # a rerun that completes the corpus clears up behind itself
    assert not gc(config.store, grace_s=0).orphans
    assert load_manifest(config.store, "cells") == clean
    assert not verify(config.store, "cells").damaged


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Which ranges of rows are read from now on."""
    from cytoray.corpus.ingesting import read_pass

    reads: list[int] = []
    check = read_pass.check_rows

    def spy(*args: object, start: int, stop: int) -> object:
        reads.append(start)
        return check(*args, start=start, stop=stop)  # type: ignore[arg-type]

    monkeypatch.setattr(read_pass, "check_rows", spy)
    return reads


@pytest.mark.parametrize(
    "point",
    ["ingest.before_spill_index", *(pytest.param(p, marks=pytest.mark.faults) for p in INGEST[:-1] if "after_s" in p)],
)
def test_a_full_disk_is_one_clear_error_and_no_half_corpus(
    point: str, sources, clean, tmp_path, in_process, monkeypatch
):
    config = configure(tmp_path, sources)
    monkeypatch.setenv("CYTORAY_FAILPOINTS", f"{point}=enospc")
    with pytest.raises(OSError, match="No space left"):
        ingest(config)
    monkeypatch.delenv("CYTORAY_FAILPOINTS")
    assert find_manifest(config.store, "cells") is None
    assert ingest(config).manifest == clean


def test_a_disk_that_is_really_full_is_named_with_a_remedy(sources, tmp_path, in_process, monkeypatch):
    config = configure(tmp_path, sources)

    def full(self: Path, *args: object) -> object:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(StorageError, match=r"staging/.*No space left") as caught:
        ingest(config)
    assert "space left on its disk" in caught.value.remedy
    monkeypatch.undo()
    assert find_manifest(config.store, "cells") is None


def test_a_spill_that_was_damaged_on_disk_is_noticed(sources, tmp_path, in_process, monkeypatch):
    config = configure(tmp_path, sources)
    monkeypatch.setenv("CYTORAY_FAILPOINTS", "ingest.before_shard=raise")
    with pytest.raises(Exception, match=r"ingest\.before_shard"):
        ingest(config)
    monkeypatch.delenv("CYTORAY_FAILPOINTS")
    spill = next(path for path in sorted(tmp_path.rglob("spill-*")) if not path.name.endswith(".json"))
    data = bytearray(spill.read_bytes())
    data[len(data) // 3] ^= 1
    spill.write_bytes(data)
    with pytest.raises(StorageError, match=r"spill-.*have changed"):
        ingest(config)
    assert find_manifest(config.store, "cells") is None


def test_a_shard_that_vanished_after_its_record_is_written_again(sources, clean, tmp_path, in_process, monkeypatch):
    config = configure(tmp_path, sources)
    monkeypatch.setenv("CYTORAY_FAILPOINTS", "ingest.before_manifest=raise")
    with pytest.raises(Exception, match=r"ingest\.before_manifest"):
        ingest(config)
    monkeypatch.delenv("CYTORAY_FAILPOINTS")
    next(tmp_path.rglob("shards/*.parquet")).unlink()
    assert ingest(config).manifest == clean
    assert not verify(config.store, "cells").damaged


def test_a_source_that_changes_while_rows_are_read_is_refused(
    sources, tmp_path, in_process, monkeypatch, plant, build_adata, save
):
    path = tmp_path / "moving.h5ad"
    save(build_adata(plant(1, num_cells=60)), path)
    config = configure(tmp_path, (SourceConfig(uri=str(path)),))
    from cytoray.corpus.ingesting import read_pass

    check = read_pass.check_rows

    def slow(*args: object, start: int, stop: int) -> object:
        checked = check(*args, start=start, stop=stop)  # type: ignore[arg-type]
        other = tmp_path / "other.h5ad"
        save(build_adata(plant(2, num_cells=70)), other)
        os.replace(other, path)
        return checked

    monkeypatch.setattr(read_pass, "check_rows", slow)
    with pytest.raises(Exception, match=r"moving\.h5ad: the file changed while it was read"):
        ingest(config)
    with h5py.File(path) as file:
        assert len(file["obs"]["_index"]) == 70
    assert find_manifest(config.store, "cells") is None


@pytest.mark.parametrize("point", GC)
def test_gc_that_is_killed_leaves_every_version_whole(point: str, sources, clean, tmp_path, in_process, monkeypatch):
    config = configure(tmp_path, sources)
    ingest(config)
    orphans = [
        tmp_path / "corpora/cells" / key for key in ("shards/old.parquet", "staging/x/shard-0.json", "obs/.o.1.part")
    ]
    for path in orphans:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"left over")
    monkeypatch.setenv("CYTORAY_FAILPOINTS", f"{point}=raise")
    with pytest.raises(Exception, match=point):
        gc(config.store, dry_run=False, grace_s=0)
    monkeypatch.delenv("CYTORAY_FAILPOINTS")
    # What refers to shards goes before the shards.
    assert [path.exists() for path in orphans] == [True, point == GC[0], True]
    assert not verify(config.store, "cells").damaged
    assert gc(config.store, dry_run=False, grace_s=0).deleted
    assert not any(path.exists() for path in orphans)
    assert load_manifest(config.store, "cells") == clean
    assert not verify(config.store, "cells").damaged


DAY = 86_400.0


def make_old(folder: Path) -> None:
    """Backdate every object by two days, twice what gc leaves alone."""
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (path.stat().st_mtime - 2 * DAY,) * 2)


@pytest.mark.parametrize("step", ["_read_all", "_find_all_copies", "_write_all", "build_manifest", "commit_manifest"])
def test_gc_during_a_resumed_ingest_deletes_nothing_that_it_reuses(
    step: str, sources, clean, tmp_path, in_process, monkeypatch
):
    config = configure(tmp_path, sources)
    run_with("ingest.before_commit=kill", config)
    make_old(tmp_path)
    real, reports = getattr(ingest_module, step), []

    def collect_first(*args: object, **options: object) -> object:
        reports.append(gc(config.store, dry_run=False))
        return real(*args, **options)

    monkeypatch.setattr(ingest_module, step, collect_first)
    assert ingest(config).manifest == clean
    assert [report.orphans for report in reports] == [()]
    assert not verify(config.store, "cells").damaged


def test_an_ingest_does_not_begin_while_gc_deletes(sources, clean, tmp_path, in_process, monkeypatch):
    config = configure(tmp_path, sources)
    run_with("ingest.before_commit=kill", config)
    make_old(tmp_path)
    refused = []

    def begin_ingest(name: str) -> None:
        if name == "gc.before_first_delete":
            with pytest.raises(ConflictError, match="is deleting objects of this corpus") as caught:
                ingest(config)
            refused.append(caught.value)

    monkeypatch.setattr(versions, "failpoint", begin_ingest)
    assert gc(config.store, dry_run=False).deleted
    assert "again" in refused[0].remedy
    assert ingest(config).manifest == clean
    assert not verify(config.store, "cells").damaged


def test_a_gc_that_died_long_ago_does_not_stop_an_ingest(sources, clean, tmp_path, in_process):
    mark = tmp_path / "corpora/cells/gc-under-way"
    mark.parent.mkdir(parents=True)
    mark.write_bytes(b"x")
    with pytest.raises(ConflictError):
        ingest(configure(tmp_path, sources))
    make_old(tmp_path)
    assert ingest(configure(tmp_path, sources)).manifest == clean


def test_gc_during_a_resumed_ingest_on_an_object_store(sources, clean, tmp_path, in_process, monkeypatch, s3_bucket):
    config = configure(tmp_path, sources).model_copy(update={"store": f"{s3_bucket}/resumed"})
    real = ingest_module.commit_manifest

    def stop(*args: object) -> None:
        raise StorageError("stopped")

    monkeypatch.setattr(ingest_module, "commit_manifest", stop)
    with pytest.raises(StorageError, match="stopped"):
        ingest(config)
    objects, young = versions._objects, set()
    before = {entry.uri for entry in objects(config.store) if not entry.uri.endswith("/claim")}

    def two_days_later(store: str) -> list[storage.ObjectInfo]:
        return [
            replace(entry, modified_s=entry.modified_s - 2 * DAY * (entry.uri in before)) for entry in objects(store)
        ]

    def collect_first(*args: object) -> None:
        young.add(gc(config.store, dry_run=False).num_young)
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(versions, "_objects", two_days_later)
    monkeypatch.setattr(ingest_module, "commit_manifest", collect_first)
    assert ingest(config).manifest.content_digest == clean.content_digest
    assert len(young) == 1
    assert not verify(config.store, "cells").damaged
