"""Run pretraining as a stage: train, score on held-out cells, write the run card."""

from __future__ import annotations

from typing import Any

from cytoray import progress
from cytoray.tasks.pretraining.evaluation import judge_pretraining
from cytoray.training.config import PretrainConfig
from cytoray.training.pretraining import pretrain
from cytoray.training.report import save_card


def run_pretraining(config: PretrainConfig) -> dict[str, Any]:
    """Pretrain; returns the result of the run, its bundle, scores and card as JSON data."""
    with progress.stage("pretrain", total=config.train.num_steps, unit="steps") as advance:
        result, bundle = pretrain(config, advance=advance)
    scores = judge_pretraining(config, bundle) if config.validation is not None else {}
    card = save_card(config, result, bundle=bundle, scores=scores)
    return result.summary() | {
        "bundle": bundle.uri,
        "bundle_digest": bundle.digest,
        "held_out": {name: dict(row) for name, row in scores.items()},
        "card": card,
    }
