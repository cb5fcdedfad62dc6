"""A plan's figures against the published model's arithmetic, and against a step that is taken."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cytoray.cli.main import app
from cytoray.config import load_config
from cytoray.errors import ConfigError
from cytoray.training.config import PretrainConfig
from cytoray.training.plan import ASSUMED_MFU, PEAK_FLOPS, Hardware, measure_step, plan_pretraining

CONFIGS = Path(__file__).parents[2] / "configs" / "pretrain"
HUMAN = CONFIGS / "human.yaml"


@pytest.fixture(scope="module")
def human() -> PretrainConfig:
    return load_config(PretrainConfig, HUMAN)


def test_the_published_model_is_counted_right(human: PretrainConfig) -> None:
    made = plan_pretraining(human, Hardware(8, "H100"))
    assert sum(made.parameters.values()) == 51_330_049
    assert made.num_cells == 390_000 * 512
    assert made.tokens_per_cell == 1200
    # Two passes, forward and back, at 1,200 tokens: 393.3 GFLOP a cell, of which the second has no MVC and the last
    # layer answers for <cls> and unknown tokens only.
    assert 0.92 * 393.3e9 < made.flops / made.num_cells < 393.3e9
    assert made.seconds == pytest.approx(made.flops / (8 * PEAK_FLOPS["H100"] * ASSUMED_MFU))
    assert "not measured" in made.how


def test_memory_falls_with_the_stage_and_no_further_than_a_share(human: PretrainConfig) -> None:
    sizes = plan_pretraining(human, Hardware(8, "H100")).state_bytes
    assert sizes[0] > sizes[1] > sizes[2] > sizes[3]
    assert sizes[0] == 51_330_049 * (6 + 4 + 8)
    assert sizes[3] == pytest.approx(sizes[0] / 8, rel=1e-6)


def test_one_pass_costs_half(human: PretrainConfig) -> None:
    late = human.model_copy(
        update={"objective": human.objective.model_copy(update={"second_pass_after": human.train.num_steps})}
    )
    both, one = (plan_pretraining(config, Hardware(1, "A100")).flops for config in (human, late))
    assert 1.9 < both / one < 2.0


def test_a_step_is_measured_where_no_gpus_are_named() -> None:
    config = load_config(PretrainConfig, CONFIGS / "quickstart.yaml", overrides=["tokenizer.max_length=60"])
    threads = torch.get_num_threads()
    started = time.perf_counter()
    made = plan_pretraining(config, Hardware(), genes_per_cell=300)
    taken = time.perf_counter() - started
    assert torch.get_num_threads() == threads
    assert 0 < made.seconds / config.train.num_steps < taken
    assert made.tokens_per_cell == 60
    model = config.model.build(vocabulary_size=60_697, num_labels=0)
    assert measure_step(config, model, 30, repeats=1) > 0


@pytest.mark.parametrize("text", ["8", "H100", "8xB2", "0xH100", "x"])
def test_unknown_gpus_are_told(text: str) -> None:
    with pytest.raises(ConfigError, match="NUMBERxKIND"):
        Hardware.parse(text)


def test_the_command_prints_the_table() -> None:
    command = ["train", "plan", "--config", str(HUMAN), "--gpus", "8xH100", "--price", "2"]
    told = CliRunner().invoke(app, [*command, "--set", "store=/nowhere"])
    assert told.exit_code == 0, told.output
    for line in ("51,330,049", "ZeRO 3", "390,000", "GPU-hours", "at 2 a GPU-hour", "cannot be read"):
        assert line in told.output
