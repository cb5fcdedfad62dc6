"""The integration recipe over a panel view: its losses fall, and the batch label reaches what depends on it."""

from __future__ import annotations

import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import run_together
from rank_group import new_meeting
from reference_training import train
from safetensors.torch import load_file
from small_corpus import write_corpus

from cytoray.corpus.stream import CorpusStream, open_stream
from cytoray.model.transformer import ScGPT
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.tracking import TrackingConfig
from cytoray.training.config import OptimizerConfig, PretrainConfig, ShapeConfig, TrainConfig
from cytoray.training.integration import (
    IntegrationConfig,
    IntegrationObjective,
    integration_model,
    integration_stream,
)
from cytoray.training.loop import WorkerSettings

PAD_ID = GeneVocabulary.load_default().pad_id
NUM_STEPS, NUM_GENES = 40, 30
PANEL = tuple(range(100, 100 + NUM_GENES))
LOSSES = {"masked", "masked_nonzero", "cell_conditioned", "cell_conditioned_nonzero", "similarity", "adversarial"}


@pytest.fixture
def config(tmp_path: Path) -> PretrainConfig:
    """A tiny run over 96 cells of two types in two batches (of other depth), and some cells without a batch."""
    rng = np.random.default_rng(0)
    kinds, donors = rng.integers(0, 2, 100), rng.integers(0, 2, 100)
    rates = np.exp(rng.normal(0, 1.5, (2, NUM_GENES + 20)))[kinds] * np.where(donors, 0.4, 1.0)[:, None]
    names: list[str | None] = [None if row < 4 else f"donor {donor}" for row, donor in enumerate(donors.tolist())]
    write_corpus(
        str(tmp_path / "store"),
        rng.poisson(rates).astype(np.float32),
        np.arange(NUM_GENES + 20) + 100,
        {"donor": names},
    )
    return PretrainConfig(
        store=str(tmp_path / "store"),
        run="integrated",
        corpus="cells",
        model=ShapeConfig(width=16, num_heads=2, feedforward_width=16, num_layers=1, dropout=0.0),
        tokenizer=TokenizerConfig(max_length=NUM_GENES + 1, cls_value=0.0),
        train=TrainConfig(num_steps=NUM_STEPS, cells_per_step=32),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
        tracking=TrackingConfig(uri="http://127.0.0.1:9"),
    )


@pytest.fixture
def recipe() -> IntegrationConfig:
    return IntegrationConfig(batch_key="donor", cells_per_minibatch=16)


@pytest.fixture
def stream(config: PretrainConfig, recipe: IntegrationConfig) -> CorpusStream:
    options = integration_stream(recipe, tokenizer=config.tokenizer, train=config.train, panel=PANEL)
    return open_stream(config.store, "cells", options)


@pytest.fixture
def model(config: PretrainConfig, stream: CorpusStream) -> ScGPT:
    base = config.model.build(vocabulary_size=GeneVocabulary.load_default().size, num_labels=0)
    torch.manual_seed(0)
    return ScGPT(integration_model(base, num_batch_labels=len(stream.values("donor"))), pad_id=PAD_ID)


def test_the_losses_of_the_recipe_fall(
    config: PretrainConfig, recipe: IntegrationConfig, stream: CorpusStream, model: ScGPT
) -> None:
    assert stream.values("donor") == ("donor 0", "donor 1")
    assert stream.num_cells == 96
    assert model.dsbn is not None
    objective = IntegrationObjective(recipe, PAD_ID, NUM_STEPS)
    history = train(model, objective, stream, config, NUM_STEPS)
    assert all(losses.keys() == LOSSES for losses in history)
    for name in LOSSES - {"adversarial", "similarity"}:
        first, last = (np.mean([losses[name] for losses in part]) for part in (history[:5], history[-5:]))
        assert last < 0.9 * first, (name, first, last)
    assert history[0]["adversarial"] == 0.0, "the weight of the discriminator grows from 0"
    assert history[-1]["adversarial"] > 0.1
    means = [norm.running_mean for norm in model.dsbn.bns]
    assert all(int(norm.num_batches_tracked) > NUM_STEPS for norm in model.dsbn.bns), "both labels in each minibatch"
    assert float((means[0] - means[1]).abs().max()) > 0.01


