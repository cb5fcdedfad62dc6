"""Measure the gain from pretraining with few labels: ``python benchmarks/few_labels.py --store STORE --run base-cpu``.

Takes one cell in ten of each type of a labelled h5ad file, fine-tunes once from the pretrained run and once from
random weights of the same shape, and annotates the other nine; so for each seed, which picks cells, order and initial
weights. Logistic regression learns from the same cells. one JSON line per seed, and one for the mean difference.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import anndata
import numpy as np

from cytoray.cluster import connected, prepare_auth

prepare_auth()

from cytoray import storage
from cytoray.corpus.config import IngestConfig, SourceConfig
from cytoray.corpus.ingest import ingest
from cytoray.corpus.reading import read_labelled_cells
from cytoray.evaluation.classification import score_classification
from cytoray.model.bundle import load_bundle
from cytoray.model.predictor import CellPredictor
from cytoray.stages.config import load_stage_config
from cytoray.tasks.annotation.config import FinetuneConfig
from cytoray.tasks.annotation.evaluation import Baseline
from cytoray.tasks.annotation.learning import prepare
from cytoray.tasks.learning import learn
from cytoray.tracking import TrackingConfig
from cytoray.training.config import PretrainConfig
from cytoray.training.pretraining import pretrain

SHARE = 0.1


def main() -> None:
    """Compare from every seed."""
    options = _options()
    logging.basicConfig(level=logging.WARNING)
    found = []
    with tempfile.TemporaryDirectory(prefix="cytoray-bench-") as scratch, connected(num_cpus=2):
        for seed in range(options.seeds):
            found.append(_compare(options, seed, Path(scratch)))
            print(json.dumps({"seed": seed, **found[-1]}), flush=True)
    gains = [scores["pretrained"] - scores["random"] for scores in found]
    means = {name: round(float(np.mean([scores[name] for scores in found])), 4) for name in found[0]}
    print(json.dumps({"benchmark": "few_labels", **means, "gain": round(float(np.mean(gains)), 4), "goal": "> 0"}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True, help="where the pretrained run is; the benchmark's runs go there too")
    parser.add_argument("--run", default="base-cpu", help="the pretrained run")
    parser.add_argument("--config", default=str(ROOT / "configs/pretrain/base-cpu.yaml"), help="what it was made with")
    parser.add_argument("--data", default=str(ROOT.parent / "shared/data/pbmc3k.h5ad"), help="labelled cells")
    parser.add_argument("--label-key", default="cell_type")
    parser.add_argument("--ensembl-column", default="ensembl_id")
    parser.add_argument("--ignore", nargs="*", default=["unassigned"], help="labels that mean a missing label")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    return parser.parse_args()


def _compare(options: argparse.Namespace, seed: int, scratch: Path) -> dict[str, float]:
    """Macro-F1 on the cells whose labels were not shown, by what was fine-tuned."""
    few, rest = _split(options, seed, scratch)
    corpus = f"few-labels-{seed}"
    ingest(IngestConfig(store=options.store, corpus=corpus, sources=(few,)))
    start = _random_run(options, seed, scratch)
    answers = {}
    for name, initial in (("pretrained", options.run), ("random", start)):
        config = _finetune_config(options, seed, f"{corpus}-{name}", initial, scratch)
        _, record = learn(prepare(config))
        folder = scratch / config.run
        storage.download_folder(record.uri, folder)
        bundle = load_bundle(folder)
        held_out = read_labelled_cells(rest, options.label_key, vocabulary=bundle.vocabulary)
        found = CellPredictor(bundle).predict(held_out.cells)
        assert found.probabilities is not None, "a bundle with labels gives probabilities"
        answers[name] = [found.labels[best] for best in found.probabilities.argmax(axis=1)]
    answers |= Baseline(options.store, corpus, options.label_key).predict(held_out.cells)
    truth = [str(label) for label in held_out.labels]
    labels = sorted(set(truth))
    return {name: score_classification(truth, answer, labels=labels).macro_f1 for name, answer in answers.items()}


def _split(options: argparse.Namespace, seed: int, scratch: Path) -> tuple[SourceConfig, SourceConfig]:
    """A file with a tenth of each type, one cell at least, and one with the rest."""
    adata = anndata.read_h5ad(options.data)
    adata = adata[~adata.obs[options.label_key].isin(options.ignore)]
    labels = adata.obs[options.label_key].astype(str).to_numpy()
    shown = np.zeros(len(labels), dtype=bool)
    rng = np.random.default_rng(seed)
    for label in sorted(set(labels)):
        of_type = rng.permutation(np.flatnonzero(labels == label))
        shown[of_type[: max(1, round(SHARE * len(of_type)))]] = True
    sources = []
    for side, rows in (("few", shown), ("rest", ~shown)):
        path = scratch / f"{side}-{seed}.h5ad"
        adata[rows].copy().write_h5ad(path)
        sources.append(SourceConfig(uri=str(path), ensembl_column=options.ensembl_column))
    return sources[0], sources[1]


def _random_run(options: argparse.Namespace, seed: int, scratch: Path) -> str:
    """A run of the same shape that has not learnt: one step so small that its weights stay as they were drawn."""
    run = f"few-labels-{seed}-start"
    changes = [f"store={options.store}", f"run={run}", f"train.seed={seed}", "train.num_steps=1", "validation=null"]
    config = load_stage_config(options.config, overrides=changes)
    assert isinstance(config, PretrainConfig), "this is not a pretraining configuration"
    optimizer = config.optimizer.model_copy(update={"learning_rate": 1e-12, "warmup_steps": 0})
    pretrain(config.model_copy(update={"optimizer": optimizer, "tracking": _tracking(scratch)}))
    return run


def _finetune_config(options: argparse.Namespace, seed: int, run: str, initial: str, scratch: Path) -> FinetuneConfig:
    base = load_stage_config(options.config)
    assert isinstance(base, PretrainConfig), "this is not a pretraining configuration"
    values: dict[str, Any] = {
        "store": options.store, "run": run, "initial_run": initial, "corpus": f"few-labels-{seed}",
        "label_key": options.label_key, "tokenizer": base.tokenizer.model_dump(),
        "train": {"num_steps": options.steps, "cells_per_step": 32, "checkpoint_every": options.steps, "seed": seed},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 10}, "tracking": _tracking(scratch).model_dump(),
    }  # fmt: skip
    return FinetuneConfig.model_validate_json(json.dumps(values))


def _tracking(scratch: Path) -> TrackingConfig:
    """Nowhere but a journal: the figures are printed."""
    return TrackingConfig(uri="http://127.0.0.1:9", journal_folder=str(scratch / "journal"))


if __name__ == "__main__":
    main()
