"""Compare pretraining options by what frozen and fine-tuned models are good for: ``python benchmarks/ablation.py``.

Pretrains every variant from every seed with the same token budget, on the corpus of configs/pretrain/base-cpu.yaml
without two donors, and probes each model on cells that it was not trained on. One JSON line per variant and seed, which
is also kept in ``--results``: a second call continues, and prints the comparison at the end. A variant passes if two
probes gain more than two standard deviations of the seeds over ``base`` and none loses more than one. ``base`` is the
published way: whole bins, no token for the depth, nothing but hidden genes to predict.

The corpus must have been ingested: ``cytoray ingest configs/corpus/human-visible.yaml``. The half of the integration
probe that is pbmc3k was trained on, without its labels, by all variants alike.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import numpy as np

from benchmarks.ablation_probes import PROBES, Data, probe
from cytoray import storage
from cytoray.cluster import connected, prepare_auth

prepare_auth()

from cytoray.model.bundle import load_bundle
from cytoray.stages.config import load_stage_config
from cytoray.tasks.pretraining.evaluation import judge_pretraining
from cytoray.tracking import TrackingConfig
from cytoray.training.config import PretrainConfig
from cytoray.training.pretraining import pretrain

WHOLE, SOFT = "objective.whole_cell={}", ("tokenizer.values=soft", "tokenizer.depth_token=100000.0")
HARD = ("tokenizer.values=hard", "tokenizer.depth_token=null")
VARIANTS: dict[str, tuple[str, ...]] = {
    "base": HARD,
    "soft": SOFT,
    "whole": (*HARD, WHOLE),
    "whole_alone": (*HARD, WHOLE, "objective.whole_cell.masked_weight=0.0"),
    "whole_soft": (WHOLE, *SOFT),
    "whole_views": (*HARD, WHOLE, "objective.whole_cell.contrast={}"),
    "genes": (*HARD, "gene_table={initial: coexpression, freeze_unseen: true}"),
}
HELD_OUT = "_source.str.endswith('pbmc_donor_a.h5ad') or _source.str.endswith('pbmc10k_cite.h5ad')"
DONOR_A = "_source.str.endswith('pbmc_donor_a.h5ad')"
GAIN, LOSS = 2.0, 1.0  # in standard deviations of the seeds


def main() -> None:
    """Train and probe what is missing, then compare."""
    options = _options()
    logging.basicConfig(level=logging.WARNING)
    results = Path(options.results)
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done = {(row["variant"], row["seed"], row["steps"]) for row in rows}
    data = Data(Path(options.data), options.max_cells)
    with tempfile.TemporaryDirectory(prefix="cytoray-bench-") as scratch, connected(num_cpus=2):
        for seed in range(options.seeds):
            for variant in options.variants:
                if (variant, seed, options.steps) in done:
                    continue
                row = _measure(options, variant, seed, data, Path(scratch))
                rows.append(row)
                with results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)
    for line in compare([row for row in rows if row["steps"] == options.steps]):
        print(json.dumps(line), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", default=str(ROOT / ".cytoray/store"), help="where the corpus is, and the runs go")
    parser.add_argument(
        "--config", default=str(ROOT / "configs/pretrain/base-cpu.yaml"), help="what all variants share"
    )
    parser.add_argument("--data", default=str(ROOT.parent / "shared/data"), help="folder of the probes' files")
    parser.add_argument("--results", default="ablation.jsonl", help="JSON lines so far; what is there is not repeated")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5000, help="optimiser steps of every run: the token budget")
    parser.add_argument("--max-cells", type=int, default=4000, help="maximum number of cells per probe")
    parser.add_argument(
        "--fine-tune-epochs", type=int, default=5, help="of the annotation probe; 0: frozen models only"
    )
    parser.add_argument("--set", nargs="*", default=[], help="further changes of the configuration, KEY=VALUE")
    return parser.parse_args()


def _measure(options: argparse.Namespace, variant: str, seed: int, data: Data, scratch: Path) -> dict[str, Any]:
    """Pretrain one variant from one seed and return its figures."""
    run = f"ablation-{variant}-{options.steps}-{seed}"
    changes = [f"store={options.store}", f"run={run}", f"train.num_steps={options.steps}", f"train.seed={seed}"]
    changes += [f"tokenizer.seed={seed}", f"validation.select={HELD_OUT}", f"train.checkpoint_every={options.steps}"]
    config = load_stage_config(options.config, overrides=[*changes, *VARIANTS[variant], *options.set])
    assert isinstance(config, PretrainConfig), "this is not a pretraining configuration"
    tracking = TrackingConfig(uri="http://127.0.0.1:9", journal_folder=str(scratch / "journal"))
    config = config.model_copy(update={"tracking": tracking})
    start = time.monotonic()
    result, record = pretrain(config)
    trained = time.monotonic()
    folder = scratch / run
    storage.download_folder(record.uri, folder)
    figures = probe(load_bundle(folder), data, seed=seed, epochs=options.fine_tune_epochs)
    assert config.validation is not None, "the base configuration holds cells out"
    own = config.validation.model_copy(update={"select": DONOR_A})
    held_out = judge_pretraining(config.model_copy(update={"validation": own}), record)
    figures["masked_bins"] = held_out["cytoray"]["mse"]
    return {
        "variant": variant,
        "seed": seed,
        "steps": result.checkpoint.state.step,
        **{name: round(float(value), 4) for name, value in figures.items()},
        "baseline_masked_bins": round(held_out["kNN in PCA space"]["mse"], 4),
        "train_s": round(trained - start, 1),
        "probe_s": round(time.monotonic() - trained, 1),
    }


def compare(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each variant the gain of each probe over ``base``, in standard deviations of the seeds."""
    by_variant = {name: [row for row in rows if row["variant"] == name] for name in VARIANTS}
    base, lines = by_variant["base"], []
    for name, own in by_variant.items():
        if name == "base" or not own or not base:
            continue
        line: dict[str, Any] = {"variant": name, "seeds": len(own)}
        gains = {}
        for key in (key for key in PROBES if key in own[0] and key in base[0]):
            mine, other = (np.array([row[key] for row in side]) for side in (own, base))
            line[key] = round(float(mine.mean() - other.mean()), 4)
            if min(len(mine), len(other)) > 1:
                spread = float(np.sqrt((mine.var(ddof=1) + other.var(ddof=1)) / 2))
                gains[key] = line[key] / max(spread, 1e-9)
        line["in_seed_sd"] = {key: round(gain, 2) for key, gain in gains.items()}
        won = sum(gain > GAIN for gain in gains.values())
        line["passes"] = bool(won >= 2 and all(gain >= -LOSS for gain in gains.values())) if gains else None
        lines.append(line)
    return lines


if __name__ == "__main__":
    main()
