"""The same stream and the same ingest from an S3 server on loopback and from local disk: ``python -m benchmarks.s3``.

The server runs in a process of its own on the same cores: what it takes is missing from the client, so the share that
left is a lower bound of what a store elsewhere would leave, but for its latency.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import common
from benchmarks.stored import STORE
from benchmarks.stream import BATCH_CELLS, SECONDS, measure_direct, open_masked
from cytoray.cluster import connected

INGEST_CELLS = 10_000 if common.QUICK else 50_000
ROUNDS = 2 if common.QUICK else 5
INGEST_ROUNDS = 1 if common.QUICK else 3


def main() -> None:
    """Print the JSON lines of the two shares."""
    open_masked(BATCH_CELLS)  # makes the corpus if need be
    with served() as environment:
        _stream(environment)
        _ingest(environment)


@contextlib.contextmanager
def served() -> Iterator[dict[str, str]]:
    """The cache folder as an S3 store; the environment with which it is found."""
    command = [sys.executable, "-m", "benchmarks.s3_server", str(common.CACHE)]
    with subprocess.Popen(command, cwd=common.ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:  # at once: leaving Popen waits for the server's end
            assert server.stdout is not None, "its output is a pipe"
            endpoint = server.stdout.readline().strip()
            yield {
                "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s",
                "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
            }  # fmt: skip
        finally:
            server.terminate()


def _stream(environment: dict[str, str]) -> None:
    local = open_masked(BATCH_CELLS)
    with mock.patch.dict(os.environ, environment):
        remote = open_masked(BATCH_CELLS, store=f"s3://{os.path.relpath(STORE, common.CACHE)}")
        for stream in (local, remote):
            measure_direct(stream, seconds=SECONDS)
        measured = common.alternate(
            lambda: measure_direct(remote, seconds=SECONDS),
            lambda: measure_direct(local, seconds=SECONDS),
            rounds=ROUNDS,
        )
    common.report("s3_stream", value=measured.value, baseline=measured.baseline, settings={"batch": BATCH_CELLS})


def _ingest(environment: dict[str, str]) -> None:
    files = common.synthetic_files(INGEST_CELLS)
    sources = os.path.relpath(files[0].parent, common.CACHE)
    out = common.CACHE / "s3-out"
    with mock.patch.dict(os.environ, environment), connected(num_cpus=2):
        sides = {"s3": ("s3://s3-out/store", f"s3://{sources}/"), "local": (str(out / "local"), f"{files[0].parent}/")}
        for side in sides.values():  # the workers start, kernels are compiled
            _ingest_once(*side)
        measured = common.alternate(
            lambda: _ingest_once(*sides["s3"]), lambda: _ingest_once(*sides["local"]), rounds=INGEST_ROUNDS
        )
    shutil.rmtree(out, ignore_errors=True)
    settings = {"cells": INGEST_CELLS, "files": len(files), "rounds": INGEST_ROUNDS}
    common.report("s3_ingest", value=measured.value, baseline=measured.baseline, settings=settings)


def _ingest_once(store: str, sources: str) -> float:
    """Measure the cells per second of one whole ingest."""
    from cytoray.corpus.config import IngestConfig, SourceConfig
    from cytoray.corpus.ingest import ingest

    shutil.rmtree(common.CACHE / "s3-out", ignore_errors=True)
    config = IngestConfig(store=store, corpus="cells", sources=(SourceConfig(uri=sources),), rows_per_task=4_096)
    started = time.perf_counter()
    manifest = ingest(config).manifest
    return manifest.num_cells / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
