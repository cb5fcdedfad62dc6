"""Two ingests at once, a source that changes, a prefix that grows, a disk that fills up; and guards taken away."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import pytest

from cytoray import storage
from cytoray.corpus import ingest as ingest_module
from cytoray.corpus.ingest import IngestResult
from cytoray.corpus.ingesting import read_pass
from cytoray.corpus.manifest import find_manifest, load_manifest
from cytoray.corpus.stream import load_cells
from cytoray.corpus.synthetic import SynthConfig, synthesise
from cytoray.corpus.versions import gc, verify
from cytoray.errors import CorpusError, StorageError

from .conftest import make_config

pytestmark = pytest.mark.faults


@pytest.fixture
def own_sources(sources: Path, tmp_path: Path) -> Path:
    """A copy of the sources that a test may change."""
    return Path(shutil.copytree(sources, tmp_path / "sources"))


def test_two_different_ingests_of_one_name(start_driver, sources, tmp_path, outcome):
    configs = [make_config(tmp_path / "store", sources, seed=seed) for seed in (1, 2)]
    drivers = [start_driver(config, failpoints="ingest.before_commit=sleep:4", once=None) for config in configs]
    found = [driver.outcome() for driver in drivers]
    slept = sum("before_commit fires" in (driver.result.parent / "stderr").read_text() for driver in drivers)
    assert slept == 2, "both were about to commit"
    (won,) = (result for result in found if "digest" in result)
    (lost,) = (result for result in found if "error" in result)
    manifest = load_manifest(str(tmp_path / "store"), "cells")
    assert manifest.content_digest == won["digest"]
    assert lost["error"] == "ConflictError"
    assert manifest.digest[:16] in lost["text"], "the loser is told who won"
    assert verify(str(tmp_path / "store"), "cells").damaged == ()
    gc(str(tmp_path / "store"), dry_run=False, grace_s=0)
    assert verify(str(tmp_path / "store"), "cells").damaged == ()
    outcome("F4 two different ingests commit one version", slept, "one wins, the other is told which")


def test_two_equal_ingests_of_one_name(start_driver, sources, tmp_path, clean, outcome):
    config = make_config(tmp_path / "store", sources)
    drivers = [start_driver(config, failpoints="ingest.before_commit=sleep:4") for _ in range(2)]
    found = [driver.outcome() for driver in drivers]
    manifest = load_manifest(str(tmp_path / "store"), "cells")
    assert manifest.content_digest == clean.manifest.content_digest
    assert any(result.get("digest") == manifest.content_digest for result in found)
    others = [result["error"] for result in found if "error" in result]
    assert others in ([], ["ConflictError"])
    assert verify(config.store, "cells").damaged == ()
    outcome("F4 two equal ingests at once", 2, f"one clean corpus; the other: {others[0] if others else 'the same'}")


def _touch_after_first(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace a source when the first task of the read pass is done."""
    changed: list[str] = []
    adata = anndata.read_h5ad(path)
    adata.X.data += 1
    adata.write_h5ad(path.with_suffix(".new"))

    def work_through(plan: Any, items: list[dict[str, Any]], work: Any) -> Any:
        for item in items:
            yield work(item)
            if not changed:
                os.replace(path.with_suffix(".new"), path)
                changed.append(str(path))

    monkeypatch.setattr(ingest_module, "_map", work_through)
    return changed


@pytest.mark.parametrize("name", ["part-000.h5ad", "part-002.h5ad"])
@pytest.mark.parametrize("max_bad_files", [0, 3])
def test_a_source_that_changes_is_refused(name, max_bad_files, own_sources, tmp_path, monkeypatch, outcome):
    changed = _touch_after_first(own_sources / name, monkeypatch)
    config = make_config(tmp_path / "store", own_sources, checks={"max_bad_files": max_bad_files})
    with pytest.raises(CorpusError, match="changed") as caught:
        ingest_module.ingest(config)
    assert name in str(caught.value)
    assert find_manifest(config.store, "cells") is None
    outcome(f"F9 {name} rewritten amid the read, {max_bad_files} bad files allowed", len(changed), "refused, by name")


def test_a_source_on_s3_that_changes_is_refused(sources_on_s3, faults, s3_endpoint, tmp_path, monkeypatch, outcome):
    import boto3

    changed = []

    def work_through(plan: Any, items: list[dict[str, Any]], work: Any) -> Any:
        for item in items:
            yield work(item)
            if not changed:
                bucket, _, key = f"{sources_on_s3}/part-002.h5ad".removeprefix("s3://").partition("/")
                client = boto3.client("s3", endpoint_url=s3_endpoint)
                body = client.get_object(Bucket=bucket, Key=key)["Body"].read()
                client.put_object(Bucket=bucket, Key=key, Body=body + b"\0")
                changed.append(key)

    monkeypatch.setattr(ingest_module, "_map", work_through)
    with pytest.raises(CorpusError, match="changed") as caught:
        ingest_module.ingest(make_config(tmp_path / "store", sources_on_s3))
    assert "part-002.h5ad" in str(caught.value)
    outcome("F9 an S3 source replaced amid the read (ETag)", len(changed), "refused, by name")


