"""Model-ready minibatches from the direct reader: ``python benchmarks/stream.py``.

Ours: the stored corpus, decoded, tokenised and 40 % masked into (32, 1200) narrow arrays on two threads, taken by one
consumer. scGPT's: its Hugging Face dataset and DataCollator, the better of 0 and 2 workers. annbatch's: bare CSR rows,
nothing tokenised, its best settings. In turn, medians; the page cache is warm. Then the donor entropy of minibatches of
64 cells, whose source files are sorted by donor.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np

from benchmarks import common
from benchmarks.anchors import annbatch_rows, scgpt_path
from benchmarks.stored import STORE, stored_corpus
from cytoray.corpus.stream import CorpusStream, open_stream
from cytoray.corpus.streaming.batches import StepBatch
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.tokens.tokenizer import TokenizerConfig

SECONDS, ROUNDS = (2, 2) if common.QUICK else (6, 5)
BATCH_CELLS, ENTROPY_CELLS = 32, 64
MASK_RATIO = 0.4
FOR_EVER = 10**9


def main() -> None:
    """Print the JSON lines of the streaming goals."""
    files = common.synthetic_files(200_000 if not common.QUICK else 20_000)
    stream = open_masked(BATCH_CELLS)
    settings = {"batch": BATCH_CELLS, "threads": 2, "output": "uint16/int8/int8", "cells": stream.num_cells}
    measure_direct(stream, seconds=SECONDS)  # compiles, and warms the page cache
    measured = common.alternate(
        lambda: measure_direct(stream, seconds=SECONDS),
        lambda: _rate(scgpt_path(files, seconds=SECONDS)),
        rounds=ROUNDS,
    )
    common.report("stream_scgpt", value=measured.value, baseline=measured.baseline or None, settings=settings)
    rows = common.alternate(
        lambda: measure_direct(stream, seconds=SECONDS),
        lambda: _rate((annbatch_rows(files, seconds=SECONDS) or {}).get("64/512/32")),
        rounds=ROUNDS,
    )
    common.report("stream_annbatch", value=rows.value, baseline=rows.baseline or None, settings=settings)
    _report_entropy()


def open_masked(cells_per_step: int, *, store: str = STORE, **options: Any) -> CorpusStream:
    """The stored corpus as minibatches with 40 % masked."""
    masked = {"style": "masked", "ratios": (MASK_RATIO,), **options}
    return open_stream(store, stored_corpus(), StreamOptions(TokenizerConfig(), 1, cells_per_step, **masked))


def measure_direct(stream: CorpusStream, *, seconds: float) -> float:
    """Measure the cells per second that one consumer takes from two threads."""
    batches = stream.read_steps(0, FOR_EVER, threads=2)
    try:
        return float(common.drain(batches, _count, seconds=seconds, warm_up=1024)["cells_per_s"])
    finally:
        batches.close()  # type: ignore[attr-defined]


def _count(batch: StepBatch) -> int:
    return batch.num_cells


def _rate(record: dict[str, Any] | None) -> float:
    """Return a baseline's rate, 0 if it was skipped."""
    return 0.0 if record is None else float(record["cells_per_s"])


def _report_entropy() -> None:
    """Mean donor entropy of minibatches of one epoch beside that of ideal draws, and the correlation of neighbours."""
    options = StreamOptions(TokenizerConfig(max_length=2), 1, ENTROPY_CELLS, label_key="donor")
    stream = open_stream(STORE, stored_corpus(), options)
    donors = np.concatenate([batch.labels for batch in stream.read_steps(0, stream.num_cells // ENTROPY_CELLS)])
    ours = statistics.fmean(_each(donors, _entropy))
    rng = np.random.default_rng(0)
    ideal = statistics.fmean(np.mean(_each(rng.permutation(donors), _entropy)) for _ in range(5))
    shares = np.array(_each(donors, lambda labels: float((labels == donors[0]).mean())))
    lag = float(np.corrcoef(shares[:-1], shares[1:])[0, 1])
    common.report(
        "entropy",
        value=100 * max(0.0, 1 - ours / ideal),
        settings={"bits": round(ours, 4), "ideal_bits": round(ideal, 4), "lag1_correlation": round(lag, 4)},
    )


def _each(labels: np.ndarray, measure: Callable[[np.ndarray], float]) -> list[float]:
    """Something of each minibatch."""
    return [measure(part) for part in labels[: len(labels) // ENTROPY_CELLS * ENTROPY_CELLS].reshape(-1, ENTROPY_CELLS)]


def _entropy(labels: np.ndarray) -> float:
    """Shannon entropy in bits."""
    shares = np.bincount(labels) / len(labels)
    return float(-(shares[shares > 0] * np.log2(shares[shares > 0])).sum())


if __name__ == "__main__":
    main()
