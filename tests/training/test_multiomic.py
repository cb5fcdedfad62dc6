"""The multi-omic recipe: hidden genes, proteins and peaks, each with losses of their own, on any number of workers."""

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
from cytoray.tokens.features import extend_vocabulary, find_features
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.tracking import TrackingConfig
from cytoray.training.config import OptimizerConfig, PretrainConfig, ShapeConfig, TrainConfig, ValidationConfig
from cytoray.training.loop import WorkerSettings
from cytoray.training.multiomic import MultiomicObjective, MultiomicTokens, multiomic_model, multiomic_stream
from cytoray.training.multiomic_config import ModalityTokensConfig, MultiomicConfig
from cytoray.training.validation import open_held_out

NUM_STEPS, NUM_CELLS, NUM_GENES, MAX_PEAKS = 40, 96, 20, 15
PANEL = tuple(range(100, 100 + NUM_GENES))
PROTEINS, PEAKS = ("CD3", "CD19", "CD4"), tuple(f"chr1:{n}-{n + 1}" for n in range(50))
FEATURES = {"protein": PROTEINS, "peaks": PEAKS}
LOSSES = {f"{loss}_{name}" for loss in ("masked", "cell_conditioned") for name in ("rna", "protein", "peaks")}


@pytest.fixture
def config(tmp_path: Path) -> PretrainConfig:
    """A tiny run over cells of two types in two batches; the last ones were not measured but for their RNA."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 2, NUM_CELLS)
    genes = rng.poisson(np.exp(rng.normal(0, 1.5, (2, NUM_GENES)))[kinds])
    proteins = 1 + rng.poisson(np.exp(rng.normal(2, 1.5, (2, 3)))[kinds])
    peaks = (rng.random((NUM_CELLS, 50)) < np.array([[0.7] * 25 + [0.2] * 25, [0.2] * 25 + [0.7] * 25])[kinds]) * 1
    proteins[-9:] = peaks[-9:] = 0
    names = {"protein": (proteins, PROTEINS), "peaks": (peaks, PEAKS)}
    obs: dict[str, list[str | None]] = {"donor": [f"d{row % 3}" for row in range(NUM_CELLS)]}
    write_corpus(str(tmp_path / "store"), genes, np.array(PANEL), obs, names)
    return PretrainConfig(
        store=str(tmp_path / "store"),
        run="multiomic",
        corpus="cells",
        model=ShapeConfig(width=16, num_heads=2, feedforward_width=16, num_layers=1, dropout=0.0),
        tokenizer=TokenizerConfig(max_length=NUM_GENES + 1, cls_value=0.0),
        train=TrainConfig(num_steps=NUM_STEPS, cells_per_step=32),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
        validation=ValidationConfig(select="donor == 'd2'"),
        tracking=TrackingConfig(uri="http://127.0.0.1:9"),
    )


@pytest.fixture
def recipe() -> MultiomicConfig:
    modalities = (ModalityTokensConfig(name="protein"), ModalityTokensConfig(name="peaks", max_tokens=MAX_PEAKS))
    return MultiomicConfig(modalities=modalities)


@pytest.fixture(scope="module")
def tokens() -> MultiomicTokens:
    vocabulary = extend_vocabulary(GeneVocabulary(GeneVocabulary.load_default().tokens[:200]), FEATURES)
    return MultiomicTokens(vocabulary, PANEL, find_features(vocabulary, FEATURES, {"protein": 512, "peaks": MAX_PEAKS}))


@pytest.fixture
def stream(config: PretrainConfig, recipe: MultiomicConfig, tokens: MultiomicTokens) -> CorpusStream:
    options = multiomic_stream(recipe, tokens, tokenizer=config.tokenizer, train=config.train)
    return open_stream(config.store, "cells", options)


def build(config: PretrainConfig, tokens: MultiomicTokens, *, num_batch_labels: int = 0) -> ScGPT:
    base = config.model.build(vocabulary_size=200, num_labels=0)
    torch.manual_seed(config.train.seed)
    return ScGPT(multiomic_model(base, tokens, num_batch_labels=num_batch_labels), pad_id=tokens.vocabulary.pad_id)


def test_the_losses_of_every_modality_fall(
    config: PretrainConfig, recipe: MultiomicConfig, tokens: MultiomicTokens, stream: CorpusStream
) -> None:
    objective = MultiomicObjective.of(recipe, tokens)
    history = train(build(config, tokens), objective, stream, config, NUM_STEPS)
    assert all(losses.keys() == LOSSES for losses in history)
    for name in LOSSES:
        first, last = (np.mean([losses[name] for losses in part]) for part in (history[:5], history[-5:]))
        assert last < 0.9 * first, (name, first, last)


def test_counts_are_those_of_the_losses(
    config: PretrainConfig, recipe: MultiomicConfig, tokens: MultiomicTokens, stream: CorpusStream
) -> None:
    objective = MultiomicObjective.of(recipe, tokens)
    batch, model = stream.read_step(0, rank=0, world_size=1), build(config, tokens)
    totals = dict.fromkeys(LOSSES, 0)
    for part in batch.split(3):
        for name, loss in objective.losses(model, objective.prepare(part), 0).items():
            totals[name] += int(loss.count)
    assert objective.counts(batch) == totals
    assert totals["masked_protein"] == totals["cell_conditioned_protein"] > 25
    assert totals["masked_rna"] >= 32 * int(NUM_GENES * recipe.mask_ratio)


def test_the_modality_reaches_the_decoders_and_weights_the_losses(
    config: PretrainConfig, recipe: MultiomicConfig, tokens: MultiomicTokens, stream: CorpusStream
) -> None:
    model, objective = build(config, tokens), MultiomicObjective.of(recipe, tokens)
    prepared = objective.prepare(stream.read_step(0, rank=0, world_size=1))
    assert prepared.cells.modalities is not None
    assert prepared.cells.modalities.unique().tolist() == [0, 1, 2, 3]
    losses = objective.losses(model, prepared, 0)
    sum(losses[f"masked_{name}"].mean for name in ("rna", "protein", "peaks")).backward()
    assert model.mod_encoder is not None
    gradient = model.mod_encoder.embedding.weight.grad
    assert gradient is not None
    assert (gradient[1:].abs().sum(dim=1) > 0).all()
    assert not gradient[0].any(), "nothing of <cls> is decoded"
    light = MultiomicObjective.of(recipe.model_copy(update={"feature_weight": 0.25}), tokens)
    assert {name: weight for name, weight in light.weights(0).items() if weight != 1} == {
        name: 0.25 for name in LOSSES if "rna" not in name
    }


def test_batches_are_seen_by_decoders_and_removed_from_cells(
    config: PretrainConfig, recipe: MultiomicConfig, tokens: MultiomicTokens
) -> None:
    recipe = recipe.model_copy(update={"batch_key": "donor", "adversarial_weight": 0.5})
    options = multiomic_stream(recipe, tokens, tokenizer=config.tokenizer, train=config.train)
    stream = open_stream(config.store, "cells", options)
    model = build(config, tokens, num_batch_labels=len(stream.values("donor")))
    objective = MultiomicObjective.of(recipe, tokens)
    batch = stream.read_step(0, rank=0, world_size=1)
    assert objective.weights(0)["adversarial"] == 0.5
    assert objective.counts(batch)["adversarial"] == 32
    swapped = replace(batch, columns={"donor": (batch.columns["donor"] + 1) % 3})
    true, false = (objective.losses(model, objective.prepare(each), 0) for each in (batch, swapped))
    for name in ("masked_protein", "cell_conditioned_peaks", "adversarial"):
        assert true[name].total.item() != pytest.approx(false[name].total.item(), rel=1e-6), name


def test_each_modality_counts_the_same_on_held_out_cells(
    config: PretrainConfig, recipe: MultiomicConfig, tokens: MultiomicTokens, stream: CorpusStream
) -> None:
    held_out = open_held_out(stream.options, config, like=stream)
    assert held_out is not None
    batch, model = held_out.read_step(0, rank=0, world_size=1), build(config, tokens).eval()
    objective = MultiomicObjective.of(recipe, tokens)
    with torch.no_grad():
        judged = objective.judge(model, objective.prepare(batch))
        parts = [objective.judge(model, objective.prepare(part)) for part in batch.split(4)]
    own = [judged[f"masked_{name}"] for name in ("rna", "protein", "peaks")]
    scales = [NUM_GENES / size for size in (NUM_GENES, 3, MAX_PEAKS)]
    total = sum(scale * float(part.total) for scale, part in zip(scales, own, strict=True))
    count = sum(scale * int(part.count) for scale, part in zip(scales, own, strict=True))
    assert next(iter(judged)) == "masked"
    assert float(judged["masked"].total) == pytest.approx(total, rel=1e-5)
    assert float(judged["masked"].count) == pytest.approx(count, rel=1e-6)
    assert sum(float(part["masked"].total) for part in parts) == pytest.approx(total, rel=1e-4)


def test_two_workers_take_the_steps_of_a_plain_loop(
    config: PretrainConfig, recipe: MultiomicConfig, tokens: MultiomicTokens, stream: CorpusStream, tmp_path: Path
) -> None:
    # A large epsilon: the gradient of attention's key bias is only rounding, which Adam would magnify.
    optimizer = config.optimizer.model_copy(update={"epsilon": 1e-3})
    workers = config.workers.model_copy(update={"num_workers": 2})
    steps = config.train.model_copy(update={"micro_batch_tokens": 300})
    config = config.model_copy(update={"optimizer": optimizer, "workers": workers, "train": steps})
    objective, plain = MultiomicObjective.of(recipe, tokens), build(config, tokens)
    history = train(plain, objective, stream, config, 3)
    settings = WorkerSettings(
        config, plain.config, tokens.vocabulary.pad_id, objective, "manifest", "config", "uuid", None, None
    )
    run_ranks(settings, stream, tmp_path, num_steps=3)
    found = load_file(tmp_path / "out.safetensors")
    for name, expected in plain.named_parameters():
        torch.testing.assert_close(
            found[name], expected.detach(), rtol=1e-5, atol=5e-6, msg=lambda text, n=name: f"{n}: {text}"
        )
    losses = json.loads((tmp_path / "out.json").read_text())["losses"]
    assert [step["loss"] for step in losses] == pytest.approx([sum(step.values()) for step in history], rel=1e-4)
    for step, expected_losses in zip(losses, history, strict=True):
        assert step == pytest.approx(expected_losses | {"loss": sum(expected_losses.values())}, rel=1e-4)


def run_ranks(settings: WorkerSettings, stream: CorpusStream, folder: Path, *, num_steps: int) -> None:
    """Run steps on two processes."""
    (folder / "jobs").write_bytes(pickle.dumps([(settings, stream, num_steps, folder, None)]))
    meeting = new_meeting(folder)
    script = Path(__file__).parents[1] / "helpers" / "training_rank.py"
    command = [sys.executable, str(script), str(folder / "jobs")]
    run_together([[*command, str(rank), "2", meeting] for rank in (0, 1)], timeout_s=600)
