"""Kill an ingest wherever it leaves something behind, or at any moment: the rerun ends as if it never happened."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import cytoray
from cytoray import failpoints
from cytoray.corpus.ingest import IngestResult
from cytoray.corpus.manifest import find_manifest
from cytoray.corpus.versions import gc, verify

from .conftest import Driver, make_config

pytestmark = pytest.mark.faults
SOURCE = Path(cytoray.__file__).parent
POINTS = sorted(
    {name for file in SOURCE.rglob("*.py") for name in re.findall(r'failpoint\("(\w+\.\w+)"\)', file.read_text())}
)
INGEST_POINTS = [name for name in POINTS if name.startswith("ingest.")]
GC_POINTS = [name for name in POINTS if name.startswith("gc.")]
AFTER_COMMIT = {"ingest.after_commit"}


@pytest.fixture(scope="module")
def hits(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """How often an undisturbed ingest passes each point."""
    from cytoray.corpus import ingest as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(failpoints.VARIABLE, "no.such_point=raise")
        patch.setattr(module, "_map_tasks", lambda items, work, concurrency: map(work, items))
        failpoints._hits.clear()
        module.ingest(make_config(tmp_path_factory.mktemp("count"), sources))
        return dict(failpoints._hits)


def test_there_are_points_before_and_after_each_durable_step(hits: dict[str, int]):
    assert set(INGEST_POINTS) <= hits.keys(), "an ingest does not pass all of its points"
    assert len(INGEST_POINTS) >= 12


@pytest.mark.parametrize("point", INGEST_POINTS)
def test_killed_at_each_point_and_run_again(
    point: str, hits, start_driver: Callable[..., Driver], ingest_here, clean: IngestResult, sources, tmp_path, outcome
):
    config, nth = make_config(tmp_path / "store", sources), hits[point] // 2 + 1
    driver = start_driver(config, failpoints=f"{point}=kill@{nth}", once=tmp_path / "once")
    assert driver.was_killed()
    assert [path.name for path in (tmp_path / "once").iterdir()] == [point]

    seen = find_manifest(config.store, "cells")  # before the commit nothing, after it all
    assert (seen is not None) == (point in AFTER_COMMIT)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*") if path.is_file()}
    result = ingest_here(config)
    assert result.manifest.content_digest == clean.manifest.content_digest
    assert result.skipped == (point in AFTER_COMMIT)
    assert verify(config.store, "cells").damaged == ()
    redone = [path for path, written in before.items() if path.exists() and path.stat().st_mtime_ns != written]
    finished = [path for path in redone if path.suffix == ".json" and "spill" in path.name]
    assert finished == [], "what was complete is not done again"
    gc(config.store, dry_run=False, grace_s=0)
    left = {path for path in (tmp_path / "store").rglob("*") if path.is_file()}
    assert not [path for path in left if "staging" in path.parts or path.name.endswith(".part")]
    assert verify(config.store, "cells").damaged == ()
    outcome(f"F3 kill -9 at {point}, hit {nth}", 1, "rerun: the clean corpus")


@pytest.mark.parametrize("point", GC_POINTS)
def test_a_killed_gc_harms_no_version(point: str, ingest_here, clean, sources, tmp_path, monkeypatch, outcome):
    config = make_config(tmp_path / "store", sources)
    ingest_here(config)
    for name in ("corpora/cells/shards/loose-1", "corpora/cells/shards/loose-2", "corpora/cells/manifests/loose"):
        (tmp_path / "store" / name).write_bytes(b"left by a dead writer")
    monkeypatch.setenv(failpoints.VARIABLE, f"{point}=raise")  # the same as a kill: nothing here cleans up
    with pytest.raises(failpoints.FailpointError):
        gc(config.store, dry_run=False, grace_s=0)
    monkeypatch.delenv(failpoints.VARIABLE)
    assert verify(config.store, "cells").damaged == ()
    gc(config.store, dry_run=False, grace_s=0)
    assert not list((tmp_path / "store").rglob("loose*"))
    assert verify(config.store, "cells").damaged == ()
    outcome(f"F3 gc stopped at {point}", 1, "version whole, rerun deletes the rest")


@pytest.mark.parametrize("point", ["ingest.before_spill_index", "ingest.before_shard_record"])
def test_a_killed_ray_worker_is_replaced(point: str, start_driver, clean, sources, tmp_path, outcome):
    config = make_config(tmp_path / "store", sources)
    found = start_driver(config, failpoints=f"{point}=kill@1", once=tmp_path / "once", ray=True).outcome()
    assert [path.name for path in (tmp_path / "once").iterdir()] == [point]
    assert found["digest"] == clean.manifest.content_digest
    assert verify(config.store, "cells").damaged == ()
    outcome(f"F1 kill -9 of a Ray worker at {point}", 1, "task tried again: the clean corpus")


def test_a_killed_driver_leaves_what_a_rerun_goes_on_with(start_driver, clean, ingest_here, sources, tmp_path, outcome):
    config = make_config(tmp_path / "store", sources)
    driver = start_driver(config, failpoints="ingest.after_spill=sleep:1", ray=True)
    staging = tmp_path / "store" / "corpora" / "cells" / "staging"
    deadline = time.monotonic() + 120
    while len(list(staging.rglob("spill-*.json"))) < 2:
        assert driver.process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(driver.process.pid, signal.SIGKILL)
    assert driver.was_killed()
    assert find_manifest(config.store, "cells") is None
    _wait_until_quiet(staging)
    done = {path: path.stat().st_mtime_ns for path in staging.rglob("spill-*.json")}
    assert len(done) < 6
    written: list[str] = []
    from cytoray import storage

    real = storage.write_bytes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "write_bytes", lambda uri, data: (written.append(uri), real(uri, data))[1])
        result = ingest_here(config)
    assert result.manifest.content_digest == clean.manifest.content_digest
    assert not {str(path) for path in done} & set(written), "finished spills are not made again"
    outcome("F2 kill -9 of the driver amid the first pass", 1, f"rerun kept {len(done)} of 6 spills: the clean corpus")


def _wait_until_quiet(folder: Path) -> None:
    """Until no worker of a dead driver writes any more."""
    last, since = -1, time.monotonic()
    while time.monotonic() - since < 3:
        now = len(list(folder.rglob("*")))
        if now != last:
            last, since = now, time.monotonic()
        time.sleep(0.1)