def test_counts_are_those_of_the_losses(recipe: IntegrationConfig, stream: CorpusStream, model: ScGPT) -> None:
    objective = IntegrationObjective(recipe, PAD_ID, NUM_STEPS)
    batch = stream.read_step(0, rank=0, world_size=1)
    totals = dict.fromkeys(LOSSES, 0)
    for part in batch.split_minibatches():
        for name, loss in objective.losses(model, objective.prepare(part), 0).items():
            totals[name] += int(loss.count)
    assert objective.counts(batch) == totals
    hidden = 32 * int(NUM_GENES * recipe.mask_ratio)
    assert (totals["masked"], totals["similarity"], totals["adversarial"]) == (hidden, 2 * 16**2, 32)


def test_the_batch_label_reaches_norm_decoders_and_discriminator(
    recipe: IntegrationConfig, stream: CorpusStream, model: ScGPT
) -> None:
    objective = IntegrationObjective(recipe, PAD_ID, NUM_STEPS)
    part = stream.read_step(0, rank=0, world_size=1).split_minibatches()[0]
    swapped = replace(part, columns={"donor": 1 - part.columns["donor"]})
    true, false = (objective.losses(model, objective.prepare(batch), NUM_STEPS) for batch in (part, swapped))
    for name in ("masked", "cell_conditioned", "adversarial"):
        assert true[name].total.item() != pytest.approx(false[name].total.item(), rel=1e-6), name
    true["adversarial"].mean.backward()
    assert model.grad_reverse_discriminator is not None
    away = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert float(away["grad_reverse_discriminator.out_layer.weight"].abs().max()) > 0
    assert float(away["value_encoder.linear1.weight"].abs().max()) > 0, "the reversed gradient reaches the encoder"


def test_two_workers_take_the_steps_of_a_plain_loop(
    config: PretrainConfig, recipe: IntegrationConfig, stream: CorpusStream, model: ScGPT, tmp_path: Path
) -> None:
    # A large epsilon: the gradient of attention's key bias is only rounding, which Adam would magnify.
    optimizer = config.optimizer.model_copy(update={"epsilon": 1e-3})
    workers = config.workers.model_copy(update={"num_workers": 2})
    config = config.model_copy(update={"optimizer": optimizer, "workers": workers})
    objective = IntegrationObjective(recipe, PAD_ID, NUM_STEPS)
    torch.manual_seed(config.train.seed)
    plain = ScGPT(model.config, pad_id=PAD_ID)
    history = train(plain, objective, stream, config, 3)
    settings = WorkerSettings(config, model.config, PAD_ID, objective, "manifest", "config", "uuid", None, None)
    run_ranks(settings, stream, tmp_path, num_steps=3)
    found = load_file(tmp_path / "out.safetensors")
    for name, expected in plain.named_parameters():
        torch.testing.assert_close(
            found[name], expected.detach(), rtol=1e-5, atol=5e-6, msg=lambda text, n=name: f"{n}: {text}"
        )
    losses = json.loads((tmp_path / "out.json").read_text())["losses"]
    assert [step["loss"] for step in losses] == pytest.approx([sum(step.values()) for step in history], rel=1e-4)
    (buffers,) = {float((tmp_path / f"buffers.{rank}").read_text()) for rank in (0, 1)}
    assert buffers != 0, "both ranks have the average of their running statistics"


def run_ranks(settings: WorkerSettings, stream: CorpusStream, folder: Path, *, num_steps: int) -> None:
    """Run steps on two processes."""
    (folder / "jobs").write_bytes(pickle.dumps([(settings, stream, num_steps, folder, None)]))
    meeting = new_meeting(folder)
    script = Path(__file__).parents[1] / "helpers" / "training_rank.py"
    command = [sys.executable, str(script), str(folder / "jobs")]
    run_together([[*command, str(rank), "2", meeting] for rank in (0, 1)], timeout_s=600)
