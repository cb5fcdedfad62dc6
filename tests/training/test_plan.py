"""A plan's figures against the published model's arithmetic, and against steps that a run's workers take here."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cytoray.cli.main import app
from cytoray.config import load_config
from cytoray.corpus.manifest import load_manifest
from cytoray.corpus.stream import open_stream
from cytoray.errors import ConfigError, TrainingError
from cytoray.training.calibration import Calibration, calibrate, random_batch
from cytoray.training.config import PretrainConfig, ValidationConfig
from cytoray.training.plan import ASSUMED_MFU, PEAK_FLOPS, Hardware, plan_pretraining
from cytoray.training.pretraining import stream_options
from cytoray.training.validation import held_in

CONFIGS = Path(__file__).parents[2] / "configs" / "pretrain"
HUMAN = CONFIGS / "human.yaml"
SMALL = ["tokenizer.max_length=60", "train.cells_per_step=8"]


@pytest.fixture(scope="module")
def human() -> PretrainConfig:
    return load_config(PretrainConfig, HUMAN)


def quickstart(*overrides: str) -> PretrainConfig:
    return load_config(PretrainConfig, CONFIGS / "quickstart.yaml", overrides=[*SMALL, *overrides])


def test_the_published_model_is_counted_right(human: PretrainConfig) -> None:
    made = plan_pretraining(human, Hardware(8, "H100"))
    assert sum(made.parameters.values()) == 51_330_049
    assert made.num_cells == 390_000 * 512
    assert made.tokens_per_cell == 1200
    # Two passes, forward and back, at 1,200 tokens: 393.3 GFLOP a cell, of which the second has no MVC and the last
    # layer answers for <cls> and unknown tokens only.
    assert 0.92 * 393.3e9 < made.flops / made.num_cells < 393.3e9
    assert made.seconds == pytest.approx(made.flops / (8 * PEAK_FLOPS["H100"] * ASSUMED_MFU))
    assert "PROJECTED" in made.estimate.how
    assert any("2,000 genes" in assumption for assumption in made.assumptions)


def test_memory_falls_with_the_stage_and_no_further_than_a_share(human: PretrainConfig) -> None:
    sizes = plan_pretraining(human, Hardware(8, "H100")).state_bytes
    assert sizes[0] > sizes[1] > sizes[2] > sizes[3]
    assert sizes[0] == 51_330_049 * (6 + 4 + 8)
    assert sizes[3] == pytest.approx(sizes[0] / 8, rel=1e-6)


@pytest.mark.parametrize("after", [195_000, 390_000, None])
def test_passes_cost_as_much_as_they_are_on(human: PretrainConfig, after: int | None) -> None:
    late = human.model_copy(update={"objective": human.objective.model_copy(update={"second_pass_after": after})})
    both, fewer = (plan_pretraining(config, Hardware(1, "A100")) for config in (human, late))
    expected = 1.33 if after == 195_000 else 1.97
    assert both.flops / fewer.flops == pytest.approx(expected, abs=0.03)
    assert ("two passes from step 195,000" if after == 195_000 else "one pass") in fewer.objective


def test_a_masked_objective_lets_all_tokens_see_each_other(human: PretrainConfig) -> None:
    masked = human.model_copy(update={"objective": human.objective.model_copy(update={"style": "masked"})})
    made = plan_pretraining(masked, Hardware(8, "H100"))
    # 12 layers of 2 x (4 D^2 + 2 D F) a token and 4 D a pair of tokens, forward and back; decoders and values less
    # than a tenth of it.
    layers = 3 * 12 * 1200 * (2 * (4 * 512**2 + 2 * 512 * 512) + 4 * 512 * 1200)
    assert layers < made.flops / made.num_cells < 1.1 * layers
    assert "masked" in made.objective
    assert "one pass" in made.objective


@pytest.mark.parametrize("style", ["generative", "masked"])
def test_random_cells_are_what_a_run_would_see(human: PretrainConfig, style: str) -> None:
    config = human.model_copy(update={"objective": human.objective.model_copy(update={"style": style})})
    batch = random_batch(config, 401, ratio=0.25, step=3, num_cells=2)
    assert batch.num_tokens == 802
    if style == "generative":
        assert batch.unknown_gene_ids is not None
        assert batch.gene_ids.shape == (2, 301)
        assert batch.unknown_gene_ids.shape == (2, 100)
    else:
        assert batch.masked is not None
        assert (batch.masked != batch.values).sum() == 200


@pytest.mark.timeout(300)
def test_a_run_is_measured_with_all_its_workers(pretrain_config: Callable[..., PretrainConfig]) -> None:
    config = pretrain_config("planned", workers={"num_workers": 2})
    manifest = load_manifest(config.store, config.corpus)
    started = time.perf_counter()
    made = plan_pretraining(config, Hardware(), manifest=manifest)
    taken = time.perf_counter() - started
    assert 0 < made.estimate.step_s < taken
    assert made.estimate.start_s is not None
    assert made.tokens_per_cell == 41
    assert "by 2 worker(s)" in made.estimate.how
    assert not made.assumptions
    assert made.seconds == config.train.num_steps * made.estimate.step_s


def test_epochs_are_of_the_cells_that_are_trained_on(pretrain_config: Callable[..., PretrainConfig]) -> None:
    whole = pretrain_config("planned")
    part = whole.model_copy(update={"validation": ValidationConfig(select="kind == 'B'")})
    manifest = load_manifest(whole.store, whole.corpus)
    num_held_in = open_stream(part.store, part.corpus, held_in(stream_options(part), part)).num_cells
    assert 0 < num_held_in < manifest.num_cells
    for config, num_cells in ((whole, manifest.num_cells), (part, num_held_in)):
        made = plan_pretraining(config, Hardware(8, "H100"), manifest=manifest)
        assert made.epochs == made.num_cells / num_cells


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "overrides",
    [
        ["objective.style=masked", "train.accumulation=2", "train.ema_decay=0.9", "workers.num_workers=[1,2]"],
        ["workers.num_workers=1", "workers.zero_stage=3", 'validation={"select": "x == 1", "max_cells": 100}'],
    ],
    ids=["masked", "stage-3"],
)
def test_a_step_is_measured_without_a_corpus(overrides: list[str]) -> None:
    config = quickstart(*overrides)
    found = calibrate(config, genes_per_cell=300, has_corpus=False)
    assert found.step_s > 0
    assert found.checkpoint_s > 0
    assert found.start_s > 0
    assert (found.validation_s > 0) == (config.validation is not None)
    assert found.share == pytest.approx(1.0, abs=0.4)  # cells with few hidden genes need more operations than others
    assert found.num_steps >= 3


@pytest.mark.timeout(300)
def test_a_long_step_is_measured_on_some_of_its_cells() -> None:
    model = ["model.width=128", "model.num_layers=6", "tokenizer.max_length=1200"]
    config = quickstart(*model, "train.cells_per_step=2000", "workers.num_workers=1")
    started = time.perf_counter()
    found = calibrate(config, genes_per_cell=2_000, has_corpus=False)
    assert found.share < 0.2
    assert found.step_s > (time.perf_counter() - started) / 2


@pytest.mark.timeout(300)
def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(TrainingError, match=r"(?s)process 0:.*nowhere.*--gpus"):
        calibrate(quickstart("workers.num_workers=1", "store=/nowhere"), genes_per_cell=300, has_corpus=True)


def test_checkpoints_and_validations_are_shared_out_to_steps() -> None:
    found = Calibration(step_s=1.0, read_s=0.1, checkpoint_s=3.0, validation_s=2.0, start_s=9.0, num_steps=3, share=1.0)
    assert found.seconds_per_step(10) == pytest.approx(1.6)


def test_gpus_that_are_not_here_are_not_measured(human: PretrainConfig) -> None:
    with pytest.raises(ConfigError, match=r"8 GPUs.*--gpus 8xH100"):
        plan_pretraining(human, Hardware())


@pytest.mark.parametrize("text", ["8", "H100", "8xB2", "0xH100", "x"])
def test_unknown_gpus_are_told(text: str) -> None:
    with pytest.raises(ConfigError, match="NUMBERxKIND"):
        Hardware.parse(text)


def test_the_command_prints_the_table() -> None:
    command = ["train", "plan", "--config", str(HUMAN), "--gpus", "8xH100", "--price", "2"]
    result = CliRunner().invoke(app, [*command, "--set", "store=/nowhere"])
    assert result.exit_code == 0, result.output
    for line in ("51,330,049", "ZeRO 3", "390,000", "GPU-hours", "at 2 per GPU-hour", "cannot be read", "assumed"):
        assert line in result.output
