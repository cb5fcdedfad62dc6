"""DeepSpeed with any number of workers, stage and accumulation takes the same steps as a plain torch loop."""

from __future__ import annotations

import itertools
import json
import math
import pickle
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mixed_objective import MixedObjective
from processes import run_together
from reference_training import train
from safetensors.torch import load_file

from cytoray.corpus.stream import CorpusStream, open_stream
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.model.config import ModelConfig
from cytoray.model.transformer import ScGPT
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.training.checkpoint import require_checkpoint
from cytoray.training.config import GenerativeConfig, OptimizerConfig, PretrainConfig
from cytoray.training.engine import learning_rate
from cytoray.training.loop import WorkerSettings
from cytoray.training.objectives import ClassificationObjective, GenerativeObjective, Objective

pytestmark = pytest.mark.ray  # the corpus is ingested through Ray
NUM_STEPS = 3
NEVER = 10**9


def _settings(config: PretrainConfig, model: ModelConfig, objective: Objective) -> WorkerSettings:
    pad_id = GeneVocabulary.load_default().pad_id
    return WorkerSettings(config, model, pad_id, objective, "manifest", "config", "uuid", None, None)


def _run_ranks(
    settings: WorkerSettings,
    stream: CorpusStream,
    world_size: int,
    folder: Path,
    *,
    stop: int = NUM_STEPS,
    resume: Path | None = None,
    read: int | None = None,
) -> dict[str, torch.Tensor]:
    """Run steps up to ``stop`` on real processes, going on from the store ``resume``; full weights and moments.

    ``read`` is how many files of slices each rank must have read.
    """
    folder.mkdir(exist_ok=True)
    (folder / "settings").write_bytes(pickle.dumps((settings, stream, stop)))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    out = folder / "out.safetensors"
    script = Path(__file__).parents[1] / "helpers" / "training_rank.py"
    more = [] if resume is None else [str(resume)]
    first, rest = [sys.executable, str(script), str(folder / "settings")], [str(world_size), port, str(out), *more]
    outputs = run_together([[*first, str(rank), *rest] for rank in range(world_size)], timeout_s=240)
    assert read is None or all(f"read {read}\n" in output for output in outputs), outputs
    return load_file(out)


