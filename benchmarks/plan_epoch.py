"""Planning an epoch over 33 million cells: ``python -m benchmarks.plan_epoch``.

A manifest of 825 shards with 20 row groups each is read from disk, a stream is opened on it, the epoch is cut into the
runs that read tasks take, and the first and the last step are laid out, in a process of its own; its memory is reported
beside that of one that only imports the same modules. To resume, a run needs the step beside its configuration.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import common
from cytoray.corpus.manifest import (
    CorpusManifest,
    FileRecord,
    RowGroupRecord,
    ShardRecord,
    commit_manifest,
    corpus_uri,
)
from cytoray.corpus.stream import open_stream
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.training.checkpoint import TrainerState

CELLS_PER_GROUP, GROUPS_PER_SHARD = 2048, 20
CELLS_PER_SHARD = CELLS_PER_GROUP * GROUPS_PER_SHARD
NUM_CELLS, CELLS_PER_STEP = 33_000_000, 512


def main() -> None:
    """Print the JSON lines of the planning goals."""
    with tempfile.TemporaryDirectory() as store:
        commit_manifest(corpus_uri(store, "atlas"), make_manifest())
        base = in_fresh_process(_plan, None)
        planned = in_fresh_process(_plan, store)
    shards = planned["num_cells"] // CELLS_PER_SHARD
    settings = {"cells": planned["num_cells"], "shards": shards, "runs": planned["num_runs"]}
    common.report("plan_time", value=planned["seconds"], settings=settings)
    common.report("plan_memory", value=(planned["peak_bytes"] - base["peak_bytes"]) / 2**30, settings=settings)
    state = TrainerState(step=10**6, manifest_digest="0" * 64, config_digest="0" * 64, history=())
    common.report(
        "resume_state", value=len(state.model_dump_json().encode()), settings={"what": "state.json, no history"}
    )


def make_manifest(num_cells: int = NUM_CELLS) -> CorpusManifest:
    """The manifest of a corpus that is not there, of ``num_cells`` cells and what fills its last shard."""
    size = 3_300_000
    groups = tuple(
        RowGroupRecord(
            offset=number * size,
            num_bytes=size,
            num_cells=CELLS_PER_GROUP,
            num_entries=1500 * CELLS_PER_GROUP,
            sha256="0" * 64,
        )
        for number in range(GROUPS_PER_SHARD)
    )
    shards = tuple(
        ShardRecord(
            key=f"shards/{number:06d}-{number:016x}.parquet",
            sha256=f"{number:064x}",
            num_bytes=GROUPS_PER_SHARD * size + 10_000,
            num_cells=GROUPS_PER_SHARD * CELLS_PER_GROUP,
            num_entries=1500 * GROUPS_PER_SHARD * CELLS_PER_GROUP,
            frame_sha256="0" * 64,
            row_groups=groups,
            obs=FileRecord(key=f"obs/{number:06d}.parquet", sha256="0" * 64, num_bytes=10**6),
            cell_id_sum=number,
        )
        for number in range(-(-num_cells // CELLS_PER_SHARD))
    )
    return CorpusManifest(
        name="atlas",
        vocabulary_digest=GeneVocabulary.load_default().digest(),
        values="counts",
        binning="on_read",
        n_bins=51,
        seed=0,
        sources=(),
        shards=shards,
    )


def in_fresh_process(work: Callable[[Any], dict[str, Any]], argument: object) -> dict[str, Any]:
    """What ``work`` says of ``argument`` in a process of its own, and the highest memory of that (``peak_bytes``)."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(work, argument, theirs))
    process.start()
    theirs.close()  # or a process that died would be waited for
    said: dict[str, Any] = ours.recv()
    process.join()
    return said


def _work(work: Callable[[Any], dict[str, Any]], argument: object, out: Connection) -> None:
    """Do the work, then say what it was and the highest memory."""
    figures = work(argument)
    # Not ru_maxrss, which begins with that of the parent.
    lines = Path("/proc/self/status").read_text().splitlines()
    peak_bytes = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    out.send({**figures, "peak_bytes": peak_bytes})


def _plan(store: str | None) -> dict[str, Any]:
    """Plan an epoch (or, without a store, nothing) and report how long it took."""
    started, figures = time.perf_counter(), {}
    if store is not None:
        stream = open_stream(store, "atlas", StreamOptions(TokenizerConfig(), 1, CELLS_PER_STEP))
        num_steps = stream.num_cells // CELLS_PER_STEP
        figures["num_runs"] = len(list(stream.order.runs(0, num_steps)))
        stream.order.cells(0, 1)
        stream.order.cells(num_steps - 1, num_steps, rank=3, world_size=8)
        figures["num_cells"] = stream.num_cells
    return {**figures, "seconds": time.perf_counter() - started}


if __name__ == "__main__":
    main()
