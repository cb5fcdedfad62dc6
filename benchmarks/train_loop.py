"""The training loop against the original's, and what it costs and gains: ``python benchmarks/train_loop.py``.

Real cells (synthetic ones where there are none), 1,200 tokens at most, the gene table of 60,697 rows, half of a cell's
genes unknown, two passes, fp32; ``--full`` takes the published 12 layers of 512 instead of 4 of 256. Ours is
``cytoray``'s pretraining as a user runs it: Ray Train, DeepSpeed ZeRO 1, 2 workers of 1 thread, figures from the run's
journal: wall time from step to step at rank 0. Each claim is measured in this one call, side after side:

- the original's loop re-created, with its data path, collator, padding, masks and attention dropout, on 2 threads; its
  batch of 32 cells is what our step has, in slices of 2, since it would not fit the memory whole;
- a plain torch loop in one process and thread around our model, same cells, beside 1 worker of 1 thread;
- 1 worker beside 2; and how long the tiny model of ``configs/model/tiny.yaml`` waits for data and for checkpoints.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import common
from benchmarks.plan_epoch import in_fresh_process
from benchmarks.train_loop_original import SLICE_CELLS, train_original
from benchmarks.train_loop_ours import JournalledSteps, train_ours
from benchmarks.train_loop_plain import train_plain
from benchmarks.train_loop_trial import MICRO_BATCH_TOKENS, RATIO, WARM_UP_STEPS, Trial, ingest_cells
from cytoray.config import load_config
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.training.config import ShapeConfig

MIDDLE = ShapeConfig(width=256, num_heads=8, feedforward_width=256, num_layers=4)
PUBLISHED = ShapeConfig()
SMALL = ShapeConfig(width=64, num_heads=8, feedforward_width=64, num_layers=2)
CELLS_PER_STEP = 8 if common.QUICK else 32
STEADY_STEPS, ORIGINAL_STEPS = (2, 1) if common.QUICK else (4, 2)
# A save is recorded with the step after it, so the run ends one step later; twice as often as a run saves by default.
TINY_STEPS, TINY_CHECKPOINT_EVERY = (21, 10) if common.QUICK else (101, 50)
PARTS = ("original", "scaling", "overhead", "tiny")


def main() -> None:
    """Print the JSON lines of the parts asked for."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the published 12 x 512 model: half an hour")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="measure these claims only")
    options = parser.parse_args()
    shape = SMALL if common.QUICK else PUBLISHED if options.full else MIDDLE
    with tempfile.TemporaryDirectory(prefix="cytoray-bench-") as folder:
        origin = ingest_cells(Path(folder))
        trial = Trial(folder, shape, CELLS_PER_STEP, WARM_UP_STEPS + STEADY_STEPS + 1)
        if set(options.only) - {"tiny"}:
            _compare(trial, origin, options.only)
        if "tiny" in options.only:
            _wait_shares(folder, origin)


def _compare(trial: Trial, origin: str, parts: list[str]) -> None:
    """The claims about speed: two workers, the original, one worker, and a plain loop."""
    settings = _settings(trial, origin)
    two = train_ours(trial.config("two-workers", num_workers=2)) if {"original", "scaling"} & set(parts) else None
    if two is not None and "original" in parts:
        _report_original(trial, two, settings)
    if not {"scaling", "overhead"} & set(parts):
        return
    one = train_ours(trial.config("one-worker", num_workers=1))
    if two is not None and "scaling" in parts:
        scaling = {**settings, "tokens_per_cell": two.tokens_per_cell}
        common.report("loop_scaling", value=two.cells_per_s, baseline=one.cells_per_s, settings=scaling)
    if "overhead" in parts:
        _report_overhead(trial, one, settings)


def _report_original(trial: Trial, ours: JournalledSteps, settings: dict[str, Any]) -> None:
    """Two workers of one thread beside the original's loop of two threads."""
    theirs = in_fresh_process(train_original, replace(trial, num_steps=ORIGINAL_STEPS, threads=2))
    rate = ORIGINAL_STEPS * trial.cells_per_step / sum(theirs["steps_s"])
    details = {"ours": "2 workers x 1 thread", "baseline": f"2 threads, slices of {SLICE_CELLS} cells"}
    details |= {"baseline_steps": ORIGINAL_STEPS, "tokens_per_cell": ours.tokens_per_cell}
    common.report("train_loop", value=ours.cells_per_s, baseline=rate, settings={**settings, **details})


def _report_overhead(trial: Trial, ours: JournalledSteps, settings: dict[str, Any]) -> None:
    """One worker beside the plain loop, step by step: both have the same cells at a step."""
    plain = in_fresh_process(train_plain, trial)["steps_s"][WARM_UP_STEPS:-1]
    shares = [100 * (mine / theirs - 1) for mine, theirs in zip(ours.steps_s, plain, strict=True)]
    details = {
        "cells_per_s": round(ours.cells_per_s, 3),
        "plain_cells_per_s": round(len(plain) * trial.cells_per_step / sum(plain), 3),
        "of_each_step": [round(share, 1) for share in shares],
    }
    common.report("loop_overhead", value=statistics.median(shares), settings={**settings, **details})


def _wait_shares(folder: str, origin: str) -> None:
    """What a tiny model, whose steps are short, spends on waiting for its data and for its checkpoints."""
    shape = load_config(ShapeConfig, common.ROOT / "configs" / "model" / "tiny.yaml")
    trial = Trial(folder, shape, CELLS_PER_STEP, TINY_STEPS)
    ours = train_ours(trial.config("tiny", num_workers=2, checkpoint_every=TINY_CHECKPOINT_EVERY))
    settings = {**_settings(trial, origin), "steps": TINY_STEPS, "checkpoint_every": TINY_CHECKPOINT_EVERY}
    settings |= {"workers": "2 x 1 thread", "cells_per_s": round(ours.cells_per_s, 1)}
    settings |= {"step_s": round(statistics.median(ours.steps_s), 4)}
    common.report("data_wait", value=ours.share("data_wait_share"), settings=settings)
    common.report("checkpoint_stall", value=ours.share("checkpoint_stall_share"), settings=settings)


def _settings(trial: Trial, origin: str) -> dict[str, Any]:
    """What every claim was measured with."""
    return {
        **trial.shape.model_dump(mode="json"),
        "gene_table_rows": GeneVocabulary.load_default().size,
        "cells": origin,
        "max_length": 1200,
        "unknown_share": RATIO,
        "cells_per_step": trial.cells_per_step,
        "micro_batch_tokens": MICRO_BATCH_TOKENS,
        "steady_steps": trial.num_steps - WARM_UP_STEPS - 1,
    }


if __name__ == "__main__":
    main()
