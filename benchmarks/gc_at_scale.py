"""Collect the garbage of a 33-million-cell corpus at index level: ``python benchmarks/gc_at_scale.py [--versions N]``.

Commits and manifests are on disk, as ``cytoray data gc`` reads them; the listing of the store is simulated: everything
that the versions name, and what killed ingests and lost races left. Prints one JSON line: seconds and requests of the
search and of a deletion (nothing is deleted in earnest), peak memory above that of the imports, and the largest number
of bytes that Python held (tracemalloc), per cell: a Python object per cell would take 28 bytes or more.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import common
from benchmarks.plan_epoch import in_fresh_process, make_manifest
from cytoray import storage
from cytoray.corpus.manifest import CorpusManifest, FileRecord, commit_manifest, corpus_uri, load_commit, load_manifest
from cytoray.corpus.versions import gc

NUM_CELLS, NUM_VERSIONS, NUM_ORPHANS = 33_000_000, 50, 200_000
FEW_VERSIONS = 5
OLD_S = 10 * 24 * 3600.0
NAME = "atlas"


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cells", type=int, default=NUM_CELLS)
    parser.add_argument("--versions", type=int, default=NUM_VERSIONS)
    parser.add_argument("--orphans", type=int, default=NUM_ORPHANS)
    asked = parser.parse_args()
    base = in_fresh_process(_collect, None)
    measured = _run(asked.cells, versions=asked.versions, orphans=asked.orphans, traced=False)
    # Tracing takes long, and what versions share is held once.
    traced = _run(asked.cells, versions=min(asked.versions, FEW_VERSIONS), orphans=asked.orphans, traced=True)
    common.emit(
        {
            "name": "gc_at_scale",
            "cells": measured["cells"],
            "versions": asked.versions,
            **{key: measured[key] for key in ("objects", "orphans", "search_s", "delete_s", "requests")},
            "peak_gib": round((measured["peak_bytes"] - base["peak_bytes"]) / 2**30, 3),
            "python_bytes_per_cell": round(traced["python_bytes"] / traced["cells"], 2),
        }
    )


def _run(num_cells: int, *, versions: int, orphans: int, traced: bool) -> dict[str, Any]:
    """Collect garbage in a store of its own, in a process of its own."""
    with tempfile.TemporaryDirectory() as store:
        cells = write_versions(store, num_cells=num_cells, num_versions=versions)
        job = {"store": store, "versions": versions, "orphans": orphans, "traced": traced}
        return {"cells": cells, **in_fresh_process(_collect, job)}


def write_versions(store: str, *, num_cells: int, num_versions: int) -> int:
    """Commit versions of a corpus that is not there, each with an equal share of the shards more; return its cells."""
    whole = make_manifest(num_cells)
    shards = tuple(
        shard.model_copy(
            update={"hashes": FileRecord(key=f"obs/{shard.key[7:-8]}.hashes", sha256="0" * 64, num_bytes=8)}
        )
        for shard in whole.shards
    )
    for version in range(1, num_versions + 1):
        part = shards[: -(-len(shards) * version // num_versions)]
        update = {"name": NAME, "version": version, "shards": part}
        commit_manifest(corpus_uri(store, NAME), whole.model_copy(update=update))
    return whole.num_cells


def listing(store: str, manifest: CorpusManifest, *, num_versions: int, num_orphans: int) -> list[storage.ObjectInfo]:
    """List the objects of the simulated store, with what killed ingests left in equal numbers in ten staging areas."""
    uri, old = corpus_uri(store, NAME), time.time() - OLD_S
    keys = _keys(store, manifest, num_versions=num_versions, num_orphans=num_orphans)
    return [storage.ObjectInfo(f"{uri}/{key}", num_bytes=1000, version="", modified_s=old) for key in keys]


def _keys(store: str, manifest: CorpusManifest, *, num_versions: int, num_orphans: int) -> Iterator[str]:
    for version in range(1, num_versions + 1):
        yield f"versions/{version:06d}.json"
        yield load_commit(corpus_uri(store, NAME), version).key
    for shard in manifest.shards:
        yield from (file.key for file in shard.files)
    for number in range(num_orphans):
        kind = ("spill-{:06d}.bin", "spill-{:06d}.json")[number // 10 % 2]
        yield f"staging/{number % 10:016x}/{kind.format(number // 20)}"


def _collect(job: dict[str, Any] | None) -> dict[str, Any]:
    """Search and delete in the simulated store (or, without a job, nothing); nothing is removed from the disk."""
    if job is None:
        return {}
    manifest, requests = load_manifest(job["store"], NAME), Counter[str]()
    sizes = {"num_versions": job["versions"], "num_orphans": job["orphans"]}
    if job["traced"]:
        tracemalloc.start()
    with (
        mock.patch.object(
            storage, "list_objects", side_effect=lambda *_, **__: listing(job["store"], manifest, **sizes)
        ),
        mock.patch.object(storage, "delete", side_effect=lambda _: requests.update(deletes=1)),
        mock.patch.object(storage, "read_bytes", _counted(storage.read_bytes, requests)),
    ):
        started = time.perf_counter()
        found = gc(job["store"])
        searched = time.perf_counter()
        assert len(gc(job["store"], dry_run=False).orphans) == len(found.orphans) == job["orphans"]
        ended = time.perf_counter()
    return {
        "objects": job["orphans"] + 2 * job["versions"] + sum(len(shard.files) for shard in manifest.shards),
        "orphans": len(found.orphans),
        "search_s": round(searched - started, 2),
        "delete_s": round(ended - searched, 2),
        "requests": dict(requests),
        "python_bytes": tracemalloc.get_traced_memory()[1] if job["traced"] else 0,
    }


def _counted(read: Any, requests: Counter[str]) -> Any:
    """Wrap a function that reads, and count its calls."""

    def counted(*arguments: Any, **options: Any) -> Any:
        requests["reads"] += 1
        return read(*arguments, **options)

    return counted


if __name__ == "__main__":
    main()