@pytest.mark.parametrize(
    ("world_size", "stage", "accumulation", "task"),
    [
        (2, 1, 1, "two passes"),
        (2, 1, 4, "two passes"),
        (2, 0, 2, "one pass"),
        (2, 3, 4, "two passes"),
        (1, 1, 1, "classification"),
        (2, 1, 1, "classification"),
    ],
)
def test_steps_equal_a_plain_torch_loop(
    world_size: int,
    stage: int,
    accumulation: int,
    task: str,
    *,
    pretrain_config: Callable[..., PretrainConfig],
    tmp_path: Path,
) -> None:
    vocabulary = GeneVocabulary.load_default()
    config = pretrain_config(
        "parity", train={"accumulation": accumulation}, workers={"num_workers": world_size, "zero_stage": stage}
    )
    options = StreamOptions(config.tokenizer, 42, 16, style="generative", ratios=(0.25, 0.5, 0.75))
    if task == "classification":
        options = StreamOptions(config.tokenizer, 42, 16, "kind")
    stream = open_stream(config.store, "cells", options)
    model = config.model.build(vocabulary_size=vocabulary.size, num_labels=len(stream.labels))
    objective: Objective = ClassificationObjective(vocabulary.pad_id)
    if task != "classification":
        generative = GenerativeConfig(second_pass_after=0 if task == "two passes" else NEVER)
        objective = GenerativeObjective(generative, vocabulary.pad_id)
    settings = _settings(config, model, objective)

    torch.manual_seed(config.train.seed)
    plain = ScGPT(model, pad_id=vocabulary.pad_id)
    history = train(plain, objective, stream, config, NUM_STEPS)
    result = _run_ranks(settings, stream, world_size, tmp_path)

    assert history[-1] != history[0]
    assert {f"exp_avg.{name}" for name, _ in plain.named_parameters()} <= result.keys()
    for name, expected in plain.state_dict().items():
        torch.testing.assert_close(
            result[name], expected, rtol=1e-5, atol=2e-6, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize(
    ("world_size", "stage", "train_keys"),
    [(1, 1, {}), (2, 1, {"accumulation": 4}), (2, 2, {"micro_batch_tokens": 30})],
    ids=["one worker", "accumulation", "token budget"],
)
def test_each_loss_is_divided_by_its_own_count_over_fixed_minibatches(
    world_size: int,
    stage: int,
    train_keys: dict[str, int],
    *,
    pretrain_config: Callable[..., PretrainConfig],
    tmp_path: Path,
) -> None:
    """Neither workers nor budgets change which cells share a minibatch; every figure is that of the plain loop."""
    vocabulary = GeneVocabulary.load_default()
    workers = {"num_workers": world_size, "zero_stage": stage}
    config = pretrain_config("mixed", train=train_keys, workers=workers)
    stream = open_stream(config.store, "cells", StreamOptions(config.tokenizer, 42, 16, "kind", cells_per_minibatch=4))
    model = config.model.build(vocabulary_size=vocabulary.size, num_labels=3)
    objective = MixedObjective(vocabulary.pad_id)
    torch.manual_seed(config.train.seed)
    plain = ScGPT(model, pad_id=vocabulary.pad_id)
    history = train(plain, objective, stream, config, NUM_STEPS)
    result = _run_ranks(_settings(config, model, objective), stream, world_size, tmp_path)
    for name, expected in plain.state_dict().items():
        torch.testing.assert_close(
            result[name], expected, rtol=1e-5, atol=2e-6, msg=lambda text, n=name: f"{n}: {text}"
        )
    figures = json.loads((tmp_path / "out.json").read_text())
    for step, (losses, expected) in enumerate(zip(figures["losses"], history, strict=True)):
        weights = objective.weights(step)
        assert losses.keys() == {"loss", *expected}
        assert losses["loss"] == pytest.approx(sum(expected.values()), rel=1e-4)
        assert {name: weights[name] * losses[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    whole = stream.read_step(NUM_STEPS - 1, rank=0, world_size=1)
    with torch.no_grad():
        judged = objective.judge(plain, objective.prepare(whole))
    assert len({int(figure.count) for figure in judged.values()}) == 2, "genes and cells"
    assert figures["judged"] == pytest.approx({name: float(found.mean) for name, found in judged.items()}, rel=1e-4)


@pytest.mark.parametrize(
    ("first", "then", "read"),
    [((2, 3), (1, 1), 2), ((2, 2), (2, 3), None), ((1, 0), (2, 3), 1)],
    ids=lambda value: "x".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_a_run_continues_at_another_world_size_and_stage(
    first: tuple[int, int],
    then: tuple[int, int],
    read: int | None,
    *,
    pretrain_config: Callable[..., PretrainConfig],
    stream: CorpusStream,
    tmp_path: Path,
) -> None:
    """Two steps, then one by other workers (number, ZeRO stage): the weights of three plain steps."""
    vocabulary = GeneVocabulary.load_default()
    objective = GenerativeObjective(GenerativeConfig(), vocabulary.pad_id)
    base = pretrain_config("restore")
    model = base.model.build(vocabulary_size=vocabulary.size, num_labels=0)
    results = []
    for number, (world_size, stage) in enumerate((first, then)):
        config = pretrain_config("restore", workers={"num_workers": world_size, "zero_stage": stage})
        settings = _settings(config, model, objective)
        resume = {"resume": tmp_path / "0", "read": read} if number else {}
        results.append(_run_ranks(settings, stream, world_size, tmp_path / str(number), stop=2 + number, **resume))
    torch.manual_seed(base.train.seed)
    plain = ScGPT(model, pad_id=vocabulary.pad_id)
    train(plain, objective, stream, base, NUM_STEPS)
    for name, expected in plain.state_dict().items():
        torch.testing.assert_close(results[1][name], expected, rtol=1e-5, atol=2e-6)
    saved = require_checkpoint(str(tmp_path / "0"), "run")
    written = saved.load_weights() | saved.load_moments()
    assert written.keys() == results[0].keys()
    for name, gathered in results[0].items():
        assert torch.equal(written[name], gathered), name


def test_learning_rate_warms_up_and_follows_the_cosine() -> None:
    config = OptimizerConfig(learning_rate=0.5, warmup_steps=4, final_share=0.1)
    rates = [learning_rate(config, step, 14) for step in range(15)]
    assert rates[:4] == [0.125, 0.25, 0.375, 0.5]
    assert rates[4] == 0.5
    assert rates[9] == pytest.approx(0.5 * (0.1 + 0.9 * 0.5))
    assert rates[14] == pytest.approx(0.05)
    assert all(math.isfinite(rate) and earlier >= rate for earlier, rate in itertools.pairwise(rates[4:]))
