"""The goals of the data engine, in the order of its table: what is measured, against what, and how good is good."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """One row of the table."""

    what: str
    unit: str
    baseline: str = "-"
    at_least: float | None = None
    at_most: float | None = None
    of_ratio: bool = False  # whether the goal is about value / baseline

    @property
    def text(self) -> str:
        """The goal in words."""
        unit = "x" if self.of_ratio else f" {self.unit}"
        if self.at_least is not None:
            return f"≥ {self.at_least:g}{unit}"
        return f"≤ {self.at_most:g}{unit}" if self.at_most is not None else "-"

    def is_met(self, judged: float) -> bool | None:
        """Return whether a figure meets the goal; None without a goal."""
        if self.at_least is not None:
            return judged >= self.at_least
        return judged <= self.at_most if self.at_most is not None else None


_HF = "best of scGPT's HF-datasets path with 0 / 2 workers"
GOALS: dict[str, Goal] = {
    "binning": Goal("exact binning, per core", "cells/s", "scGPT's per-row binning", at_least=15, of_ratio=True),
    "collate_compact": Goal(
        "fused sample + bin + pad + mask, compact output, per core",
        "cells/s",
        "scGPT's DataCollator",
        at_least=40,
        of_ratio=True,
    ),
    "collate_wide": Goal(
        "the same with int64 / float32 output", "cells/s", "scGPT's DataCollator", at_least=20, of_ratio=True
    ),
    "stream_scgpt": Goal("model-ready minibatches, in process, 2 cores", "cells/s", _HF, at_least=30, of_ratio=True),
    "ray_scgpt": Goal(
        "the same through Ray Data to one consumer, steady state", "cells/s", _HF, at_least=20, of_ratio=True
    ),
    "ray_direct": Goal(
        "through Ray Data, share of the direct reader", "cells/s", "our direct reader", at_least=0.6, of_ratio=True
    ),
    "stream_annbatch": Goal(
        "model-ready minibatches, in process",
        "cells/s",
        "annbatch 0.3.1's bare rows, best settings",
        at_least=1.2,
        of_ratio=True,
    ),
    "entropy": Goal("minibatch label entropy, sorted by donor, below the ideal draw", "%", "ideal draw", at_most=0.5),
    "latency": Goal(
        "p99.9 minibatch latency, consumer at half the peak rate", "ms", "own median", at_most=10, of_ratio=True
    ),
    "first_batch": Goal("first minibatch, 1,000 shards", "s", at_most=3),
    "restart": Goal("restart at step N, 1,000 shards", "s", at_most=1),
    "ingest_annbatch": Goal(
        "ingest: h5ad to a committed, globally shuffled corpus",
        "cells/s",
        "annbatch add_adatas, same files",
        at_least=5,
        of_ratio=True,
    ),
    "ingest_memory": Goal(
        "ingest: peak memory above Ray's base", "MiB", "annbatch add_adatas", at_most=0.15, of_ratio=True
    ),
    "ingest_rss": Goal("memory while ingesting a 5 GB h5ad, 2 workers, above Ray's base", "GiB", at_most=2),
    "store_bytes": Goal("stored bytes per cell (1,500 genes)", "B", at_most=1650),
    "store_annbatch": Goal("stored bytes", "B/cell", "annbatch's zarr", at_most=0.42, of_ratio=True),
    "store_h5ad": Goal("stored bytes", "B/cell", "gzip h5ad", at_most=0.42, of_ratio=True),
    "plan_time": Goal("planning an epoch over 33 M cells", "s", at_most=10),
    "plan_memory": Goal("planning an epoch over 33 M cells, memory", "GiB", at_most=1),
    "resume_state": Goal("resume state", "B", at_most=1000),
    "s3_stream": Goal("stream from S3 (loopback server)", "cells/s", "from local disk", at_least=0.7, of_ratio=True),
    "s3_ingest": Goal("ingest from S3 (loopback server)", "cells/s", "from local disk", at_least=0.7, of_ratio=True),
    "cells_per_core": Goal("model-ready minibatches per core", "cells/s"),
    "cores_for_8_gpus": Goal("PROJECTION: cores to feed 8 H100 at 4,000 cells/s each", "cores"),
    "bytes_33m": Goal("PROJECTION: corpus of 33 M cells", "GB"),
    "hours_33m": Goal("PROJECTION: ingest of 33 M cells on this machine", "h"),
}

_ORIGINAL = "the original's path re-created in torch"
_LOOP = "the original's loop re-created, its data path included, 2 threads"
# Of the model: each script prints its own lines, they are not part of `make bench-data`.
GOALS |= {
    "embed": Goal("embed real cells, 12 x 512", "cells/s", _ORIGINAL, at_least=4, of_ratio=True),
    "embed_masked": Goal(
        "embed real cells, 12 x 512", "cells/s", f"{_ORIGINAL}, its fused layers off", at_least=4, of_ratio=True
    ),
    "tokenise": Goal("counts to packed tokens, per core", "cells/s", _ORIGINAL, at_least=25, of_ratio=True),
    "tokenise_by_content": Goal("the same, keyed by content", "cells/s", _ORIGINAL, at_least=25, of_ratio=True),
    "tokenise_padded": Goal("counts to padded tokens, per core", "cells/s", _ORIGINAL, at_least=25, of_ratio=True),
    "train_step_full": Goal("training step, 1,200 tokens", "cells/s", _ORIGINAL, at_least=2.5, of_ratio=True),
    "train_step_real": Goal("training step, real lengths", "cells/s", _ORIGINAL, at_least=4, of_ratio=True),
    "order_time": Goal("planning an epoch over 33 M cells for 1, 2 and 8 workers", "s", at_most=10),
    "order_memory": Goal("peak memory of the process that does, imports included", "GiB", at_most=1),
    "train_loop": Goal("training loop: Ray Train, DeepSpeed, 2 workers", "cells/s", _LOOP, at_least=4, of_ratio=True),
    "loop_overhead": Goal(
        "Ray and DeepSpeed over a plain loop, 1 worker", "%", "plain torch loop, same cells and model", at_most=5
    ),
    "loop_scaling": Goal("2 workers of 1 thread", "cells/s", "1 worker of 1 thread", at_least=1.8, of_ratio=True),
    "step_traffic": Goal("2 workers of 1 thread, tiny model", "steps/s", "1 worker", at_least=1.8, of_ratio=True),
    "data_wait": Goal("share of the loop that waits for data, tiny model", "%", at_most=1),
    "checkpoint_stall": Goal("share of the loop that checkpoints stall, tiny model", "%", at_most=1),
    "plan_error": Goal("planned step time against a run's, 2 workers x 1 thread", "%", at_most=20),
    "embed_memory": Goal("embed 100,000 cells of a backed h5ad: memory grown by", "GiB", at_most=1),
    "invariance": Goal("largest change of an embedding", "", at_most=1e-5),
}

_OFFLINE = "the better of a sorted loop and the batcher in process"
_CELLS = "cells that wait, lognormal lengths, padded model"
# Of the service: see ``benchmarks/batcher.py`` and ``benchmarks/serve.py``.
GOALS |= {
    "batcher_sorted": Goal(_CELLS, "cells/s", "a loop over all cells sorted by length", at_least=0.98, of_ratio=True),
    "batcher_fifo": Goal(_CELLS, "cells/s", "batches of 32 in the order of arrival", at_least=1.5, of_ratio=True),
    "batcher_serve_batch": Goal(_CELLS, "cells/s", "ray.serve.batch with batch_size_fn", at_least=1.3, of_ratio=True),
    "batcher_scheduling": Goal("scheduling with 10,000 one-cell requests in the queue", "us/cell", at_most=5),
    "serve_ratio": Goal("cells served over HTTP", "cells/s", _OFFLINE, of_ratio=True),
    "serve_ratio_64": Goal(f"lowest ratio to {_OFFLINE}: 64 cells or more, c >= 4, 1 ms/cell", "", at_least=0.95),
    "serve_ratio_16": Goal(f"lowest ratio to {_OFFLINE}: 16 cells, c >= 4, 1 ms/cell", "", at_least=0.9),
    "serve_ratio_1": Goal(f"ratio to {_OFFLINE}: 1 cell, c = 64, 10 ms/cell or more", "", at_least=0.8),
    "serve_open": Goal("cells served to requests at random times", "cells/s", "cells sent"),
    "serve_requests": Goal("requests of 1 cell that costs about nothing, c = 64", "requests/s", at_least=300),
    "serve_idle_p50": Goal("added to 1 cell at idle, p50", "ms", at_most=5),
    "serve_idle_p99": Goal("added to 1 cell at idle, p99", "ms", at_most=15),
    "serve_beside_bulk": Goal("1 cell beside requests of 4,096, p99: 2 batches of 0.2 s + 15 ms", "ms", at_most=415),
    "serve_overload": Goal("cells served at 5 times the load", "cells/s", "the peak", at_least=0.95, of_ratio=True),
    "serve_refusals": Goal("time to refuse a request at 5 times the load, p99", "ms", at_most=50),
}