def test_a_prefix_that_grows_changes_no_version(own_sources, ingest_here, tmp_path, outcome):
    config = make_config(tmp_path / "store", own_sources)
    first = ingest_here(config)
    before = load_cells(config.store, first.manifest)
    (other,) = synthesise(tmp_path, SynthConfig(num_cells=50, num_files=1, num_genes=300, mean_genes=60.0, seed=9))
    other.rename(own_sources / "part-009.h5ad")
    with pytest.raises(CorpusError, match="already committed"):
        ingest_here(config)
    pinned = load_manifest(config.store, "cells@1")
    assert pinned.digest == first.manifest.digest
    again = load_cells(config.store, pinned)
    assert (again.values.tobytes(), again.gene_ids.tobytes()) == (before.values.tobytes(), before.gene_ids.tobytes())
    appended = ingest_here(make_config(tmp_path / "store", own_sources, append=True))
    assert appended.manifest.version == 2
    assert load_manifest(config.store, "cells@1").digest == first.manifest.digest
    outcome("F10 new files below the prefix", 1, "version 1 reads the same bytes; told to append")


@pytest.mark.parametrize("nth", [1, 4, 8, 12, 16, 20])
def test_a_full_disk_leaves_no_half_file(nth: int, ingest_here, sources, tmp_path, clean, monkeypatch, outcome):
    """Writing fails midway, as on a full disk: the n-th file gets half its bytes."""
    config, real, fired = make_config(tmp_path / "store", sources), storage._write_temporary, []

    def fill_up(path: Path, data: bytes) -> Path:
        fired.append(path)
        if len(fired) < nth:
            return real(path, data)
        monkeypatch.setattr(os, "fsync", _no_space)
        return real(path, data)

    monkeypatch.setattr(storage, "_write_temporary", fill_up)
    with pytest.raises(StorageError, match="No space left") as caught:
        ingest_here(config)
    assert "space" in caught.value.remedy
    monkeypatch.undo()
    assert find_manifest(config.store, "cells") is None
    assert not list((tmp_path / "store").rglob("*.part"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest_module, "_map_tasks", lambda items, work, concurrency: map(work, items))
        assert ingest_module.ingest(config).manifest.content_digest == clean.manifest.content_digest
    outcome(f"F8 disk full at file {nth}", 1, "clear error, no half file; rerun: the clean corpus")


def _no_space(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_really_full_disk(ingest_here, sources, tmp_path, clean, outcome):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=150k", "tmpfs", str(disk)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a small tmpfs cannot be mounted here: the simulated full disk is tested instead")
    try:
        config = make_config(disk / "store", sources)
        with pytest.raises(StorageError, match="No space left"):
            ingest_here(config)
        assert find_manifest(config.store, "cells") is None
        assert not list(disk.rglob("*.part"))
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        assert ingest_here(config).manifest.content_digest == clean.manifest.content_digest
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    outcome("F8 a tmpfs of 150 kB fills up", 1, "clear error, no half file; with room: the clean corpus")


Ingest = Callable[..., IngestResult]


def test_without_the_guard_a_changed_source_goes_unseen(own_sources, tmp_path, monkeypatch, clean, outcome):
    """The tests above would fail if the guard were taken away: here it is."""
    changed = _touch_after_first(own_sources / "part-002.h5ad", monkeypatch)
    monkeypatch.setattr(read_pass, "_refuse_changed", lambda planned, version: None)
    result = ingest_module.ingest(make_config(tmp_path / "store", own_sources))
    assert result.manifest.content_digest != clean.manifest.content_digest
    outcome("F9 known-bad patch: no look at the version", len(changed), "another corpus, as feared: the guard matters")


def test_without_put_if_absent_the_later_commit_replaces_the_first(
    ingest_here, sources, tmp_path, monkeypatch, outcome
):
    from cytoray.corpus import manifest as module

    first = ingest_here(make_config(tmp_path / "store", sources, seed=1))
    monkeypatch.setattr(storage, "put_if_absent", storage.write_bytes)
    module.commit_manifest(first.uri, first.manifest.model_copy(update={"seed": 2}))
    assert load_manifest(str(tmp_path / "store"), "cells@1").digest != first.manifest.digest
    outcome("F4 known-bad patch: commit by plain write", 1, "a version changed, as feared: the guard matters")
