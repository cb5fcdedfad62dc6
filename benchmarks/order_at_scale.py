"""The reading order of an epoch over an atlas: ``python benchmarks/order_at_scale.py --cells 33000000``.

A manifest of that many cells is generated and read from disk; in a process of its own a stream is opened on it, the
epoch is cut into the runs that read tasks take, and its first and last steps are laid out for every rank of 1, 2 and 8
workers: all must see the same cells in the same order. Another process resumes at a step far into a later epoch, as a
restarted run does. ``--whole`` also lays out every step of the epoch and checks that each cell comes exactly once.
The one JSON line has the seconds, the peak memory of the whole process, and what was checked.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np

from benchmarks import common
from benchmarks.goals import GOALS
from benchmarks.plan_epoch import CELLS_PER_STEP, NUM_CELLS, in_fresh_process, make_manifest
from cytoray.corpus.manifest import commit_manifest, corpus_uri
from cytoray.corpus.stream import CorpusStream, open_stream
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.corpus.streaming.order import OrderedCells, ReadingOrder
from cytoray.tokens.tokenizer import TokenizerConfig

WORLD_SIZES = (1, 2, 8)
LATER_EPOCHS = 5  # the published run has six epochs: the resumed step is in the last


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=NUM_CELLS, help="rounded up to whole shards of 40,960")
    parser.add_argument("--whole", action="store_true", help="lay out every step of the epoch as well")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as store:
        manifest = make_manifest(options.cells)
        commit_manifest(corpus_uri(store, "atlas"), manifest)
        imports = in_fresh_process(_nothing, store)
        planned = in_fresh_process(_plan, store)
        resumed = in_fresh_process(_resume, store)
        whole = in_fresh_process(_lay_out_epoch, store) if options.whole else {}
    assert planned["num_cells"] == manifest.num_cells, "the epoch has other cells than the manifest"
    seconds, peak_gib = planned.pop("seconds"), planned.pop("peak_bytes") / 2**30
    goals = (GOALS["order_time"], GOALS["order_memory"])
    record = {
        "name": "order_at_scale",
        "seconds": round(seconds, 3),
        "peak_rss_gib": round(peak_gib, 3),
        "imports_rss_gib": round(imports["peak_bytes"] / 2**30, 3),  # contained in the peak
        "resume_s": round(resumed["seconds"], 3),
        "goal": " and ".join(goal.text for goal in goals),
        "met": bool(goals[0].is_met(seconds) and goals[1].is_met(peak_gib)),
        "settings": {**planned, "cells_per_step": CELLS_PER_STEP, "resumed_at_step": resumed["step"]},
        "load": round(os.getloadavg()[0], 2),
    }
    if whole:
        record["whole_epoch_s"] = round(whole["seconds"], 2)
        record["whole_epoch_peak_rss_gib"] = round(whole["peak_bytes"] / 2**30, 3)
        record["order_sha256"] = whole["sha256"]
    common.emit(record)


def _open(store: str) -> CorpusStream:
    return open_stream(store, "atlas", StreamOptions(TokenizerConfig(), 1, CELLS_PER_STEP))


def _nothing(store: str) -> dict[str, Any]:
    """Measure the memory of the imports alone."""
    return {}


def _plan(store: str) -> dict[str, Any]:
    """Open the stream, cut the epoch into runs, lay out the first and last steps for all ranks; then check them."""
    started = time.perf_counter()
    order = _open(store).order
    num_steps = order.num_cells // CELLS_PER_STEP
    runs = list(order.runs(0, num_steps))
    steps = sorted({0, 1, num_steps // 2, num_steps - 1})
    laid_out = {size: [_global_step(order, step, size) for step in steps] for size in WORLD_SIZES}
    seconds = time.perf_counter() - started
    for size, found in laid_out.items():
        for step, cells, alone in zip(steps, found, laid_out[1], strict=True):
            assert np.array_equal(cells, alone), f"step {step} has other cells with {size} workers"
    assert [first for first, _ in runs[1:]] == [last for _, last in runs[:-1]], "runs leave steps out"
    assert (runs[0][0], runs[-1][1]) == (0, num_steps), "runs do not fill the epoch"
    assert int(order.counts.sum()) == order.num_cells, "units do not add up to the epoch"
    return {
        "num_cells": order.num_cells,
        "units": len(order.counts),
        "steps": num_steps,
        "runs": len(runs),
        "same_cells_at_steps": steps,
        "world_sizes": list(WORLD_SIZES),
        "seconds": seconds,
    }


def _global_step(order: ReadingOrder, step: int, world_size: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Units, places and epochs (3, S) of a step: the shares of all ranks, one behind the other."""
    shares = [order.cells(step, step + 1, rank=rank, world_size=world_size) for rank in range(world_size)]
    return np.concatenate([_fields(share) for share in shares], axis=1)


def _fields(cells: OrderedCells) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.stack([cells.units.ravel(), cells.places.ravel(), cells.epochs.ravel()])


def _resume(store: str) -> dict[str, Any]:
    """Open the stream anew and find rank 5's share of a step of a later epoch: nothing before it is gone through."""
    started = time.perf_counter()
    order = _open(store).order
    step = LATER_EPOCHS * (order.num_cells // CELLS_PER_STEP) + order.num_cells // (3 * CELLS_PER_STEP)
    cells = order.cells(step, step + 1, rank=5, world_size=8)
    seconds = time.perf_counter() - started
    assert int(cells.epochs.min()) == LATER_EPOCHS, "the step lies in another epoch"
    return {"seconds": seconds, "step": step}


def _lay_out_epoch(store: str) -> dict[str, Any]:
    """Lay out all steps of the first epoch run by run; digest the order, and see that every cell comes once."""
    order = _open(store).order
    firsts = np.cumsum([0, *order.counts])[:-1]
    seen, digest, seconds = np.zeros(order.num_cells, np.bool_), hashlib.sha256(), 0.0
    for first, last in order.runs(0, -(-order.num_cells // CELLS_PER_STEP)):
        started = time.perf_counter()
        cells = order.cells(first, last)
        seconds += time.perf_counter() - started
        mine = cells.epochs == 0  # the last step begins the next epoch
        numbers = firsts[cells.units[mine]] + cells.places[mine]
        assert not seen[numbers].any(), f"a cell of steps {first} to {last} has come before"
        seen[numbers] = True
        digest.update(numbers)
    assert seen.all(), f"{int((~seen).sum())} cells never come"
    return {"seconds": seconds, "sha256": digest.hexdigest()}


if __name__ == "__main__":
    main()
