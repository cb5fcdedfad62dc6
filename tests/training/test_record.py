"""The record of a run: the same settings go on, others are refused, and a newer cytoray's defaults are no others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cytoray.errors import TrainingError
from cytoray.tracking import TrackingConfig
from cytoray.training.config import OptimizerConfig, PretrainConfig, TrainConfig
from cytoray.training.record import claim_run


@pytest.fixture
def config(tmp_path: Path) -> PretrainConfig:
    return PretrainConfig(
        store=str(tmp_path),
        run="run",
        corpus="cells",
        train=TrainConfig(num_steps=3),
        optimizer=OptimizerConfig(weight_decay=0.1),
        tracking=TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db", journal_folder=str(tmp_path)),
    )


def _rewrite(config: PretrainConfig, change: Any) -> None:
    """As if another version of cytoray had recorded the run."""
    file = Path(config.store) / "runs" / config.run / "run.json"
    record = json.loads(file.read_text())
    change(record["config"])
    file.write_text(json.dumps(record))


def test_keys_that_came_to_be_since_are_their_defaults(config: PretrainConfig):
    first = claim_run(config, "digest")
    _rewrite(config, lambda kept: (kept["optimizer"].pop("epsilon"), kept.pop("validation")))
    assert claim_run(config, "digest").run_uuid == first.run_uuid


def test_a_missing_key_whose_default_is_not_meant_differs(config: PretrainConfig):
    claim_run(config, "digest")
    _rewrite(config, lambda kept: kept["optimizer"].pop("weight_decay"))
    with pytest.raises(TrainingError, match=r"other settings: optimizer\.weight_decay\."):
        claim_run(config, "digest")


def test_a_key_that_is_no_more_differs_and_may_be_allowed(config: PretrainConfig):
    first = claim_run(config, "digest")
    _rewrite(config, lambda kept: kept["optimizer"].update(momentum=0.5))
    with pytest.raises(TrainingError, match=r"other settings: optimizer\.momentum\.") as refused:
        claim_run(config, "digest")
    assert refused.value.details["keys"] == ["optimizer.momentum"]
    allowed = config.model_copy(update={"allow_changes": ("optimizer.momentum",)})
    assert claim_run(allowed, "digest").run_uuid == first.run_uuid


def test_a_corpus_that_has_grown_is_refused(config: PretrainConfig):
    claim_run(config, "digest")
    with pytest.raises(TrainingError, match="manifest digest"):
        claim_run(config, "another")
