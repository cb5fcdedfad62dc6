"""A run that is asked to stop commits a checkpoint and reports it; `cytoray train resume` leads to the same result."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

import pytest
import torch

from cytoray import failpoints, storage
from cytoray.corpus.streaming.batches import StepBatch
from cytoray.errors import TrainingError, TrainingStoppedError
from cytoray.stages.resume import load_resumed_config
from cytoray.tasks.pretraining.evaluation import judge_pretraining
from cytoray.training.checkpoint import latest_checkpoint
from cytoray.training.config import PretrainConfig, ValidationConfig
from cytoray.training.pretraining import pretrain
from cytoray.training.report import save_card
from cytoray.training.result import find_result


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.slow
@pytest.mark.timeout(1200)  # four runs, each of which starts workers: minutes on a loaded machine
def test_sigterm_stops_after_the_step_and_the_run_goes_on_with_fewer_workers(
    pretrain_config: Callable[..., PretrainConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With validation and averaged weights, which must continue as well; one worker ends as two would have."""

    def build(run: str) -> PretrainConfig:
        config = pretrain_config(run, train={"num_steps": 12, "checkpoint_every": 12, "ema_decay": 0.5})
        return config.model_copy(update={"validation": ValidationConfig(select="kind == 'B'", max_cells=13)})

    whole, _ = pretrain(build("whole"))
    seen: list[float] = []

    def stop_early(amount: float, note: str = "", *, already: bool = False) -> None:
        seen.append(amount)
        if len(seen) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    assert threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv(failpoints.VARIABLE, "train.after_step=sleep:1")  # the driver looks twice a second
    with pytest.raises(TrainingStoppedError, match="committed a checkpoint at step") as caught:
        pretrain(build("stopped"), advance=stop_early)
    monkeypatch.delenv(failpoints.VARIABLE)
    assert caught.value.exit_code == 75
    assert signal.getsignal(signal.SIGTERM) is before
    config = build("stopped")
    saved = latest_checkpoint(config.store, "stopped")
    assert saved is not None
    assert 0 < saved.state.step < 12
    assert saved.state.step == caught.value.details["step"]

    resumed = load_resumed_config(config.store, "stopped", overrides=["workers.num_workers=1", "workers.zero_stage=0"])
    assert isinstance(resumed, PretrainConfig)
    ended, bundle = pretrain(resumed)
    scores = judge_pretraining(resumed, bundle)
    assert scores["cytoray"]["mse"] == pytest.approx(ended.best.state.metric, rel=1e-4)
    page = storage.read_bytes(save_card(resumed, ended, bundle=bundle, scores=scores)).decode()
    assert "kNN in PCA space" in page
    assert ended.checkpoint.state.step == 12
    for name, expected in whole.checkpoint.load_weights().items():
        torch.testing.assert_close(ended.checkpoint.load_weights()[name], expected, rtol=1e-4, atol=1e-5)
    averages, others = whole.checkpoint.load_ema(), ended.checkpoint.load_ema()
    assert averages is not None
    assert others is not None
    for name, expected in averages.items():
        torch.testing.assert_close(others[name], expected, rtol=1e-4, atol=1e-5)
    judged = whole.checkpoint.state.validation[-1]
    assert judged["step"] == 12
    assert judged["masked"] == pytest.approx(ended.checkpoint.state.validation[-1]["masked"], rel=1e-4)
    assert judged["mean_bin"] == pytest.approx(ended.checkpoint.state.validation[-1]["mean_bin"], rel=1e-9)
    assert len(ended.checkpoint.state.validation) == 2

    with pytest.raises(TrainingError, match=r"optimizer\.learning_rate.*allow_changes"):
        pretrain(load_resumed_config(config.store, "stopped", overrides=["optimizer.learning_rate=0.5"]))  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match=r"Runs there: .*stopped"):
        load_resumed_config(config.store, "stopping-not")


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_ends_when_validation_has_stopped_improving(pretrain_config: Callable[..., PretrainConfig]) -> None:
    """With a learning rate that changes no weight, no checkpoint is better than the first."""
    train, optimizer = {"num_steps": 50, "checkpoint_every": 1}, {"learning_rate": 1e-30, "warmup_steps": 0}
    config = pretrain_config("patient", train=train, optimizer=optimizer, workers={"num_workers": 1})
    held_out = ValidationConfig(select="kind == 'B'", max_cells=8, patience=2)
    config = config.model_copy(update={"validation": held_out})
    ended, bundle = pretrain(config)
    assert ended.checkpoint.state.step == 3
    assert [point["step"] for point in ended.checkpoint.state.validation] == [1, 2, 3]
    assert ended.best.state.metric == ended.checkpoint.state.metric
    again, same = pretrain(config)
    assert again.skipped
    assert same == bundle
    longer = config.model_copy(update={"validation": held_out.model_copy(update={"patience": 3})})
    assert find_result(longer, ended.manifest_digest) is None, "with more patience it is not finished"


def test_the_cells_held_out_are_never_trained_on(pretrain_config: Callable[..., PretrainConfig]) -> None:
    from cytoray.corpus.stream import open_stream
    from cytoray.training.pretraining import stream_options
    from cytoray.training.validation import held_in, open_held_out

    config = pretrain_config("split")
    config = config.model_copy(update={"validation": ValidationConfig(select="kind == 'B'", max_cells=1000)})
    options = stream_options(config)
    everything = open_stream(config.store, config.corpus, options).num_cells
    trained, held_out = (
        open_stream(config.store, config.corpus, held_in(options, config)),
        open_held_out(options, config),
    )
    assert held_out is not None
    first = held_out.read_step(0, rank=0, world_size=1)
    mine = {cell for batch in trained.read_steps(0, 12, threads=0) for cell in batch.cell_ids.tolist()}
    assert trained.num_cells + first.num_cells == everything
    assert not mine & set(first.cell_ids.tolist())
    again = open_held_out(options, config)
    assert again is not None
    halves = [again.read_step(0, rank=rank, world_size=2) for rank in (0, 1)]
    assert {cell: genes for half in halves for cell, genes in _hidden(half).items()} == _hidden(first)


def _hidden(batch: StepBatch) -> dict[int, list[int]]:
    """The genes of each cell that are hidden."""
    assert batch.unknown_gene_ids is not None
    assert batch.unknown_lengths is not None
    rows = zip(batch.cell_ids.tolist(), batch.unknown_gene_ids, batch.unknown_lengths.tolist(), strict=True)
    return {cell: genes[:number].tolist() for cell, genes, number in rows}
