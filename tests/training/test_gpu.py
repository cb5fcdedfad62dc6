"""The DeepSpeed engine on a GPU against plain torch on the CPU; needs no Ray. Skipped where there is no GPU.

By itself, on a machine with torch, DeepSpeed and this checkout: ``pytest --noconftest tests/training/test_gpu.py``.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from reference_training import mean_losses

from cytoray.corpus.streaming.batches import StepBatch
from cytoray.model.config import ModelConfig
from cytoray.model.transformer import ScGPT
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.tracking import TrackingConfig
from cytoray.training import engine as engines
from cytoray.training.calibration import random_batch
from cytoray.training.checkpoint import Checkpoint, CheckpointWriter, TrainerState, latest_checkpoint
from cytoray.training.config import OptimizerConfig, PretrainConfig, ShapeConfig, TrainConfig, WorkersConfig
from cytoray.training.objectives import Objective, ObjectiveModule, build_pretraining_objective
from cytoray.training.steps import StepFigures, StepRunner, build_host_group

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.filterwarnings("default"),  # of whatever torch and DeepSpeed are there
]
PAD_ID = GeneVocabulary.load_default().pad_id
STEPS, SAVED_STEP = 30, 3


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    """DeepSpeed's group, of this process alone."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def build_config(store: Path | str, stage: int, precision: str) -> PretrainConfig:
    return PretrainConfig(
        store=str(store),
        run="run",
        corpus="cells",
        model=ShapeConfig(width=64, num_heads=4, feedforward_width=64, num_layers=2, dropout=0.0),
        tokenizer=TokenizerConfig(max_length=121),
        train=TrainConfig(num_steps=STEPS, cells_per_step=8, accumulation=2),
        # A large epsilon: the gradient of attention's key bias is only rounding, which Adam would magnify.
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2, epsilon=1e-3),
        workers=WorkersConfig(num_workers=1, use_gpu=True, zero_stage=stage, precision=precision),
        tracking=TrackingConfig(uri="http://127.0.0.1:9"),
    )


def parts_of(config: PretrainConfig) -> tuple[ModelConfig, Objective]:
    model = config.model.build(vocabulary_size=GeneVocabulary.load_default().size, num_labels=0)
    objective = build_pretraining_objective(config.objective, pad_id=PAD_ID)
    return model.model_copy(update={"generative": True}), objective


def build_model(config: PretrainConfig) -> ScGPT:
    torch.manual_seed(config.train.seed)
    return ScGPT(parts_of(config)[0], pad_id=PAD_ID)


def cells_of(config: PretrainConfig, step: int) -> StepBatch:
    """The same cells at each step."""
    return random_batch(config, 121, ratio=0.5, step=step, num_cells=config.train.cells_per_step)


class Engine:
    """A run's engine on the GPU, from its seeded weights or those of a checkpoint."""

    def __init__(self, config: PretrainConfig, saved: Checkpoint | None = None) -> None:
        self.config, (model, objective) = config, parts_of(config)
        module = build_model(config)
        if saved is not None:
            module.load_state_dict(saved.load_weights())
        self.engine: Any = engines.build_engine(ObjectiveModule(module, objective), config, 1)
        if saved is not None:
            engines.restore(self.engine, saved)
        self.runner = StepRunner(self.engine, config, model, objective, build_host_group(60))

    def take(self, step: int) -> StepFigures:
        batch = cells_of(self.config, step)
        (figures,) = self.runner.fetch([self.runner.take(batch, self.runner.plan(batch))])
        return figures


def plain_step(config: PretrainConfig) -> tuple[float, float, dict[str, torch.Tensor]]:
    """Loss, norm of the gradient, and weights after one step of plain torch on the CPU."""
    model, objective = build_model(config), parts_of(config)[1]
    loss = sum(mean_losses(model, objective, cells_of(config, 0)).values(), torch.zeros(()))
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.gradient_clipping)
    rate = engines.learning_rate(config.optimizer, 0, config.train.num_steps)
    torch.optim.AdamW(
        model.parameters(), rate, betas=config.optimizer.betas, eps=config.optimizer.epsilon, weight_decay=0.0
    ).step()
    return float(loss.detach()), float(norm), {name: weight.detach() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_step_in_fp32_is_that_of_plain_torch_on_the_cpu(stage: int, tmp_path: Path) -> None:
    config = build_config(tmp_path, stage, "fp32")
    assert config.optimizer.weight_decay == 0
    loss, norm, weights = plain_step(config)
    ours = Engine(config)
    done = ours.take(0)
    assert done.losses["loss"] == pytest.approx(loss, rel=1e-5)
    assert done.gradient_norm == pytest.approx(norm, rel=1e-4)
    found, rate = (
        engines.gather_weights(ours.engine),
        engines.learning_rate(config.optimizer, 0, config.train.num_steps),
    )
    far = {name: float((found[name] - weight).abs().max()) for name, weight in weights.items()}
    assert {name: error for name, error in far.items() if error > 1e-2 * rate} == {}
    ours.engine.destroy()


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_learns_at_every_stage_that_it_goes_with(stage: int, tmp_path: Path) -> None:
    config = build_config(tmp_path, stage, "bf16")
    ours = Engine(config)
    losses = [ours.take(step).losses["loss"] for step in range(STEPS)]
    assert losses[0] == pytest.approx(plain_step(config)[0], rel=0.03)
    assert losses[-1] < 0.8 * losses[0]
    ours.engine.destroy()


@pytest.mark.parametrize(("wrote", "reads"), [(3, 1), (1, 3), (2, 2)])
def test_a_bf16_checkpoint_goes_on_at_another_stage(wrote: int, reads: int, tmp_path: Path) -> None:
    first = Engine(build_config(tmp_path, wrote, "bf16"))
    for step in range(SAVED_STEP):
        first.take(step)
    writer = CheckpointWriter(f"{tmp_path}/runs/run/checkpoints", keep=None, attempt="a", timeout_s=60)
    state = TrainerState(step=SAVED_STEP, manifest_digest="m", config_digest="c", history=())
    writer.submit(engines.take_snapshot(first.engine), state)
    writer.wait()
    expected = [first.take(step).losses["loss"] for step in (SAVED_STEP, SAVED_STEP + 1)]
    first.engine.destroy()
    saved = latest_checkpoint(str(tmp_path), "run")
    assert saved is not None
    again = Engine(build_config(tmp_path, reads, "bf16"), saved)
    found = [again.take(step).losses["loss"] for step in (SAVED_STEP, SAVED_STEP + 1)]
    assert found == pytest.approx(expected, rel=1e-3)
    again.engine.destroy()
