"""Runs through Ray Train: interrupted ones equal uninterrupted ones, finished ones are found, changed ones refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from ray.train import ControllerError, WorkerGroupError

from cytoray import failpoints, storage
from cytoray.cluster import user_error
from cytoray.corpus.ledger import load_ledger, prove_epochs
from cytoray.corpus.stream import CorpusStream, open_stream
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.errors import ConfigError, TrainingError
from cytoray.model.bundle import load_bundle
from cytoray.model.losses import SummedLoss
from cytoray.model.transformer import ScGPT
from cytoray.runs import run_folder
from cytoray.stages.resume import load_resumed_config, summarise_finished
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.tracking import TrackingConfig, sync
from cytoray.training import lease
from cytoray.training.checkpoint import (
    TrainerState,
    best_checkpoint,
    checkpoints_uri,
    latest_checkpoint,
    save_checkpoint,
    sweep,
)
from cytoray.training.config import PretrainConfig
from cytoray.training.loop import ledger_uri
from cytoray.training.pretraining import pretrain
from cytoray.training.report import save_card
from cytoray.training.trainer import TrainingSpec, _failed, run_training

pytestmark = pytest.mark.timeout(400)
through_ray = pytest.mark.usefixtures("ray_cluster")


@through_ray
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(
    pretrain_config: Callable[..., PretrainConfig],
    stream: CorpusStream,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    steps: list[float] = []
    unbroken, bundle = pretrain(pretrain_config("unbroken"), advance=lambda amount, note="": steps.append(amount))
    assert sum(steps) == 6
    assert [point["step"] for point in unbroken.history] == [1, 2, 3, 4, 5, 6]
    assert unbroken.history[-1]["loss"] < unbroken.history[0]["loss"]

    monkeypatch.setenv(failpoints.VARIABLE, "train.after_step=kill@5")
    config = pretrain_config("broken", train={"ledger": True})
    broken, _ = pretrain(config)
    monkeypatch.delenv(failpoints.VARIABLE)

    assert broken.checkpoint.state.step == 6
    for name, expected in unbroken.checkpoint.load_weights().items():
        assert torch.equal(broken.checkpoint.load_weights()[name], expected), name
    assert [_losses(point) for point in broken.history] == [_losses(point) for point in unbroken.history]
    entries = load_ledger(ledger_uri(config))  # two ranks, one epoch, killed between two checkpoints
    assert np.bincount(entries.steps).tolist() == [16] * 6
    assert [proof.exactly_once for proof in prove_epochs(entries, stream)] == [True]

    again, same_bundle = pretrain(pretrain_config("unbroken"))
    assert again.skipped
    assert same_bundle == bundle
    storage.download_folder(bundle.uri, tmp_path / "bundle")
    loaded = load_bundle(tmp_path / "bundle")
    assert loaded.digest == bundle.digest
    assert loaded.lineage["corpus_manifest_digest"] == unbroken.manifest_digest
    with pytest.raises(TrainingError, match=r"optimizer\.learning_rate"):
        pretrain(_faster(pretrain_config("unbroken")))


def _losses(point: dict[str, float]) -> dict[str, float]:
    """The figures that do not depend on the clock."""
    return {name: point[name] for name in ("step", "loss", "masked", "cell_conditioned", "second_pass")}


def _faster(config: PretrainConfig) -> PretrainConfig:
    return config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"learning_rate": 0.5})})


class _Exploding:
    """An objective whose loss is not a number from the second step on."""

    def __init__(self, inner: object) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> object:
        if name.startswith("__") or name == "_inner":
            raise AttributeError(name)
        return getattr(self._inner, name)

    def losses(self, model: object, prepared: object, step: int) -> dict[str, SummedLoss]:
        losses = self._inner.losses(model, prepared, step)
        factor = float("nan") if step else 1.0
        return {name: SummedLoss(loss.total * factor, loss.count) for name, loss in losses.items()}


@through_ray
@pytest.mark.slow  # test_checkpoint_engine.py has the skipped updates without Ray
def test_gradients_that_are_not_finite_are_left_out_and_then_end_the_run_with_the_cells_named(
    pretrain_config: Callable[..., PretrainConfig], stream: CorpusStream
) -> None:
    from cytoray.training.objectives import GenerativeObjective

    train = {"max_skipped_steps": 2, "ema_decay": 0.5}
    config = pretrain_config("exploding", train=train, workers={"num_workers": 1})
    vocabulary = GeneVocabulary.load_default()
    model = config.model.build(vocabulary_size=vocabulary.size, num_labels=0)
    objective = _Exploding(GenerativeObjective(config.objective, vocabulary.pad_id))
    with pytest.raises(Exception, match="not finite") as caught:
        run_training(TrainingSpec(config, stream, model, vocabulary.pad_id, objective))
    error = user_error(caught.value)
    assert isinstance(error, TrainingError)
    assert "at step 3, the last of 3 in a row" in error.problem  # steps 1 and 2 were skipped
    assert len(error.details["cells"]) == 16
    saved = latest_checkpoint(config.store, config.run)
    assert saved is not None
    assert saved.state.skipped == (1, 2)
    assert saved.state.num_updates == 1
    weights, averages = saved.load_weights(), saved.load_ema()
    assert all(tensor.isfinite().all() for tensor in weights.values())
    torch.manual_seed(config.train.seed)
    initial = ScGPT(model, pad_id=vocabulary.pad_id).state_dict()
    assert averages is not None
    for name, average in averages.items():  # of the one step that was applied
        torch.testing.assert_close(average, (initial[name] + weights[name]) / 2)


@pytest.mark.parametrize(("layers", "problem"), [(3, "this model has 2 layers"), (1, "starts from random weights")])
def test_layers_that_cannot_be_frozen_are_refused_before_the_run_is_claimed(
    layers: int, problem: str, pretrain_config: Callable[..., PretrainConfig], stream: CorpusStream
) -> None:
    from cytoray.training.objectives import GenerativeObjective

    config = pretrain_config("frozen", optimizer={"freeze_layers": layers})
    vocabulary = GeneVocabulary.load_default()
    model = config.model.build(vocabulary_size=vocabulary.size, num_labels=0)
    objective = GenerativeObjective(config.objective, vocabulary.pad_id)
    with pytest.raises(ConfigError, match=problem):
        run_training(TrainingSpec(config, stream, model, vocabulary.pad_id, objective))
    assert not storage.exists(storage.join(config.store, "runs", "frozen", "RUN.json"))
    assert not (Path(config.store) / "runs" / "frozen").exists()


def test_workers_must_be_able_to_share_the_minibatches_evenly(pretrain_config: Callable[..., PretrainConfig]) -> None:
    from mixed_objective import MixedObjective  # here: workers load this file, and not the helpers

    config = pretrain_config("uneven", workers={"num_workers": (1, 3)})
    options = StreamOptions(config.tokenizer, 42, 16, "kind", cells_per_minibatch=8)
    stream, pad_id = open_stream(config.store, "cells", options), GeneVocabulary.load_default().pad_id
    model = config.model.build(vocabulary_size=GeneVocabulary.load_default().size, num_labels=3)
    with pytest.raises(ConfigError, match=r"cells_per_step \(16\) is not a multiple of 8 .* times 3 workers") as caught:
        run_training(TrainingSpec(config, stream, model, pad_id, MixedObjective(pad_id)))
    assert "a multiple of 24" in caught.value.remedy
    assert not Path(run_folder(config.store, config.run)).exists(), "nothing was begun"


class _Stumbling:
    """An objective that raises a TrainingError on the last rank: at step 4, once if ``marker`` names a file."""

    def __init__(self, inner: object, marker: Path | None) -> None:
        self._inner, self._marker = inner, marker

    def __getattr__(self, name: str) -> object:
        if name.startswith("__") or name in ("_inner", "_marker"):
            raise AttributeError(name)
        return getattr(self._inner, name)

    def losses(self, model: object, prepared: object, step: int) -> dict[str, SummedLoss]:
        import torch.distributed as dist

        is_due = self._marker is None or not self._marker.exists()
        if step == 4 and dist.get_rank() == dist.get_world_size() - 1 and is_due:
            if self._marker is not None:
                self._marker.touch()
            raise TrainingError("This rank alone has stumbled.", remedy="Try again.")
        return self._inner.losses(model, prepared, step)


def _stumbling(config: PretrainConfig, stream: CorpusStream, marker: Path | None) -> TrainingSpec:
    from cytoray.training.objectives import GenerativeObjective

    vocabulary = GeneVocabulary.load_default()
    model = config.model.build(vocabulary_size=vocabulary.size, num_labels=0)
    model = model.model_copy(update={"generative": True})
    objective = _Stumbling(GenerativeObjective(config.objective, vocabulary.pad_id), marker)
    return TrainingSpec(config, stream, model, vocabulary.pad_id, objective)


@through_ray
@pytest.mark.slow  # a minute or more: workers start several times
def test_an_error_of_one_rank_restarts_the_workers_and_leaves_no_trace(
    pretrain_config: Callable[..., PretrainConfig], stream: CorpusStream, tmp_path: Path
) -> None:
    result = run_training(_stumbling(pretrain_config("stumbling"), stream, tmp_path / "stumbled"))
    assert (tmp_path / "stumbled").exists()
    assert result.checkpoint.state.step == 6
    assert [re.findall(r"workers at (step \d)", event) for event in result.events] == [["step 0"], ["step 3"]]


@through_ray
@pytest.mark.slow  # a minute or more: workers start several times
def test_a_run_whose_workers_keep_failing_is_failed_in_mlflow(
    pretrain_config: Callable[..., PretrainConfig], stream: CorpusStream, mlflow_uri: str, tmp_path: Path
) -> None:
    config = pretrain_config("failing", workers={"num_workers": 1, "max_failures": 1})
    tracking = TrackingConfig(uri=mlflow_uri, journal_folder=str(tmp_path / "journal"))
    config = config.model_copy(update={"tracking": tracking})
    with pytest.raises(TrainingError, match="This rank alone has stumbled"):
        run_training(_stumbling(config, stream, None))
    sync(tmp_path / "journal", uri=tracking.uri)
    client = MlflowClient(tracking.uri)
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert run.info.status == "FAILED"


@through_ray
@pytest.mark.slow  # a minute or more: workers start several times
def test_a_run_that_was_taken_over_stops_and_commits_nothing_more(
    pretrain_config: Callable[..., PretrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.2)
    monkeypatch.setenv(failpoints.VARIABLE, "train.after_step=sleep:1")
    config = pretrain_config("taken", train={"num_steps": 60, "checkpoint_every": 60}, workers={"num_workers": 1})
    newer = Path(run_folder(config.store, config.run)) / "leases" / "000002.json"

    def take_over(amount: float, note: str = "", *, already: bool = False) -> None:
        newer.write_text(json.dumps({"pid": 7, "host": "elsewhere"}))

    with pytest.raises(lease.LeaseLostError, match="taken over by process 7 on elsewhere"):
        pretrain(config, advance=take_over)
    assert latest_checkpoint(config.store, config.run) is None
    journal = (Path(config.tracking.journal_folder)).glob("*.jsonl")
    assert not any('"finish"' in file.read_text() for file in journal), "the new holder logs to the same MLflow run"


@pytest.mark.slow
@through_ray
def test_a_finished_run_is_extended_when_that_is_allowed(pretrain_config: Callable[..., PretrainConfig]) -> None:
    alone = {"num_workers": 1}
    short, first = pretrain(pretrain_config("extended", train={"num_steps": 2}, workers=alone))
    assert short.checkpoint.state.step == 2
    longer = pretrain_config("extended", train={"num_steps": 5}, workers=alone)
    with pytest.raises(TrainingError, match=r"train\.num_steps"):
        pretrain(longer)
    extended, bundle = pretrain(longer.model_copy(update={"allow_changes": ("train.num_steps",)}))
    assert not extended.skipped
    assert extended.checkpoint.state.step == 5
    assert extended.events[0] == "train.num_steps was changed from 2 to 5"
    assert bundle.digest != first.digest
    assert bundle.lineage["step"] == "5"
    again = load_resumed_config(longer.store, "extended")
    assert again.train.num_steps == 5, "what was allowed once is what the run is now"
    assert summarise_finished(again) is None, "its card is not written yet"
    page = save_card(again, extended, bundle=bundle, scores={"cytoray": {"mse": 1.5}})
    found = summarise_finished(again)
    assert found is not None
    assert (found["card"], found["held_out"]) == (page, {"cytoray": {"mse": 1.5}})
    assert (found["step"], found["skipped"], found["bundle_digest"]) == (5, True, bundle.digest)
    shorter = pretrain_config("extended", train={"num_steps": 3}, workers=alone)
    with pytest.raises(TrainingError, match="already done 5 steps"):
        pretrain(shorter.model_copy(update={"allow_changes": ("train.num_steps",)}))


def test_the_newest_checkpoint_that_is_intact_is_used(
    pretrain_config: Callable[..., PretrainConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = checkpoints_uri(str(tmp_path), "run")
    for step in (1, 2, 3, 4):
        state = TrainerState(step=step, manifest_digest="m", config_digest="c", history=())
        save_checkpoint(folder, {"w": torch.full((4,), float(step))}, {"exp_avg.w": torch.zeros(4)}, state)
    sweep(folder, keep=3)
    assert sorted(path.name for path in Path(folder).iterdir()) == [
        "step-000000002",
        "step-000000003",
        "step-000000004",
    ]

    newest = Path(folder) / "step-000000004" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"\xff")  # one byte
    (Path(folder) / "step-000000003" / "COMMIT.json").unlink()  # died before the commit
    found = latest_checkpoint(str(tmp_path), "run")
    assert found is not None
    assert found.state.step == 2
    assert torch.equal(found.load_weights()["w"], torch.full((4,), 2.0))
    assert "step-000000004 is damaged" in caplog.text


@pytest.mark.parametrize("damage", ["cut", "misspelt", "empty"])
def test_a_damaged_commit_is_no_checkpoint(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = checkpoints_uri(str(tmp_path), "run")
    for step, metric in ((1, 0.5), (2, 0.4)):
        state = TrainerState(step=step, manifest_digest="m", config_digest="c", history=(), metric=metric)
        save_checkpoint(folder, {"w": torch.zeros(4)}, {"exp_avg.w": torch.zeros(4)}, state)
    commit = Path(folder) / "step-000000002" / "COMMIT.json"
    text = commit.read_text()
    commit.write_text(
        {"cut": text[: len(text) // 2], "misspelt": text.replace("files", "fileq"), "empty": "{}"}[damage]
    )
    for find in (latest_checkpoint, best_checkpoint):
        found = find(str(tmp_path), "run")
        assert found is not None
        assert found.state.step == 1
    assert "step-000000002 is damaged" in caplog.text
    sweep(folder, keep=2)
    assert len(list(Path(folder).iterdir())) == 2


@pytest.mark.parametrize(
    "error",
    [
        WorkerGroupError("rank 0: a traceback", {0: ValueError("first line\nCUDA out of memory\n")}),
        ControllerError(ValueError("no room\nCUDA out of memory")),
    ],
)
def test_the_last_failure_of_workers_is_summarised_and_logged(
    error: Exception, pretrain_config: Callable[..., PretrainConfig], caplog: pytest.LogCaptureFixture
) -> None:
    failure = _failed(pretrain_config("run", workers={"max_failures": 1}), error)
    assert failure.problem.endswith("after 1 restarts (workers.max_failures): CUDA out of memory")
    assert str(error) in caplog.text
