"""How long a consumer at half the peak rate waits for a minibatch: ``python benchmarks/latency.py``.

A consumer takes a minibatch, widens it to the int64 / float32 tensors of a model, and sleeps until its next one is due,
at half the rate that the direct reader reached just before. The claim is about the wait for the minibatch. Also
reported: the time until the tensors are ready, the work of the consumer on cores that it shares with the threads that
fill; and the same with minibatches that are in memory already, which is what the machine itself adds.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import numpy.typing as npt
import torch

from benchmarks import common
from benchmarks.stream import FOR_EVER, SECONDS, measure_direct, open_masked
from cytoray.corpus.streaming.batches import StepBatch
from cytoray.tokens.collator import widen
from cytoray.tokens.vocabulary import GeneVocabulary

Milliseconds = npt.NDArray[np.float64]
BATCH_CELLS = 64
NUM_BATCHES = 1_000 if common.QUICK else 6_000
WARM_UP = 512


def main() -> None:
    """Print the JSON line of the latency goal."""
    torch.set_num_threads(1)
    stream = open_masked(BATCH_CELLS)
    measure_direct(stream, seconds=1)
    peak = measure_direct(stream, seconds=SECONDS)
    period = 2 * BATCH_CELLS / peak
    held = list(stream.read_steps(0, 64))
    _, floor = _measure(itertools.cycle(held), period)
    batches = stream.read_steps(0, FOR_EVER)
    waits, ready = _measure(batches, period)
    batches.close()  # type: ignore[attr-defined]
    common.report(
        "latency",
        value=float(np.quantile(waits, 0.999)),
        baseline=float(np.median(waits)),
        settings={
            "batch": BATCH_CELLS,
            "cells_per_s": round(peak / 2),
            "batches": len(ready),
            "max_ms": round(float(waits.max()), 2),
            "tensors_median_ms": round(float(np.median(ready)), 4),
            "tensors_p999_ms": round(float(np.quantile(ready, 0.999)), 3),
            "tensors_p999_ms_of_minibatches_in_memory": round(float(np.quantile(floor, 0.999)), 3),
        },
        note=f"until its tensors are there: p99.9 {np.quantile(ready, 0.999):.2g} ms, median {np.median(ready):.2g} ms "
        "(the consumer waits for a core while two threads fill on two)",
    )


def _measure(batches: Iterator[StepBatch], period: float) -> tuple[Milliseconds, Milliseconds]:
    """Milliseconds from asking until a minibatch is there, and until its tensors are."""
    waits: list[float] = []
    ready: list[float] = []
    pad_id = GeneVocabulary.load_default().pad_id
    due = time.perf_counter()
    for _ in range(WARM_UP + NUM_BATCHES):
        asked = time.perf_counter()
        batch = next(batches)
        waits.append(time.perf_counter() - asked)
        widen(batch.gene_ids, batch.masked, pad_id=pad_id, cell_ids=batch.cell_ids)
        ready.append(time.perf_counter() - asked)
        due = max(due + period, time.perf_counter())
        time.sleep(max(0.0, due - time.perf_counter()))
    return 1e3 * np.array(waits[WARM_UP:]), 1e3 * np.array(ready[WARM_UP:])


if __name__ == "__main__":
    main()
