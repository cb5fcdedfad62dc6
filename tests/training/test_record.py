"""The record of a run: the same settings continue, others are refused, and new keys with defaults do not count."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from pydantic import ValidationError

from cytoray.errors import TrainingError
from cytoray.runs import find_bundle, run_folder
from cytoray.stages.resume import load_resumed_config
from cytoray.tasks import learning_stages
from cytoray.tasks.annotation.config import FinetuneConfig
from cytoray.tracking import TrackingConfig
from cytoray.training.checkpoint import latest_checkpoint
from cytoray.training.config import OptimizerConfig, PretrainConfig, TrainConfig, WorkersConfig
from cytoray.training.record import claim_run, load_run_record, record_changes


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


def test_newer_keys_have_their_defaults(config: PretrainConfig):
    first = claim_run(config, "digest")
    _rewrite(config, lambda kept: (kept["optimizer"].pop("epsilon"), kept.pop("validation")))
    assert claim_run(config, "digest").run_uuid == first.run_uuid


def test_a_missing_key_with_another_value_than_its_default_differs(config: PretrainConfig):
    claim_run(config, "digest")
    _rewrite(config, lambda kept: kept["optimizer"].pop("weight_decay"))
    with pytest.raises(TrainingError, match=r"has other settings: optimizer\.weight_decay\."):
        claim_run(config, "digest")


def test_a_removed_key_differs_and_may_be_allowed(config: PretrainConfig):
    first = claim_run(config, "digest")
    _rewrite(config, lambda kept: kept["optimizer"].update(momentum=0.5))
    with pytest.raises(TrainingError, match=r"has other settings: optimizer\.momentum\.") as refused:
        claim_run(config, "digest")
    assert refused.value.details["keys"] == ["optimizer.momentum"]
    allowed = config.model_copy(update={"allow_changes": ("optimizer.momentum",)})
    assert claim_run(allowed, "digest").run_uuid == first.run_uuid


def test_a_corpus_that_has_grown_is_refused(config: PretrainConfig):
    claim_run(config, "digest")
    with pytest.raises(TrainingError, match="manifest digest"):
        claim_run(config, "another")


@pytest.mark.parametrize("corpus", ["human@1", "human@12", "human"])
def test_a_version_of_a_corpus_may_be_named(config: PretrainConfig, corpus: str):
    plain = PretrainConfig.model_validate(config.model_dump() | {"corpus": "human"})
    first = claim_run(plain, "digest")
    named = PretrainConfig.model_validate(config.model_dump() | {"corpus": corpus})
    assert claim_run(named, "digest").run_uuid == first.run_uuid, "the same cells by another name"


@pytest.mark.parametrize("corpus", ["human@", "human@0", "human@x", "@1", "a@1@2", "../human"])
def test_what_is_no_version_is_refused(config: PretrainConfig, corpus: str):
    with pytest.raises(ValidationError, match="corpus"):
        PretrainConfig.model_validate(config.model_dump() | {"corpus": corpus})


def test_a_change_that_is_allowed_is_recorded(config: PretrainConfig):
    first = claim_run(config, "digest")
    longer = config.model_copy(update={"train": TrainConfig(num_steps=9), "allow_changes": ("train.num_steps",)})
    assert record_changes(longer, claim_run(longer, "digest")) == ["train.num_steps was changed from 3 to 9"]
    kept = load_run_record(config.store, config.run)
    assert (kept.run_uuid, kept.config["train"]["num_steps"]) == (first.run_uuid, 9)
    unasked = config.model_copy(update={"train": TrainConfig(num_steps=9)})
    assert claim_run(unasked, "digest").run_uuid == first.run_uuid
    with pytest.raises(TrainingError, match=r"--allow train\.num_steps"):
        claim_run(config, "digest")


def test_a_change_that_draws_other_dropout_masks_is_reported(config: PretrainConfig):
    record = claim_run(config, "digest")
    fewer = config.model_copy(update={"workers": WorkersConfig(num_workers=1, zero_stage=2)})
    assert claim_run(fewer, "digest").run_uuid == record.run_uuid
    (line,) = record_changes(fewer, record)
    assert line.startswith("workers.num_workers differs from the first start (2, now 1): dropout masks")
    still = fewer.model_copy(update={"model": fewer.model.model_copy(update={"dropout": 0.0})})
    assert [line for line in record_changes(still, record) if "dropout masks" in line] == []


@pytest.mark.parametrize("name", ["../other", "a/b", "", ".", "..", "a b", "name\n"])
def test_what_is_no_run_name_is_refused(name: str, tmp_path: Path):
    (tmp_path / "other").mkdir()
    with pytest.raises(TrainingError, match="not a run name"):
        run_folder(str(tmp_path), name)
    for find in (latest_checkpoint, find_bundle, load_run_record, load_resumed_config):
        with pytest.raises(TrainingError, match="not a run name"):
            find(str(tmp_path), name)


def test_a_finished_run_is_reported_without_importing_ray():
    script = "import sys, cytoray.stages.job, cytoray.stages.resume; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def _finetuning(config: PretrainConfig, initial: str) -> FinetuneConfig:
    tree = config.model_dump(exclude={"kind", "model", "objective"})
    return FinetuneConfig.model_validate(tree | {"initial": initial, "label_key": "kind"})


def test_a_run_keeps_to_the_content_of_its_initial_model(config: PretrainConfig):
    started = _finetuning(config, "models:/base@champion")
    first = claim_run(started, "digest", initial_digest="aaa")
    with pytest.raises(
        TrainingError, match=r"initial \(the run started from the model aaa, now it is bbb\)"
    ) as refused:
        claim_run(started, "digest", initial_digest="bbb")
    assert "allow_changes=[initial]" in str(refused.value.remedy)
    named = _finetuning(config, "models:/base/1")
    assert claim_run(named, "digest", initial_digest="aaa").run_uuid == first.run_uuid, "another name of the same model"
    with pytest.raises(TrainingError, match="has other settings: initial"):
        claim_run(named, "digest")
    allowed = started.model_copy(update={"allow_changes": ("initial",)})
    record = claim_run(allowed, "digest", initial_digest="bbb")
    assert record_changes(allowed, record, initial_digest="bbb") == ["the initial model was changed from aaa to bbb"]
    assert claim_run(started, "digest", initial_digest="bbb").initial_digest == "bbb"


def test_a_run_keeps_to_the_content_of_its_label_tree(config: PretrainConfig, tmp_path: Path):
    table = tmp_path / "tree.csv"
    table.write_text("label,parent\nCD4 T,T\n")
    started = _finetuning(config, "run:base").model_copy(update={"label_tree": str(table)})
    first = claim_run(started, "digest")
    (tmp_path / "copy.csv").write_bytes(table.read_bytes())
    moved = started.model_copy(update={"label_tree": str(tmp_path / "copy.csv")})
    assert claim_run(moved, "digest").run_uuid == first.run_uuid, "the same table elsewhere"
    table.write_text("label,parent\nCD4 T,T\nCD8 T,T\n")
    with pytest.raises(TrainingError, match=r"has other settings: label_tree \(the content of the file\)") as refused:
        claim_run(started, "digest")
    assert "allow_changes: [label_tree]" in str(refused.value.remedy)
    allowed = started.model_copy(update={"allow_changes": ("label_tree",)})
    changes = record_changes(allowed, claim_run(allowed, "digest"))
    assert changes == [f"the content of label_tree ({table}) was changed"]
    assert claim_run(started, "digest").run_uuid == first.run_uuid
    with pytest.raises(TrainingError, match=r"has other settings: label_tree\."):
        claim_run(moved, "digest")


def test_a_finished_run_does_not_need_the_files_that_it_was_made_with(config: PretrainConfig, tmp_path: Path):
    (tmp_path / "tree.csv").write_text("label,parent\nCD4 T,T\n")
    started = _finetuning(config, "run:base").model_copy(update={"label_tree": str(tmp_path / "tree.csv")})
    first = claim_run(started, "digest")
    (tmp_path / "tree.csv").unlink()
    assert claim_run(started, "digest").run_uuid == first.run_uuid


def test_every_key_of_a_run_that_names_a_file_is_a_place_or_an_input():
    for stage in learning_stages().values():
        config = stage.config.load()
        hints = get_type_hints(config, include_extras=True)
        named = {key for key, hint in hints.items() if "_absolute" in repr(hint)}  # cytoray.config.Location
        assert "store" in named
        assert named <= config.places | config.inputs


def test_a_run_recorded_with_initial_run_is_the_same_run(config: PretrainConfig):
    config = _finetuning(config, "run:base")
    first = claim_run(config, "digest")

    def as_before(kept: dict[str, Any]) -> None:
        del kept["initial"], kept["cache_folder"]
        kept["initial_run"] = "base"

    _rewrite(config, as_before)
    assert claim_run(config, "digest", initial_digest="aaa").run_uuid == first.run_uuid
