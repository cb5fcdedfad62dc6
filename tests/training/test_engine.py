"""DeepSpeed with any number of workers, stage and accumulation takes the same steps as a plain torch loop."""

from __future__ import annotations

import itertools
import json
import math
import pickle
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from mixed_objective import MixedObjective
from processes import run_together
from rank_group import new_meeting
from reference_training import train
from safetensors.torch import load_file

from cytoray.corpus.stream import CorpusStream, open_stream
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.model.transformer import ScGPT
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.training.checkpoint import require_checkpoint
from cytoray.training.config import GenerativeConfig, OptimizerConfig, PretrainConfig
from cytoray.training.engine import learning_rate
from cytoray.training.loop import WorkerSettings
from cytoray.training.objectives import ClassificationObjective, GenerativeObjective, Objective

pytestmark = pytest.mark.timeout(900)
NUM_STEPS = 3
NEVER = 10**9
CASES = [  # world size, ZeRO stage, accumulation, task
    (2, 1, 1, "two passes"),
    (2, 1, 4, "two passes"),
    (2, 0, 2, "one pass"),
    (2, 3, 4, "two passes"),
    (1, 1, 1, "classification"),
    (2, 1, 1, "classification"),
    (1, 0, 1, "slow lower layers"),
    (2, 2, 1, "slow lower layers"),
    (2, 3, 2, "slow lower layers"),
    (2, 3, 1, "frozen lower layers"),
]
RATES = {"slow lower layers": {"layer_decay": 0.25}, "frozen lower layers": {"layer_decay": 0.5, "freeze_layers": 1}}
# (world size, ZeRO stage) of the first two steps and of the third, and how many files of slices each rank must read
CONTINUED = [((2, 3), (1, 1), 2), ((2, 2), (2, 3), None), ((1, 0), (2, 3), 1)]
MIXED = [  # world size, ZeRO stage, accumulation, maximum tokens per micro-batch
    (1, 1, 1, None),
    (2, 1, 4, None),
    (2, 2, 1, 30),
]
Job = tuple[WorkerSettings, CorpusStream, int, Path, Path | None]


@dataclass(frozen=True)
class Run:
    """The settings of a run, and its stream."""

    settings: WorkerSettings
    stream: CorpusStream

    def into(self, folder: Path, *, stop: int = NUM_STEPS, resume: Path | None = None) -> Job:
        """The job of ``training_rank.py`` that takes the steps up to ``stop``, continuing the run in ``resume``."""
        folder.mkdir()
        return self.settings, self.stream, stop, folder, resume

    def train_plainly(self) -> tuple[ScGPT, list[dict[str, float]]]:
        """The model after the same steps in torch alone, and the losses."""
        torch.manual_seed(self.settings.config.train.seed)
        plain = ScGPT(self.settings.model, pad_id=self.settings.pad_id)
        return plain, train(plain, self.settings.objective, self.stream, self.settings.config, NUM_STEPS)


@pytest.fixture(scope="module")
def build_mixed(
    make_config: Callable[[Path], Callable[..., PretrainConfig]], tmp_path_factory: Any
) -> Callable[..., Run]:
    """Build a run whose losses have counts of their own, over minibatches of four cells."""
    pretrain_config, vocabulary = make_config(tmp_path_factory.mktemp("journal")), GeneVocabulary.load_default()

    def build(world_size: int, stage: int, accumulation: int, budget: int | None) -> Run:
        train_keys = {"accumulation": accumulation} | ({} if budget is None else {"micro_batch_tokens": budget})
        config = pretrain_config("mixed", train=train_keys, workers={"num_workers": world_size, "zero_stage": stage})
        options = StreamOptions(config.tokenizer, 42, 16, "kind", cells_per_minibatch=4)
        model = config.model.build(vocabulary_size=vocabulary.size, num_labels=3)
        objective = MixedObjective(vocabulary.pad_id)
        settings = WorkerSettings(config, model, vocabulary.pad_id, objective, "manifest", "config", "uuid", None, None)
        return Run(settings, open_stream(config.store, "cells", options))

    return build


@pytest.fixture(scope="module")
def build_run(
    make_config: Callable[[Path], Callable[..., PretrainConfig]], tmp_path_factory: Any
) -> Callable[..., Run]:
    """Build a run of a world size, ZeRO stage, accumulation and task."""
    pretrain_config, vocabulary = make_config(tmp_path_factory.mktemp("journal")), GeneVocabulary.load_default()

    def build(world_size: int, stage: int, accumulation: int = 1, task: str = "two passes") -> Run:
        workers = {"num_workers": world_size, "zero_stage": stage}
        train_keys = {"accumulation": accumulation}
        config = pretrain_config("parity", train=train_keys, workers=workers, optimizer=RATES.get(task, {}))
        options = StreamOptions(config.tokenizer, 42, 16, style="generative", ratios=(0.25, 0.5, 0.75))
        generative = GenerativeConfig(second_pass_after=0 if task == "two passes" else NEVER)
        objective: Objective = GenerativeObjective(generative, vocabulary.pad_id)
        if task == "classification":
            options = StreamOptions(config.tokenizer, 42, 16, "kind")
            objective = ClassificationObjective(vocabulary.pad_id)
        stream = open_stream(config.store, "cells", options)
        model = config.model.build(vocabulary_size=vocabulary.size, num_labels=len(stream.labels))
        settings = WorkerSettings(config, model, vocabulary.pad_id, objective, "manifest", "config", "uuid", None, None)
        return Run(settings, stream)

    return build


def _run_ranks(jobs: Sequence[Job], world_size: int, folder: Path) -> None:
    """Run jobs one after another in real processes."""
    path = folder / "jobs"
    path.write_bytes(pickle.dumps(jobs))
    meeting = new_meeting(folder)
    script = Path(__file__).parents[1] / "helpers" / "training_rank.py"
    command = [sys.executable, str(script), str(path)]
    run_together([[*command, str(rank), str(world_size), meeting] for rank in range(world_size)], timeout_s=600)


@pytest.fixture(scope="module")
def folders(
    build_run: Callable[..., Run], build_mixed: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory
) -> dict[Any, Path]:
    """The folder of each case and of each continued run, all of them run by as few processes as that takes."""
    base = tmp_path_factory.mktemp("runs")
    found = {case: base / f"case{number}" for number, case in enumerate((*CASES, *CONTINUED, *MIXED))}
    first = {case: base / f"first{number}" for number, case in enumerate(CONTINUED)}
    parity: dict[int, list[Job]] = {1: [], 2: []}
    for case in CASES:
        parity[case[0]].append(build_run(*case).into(found[case]))
    for case in MIXED:
        parity[case[0]].append(build_mixed(*case).into(found[case]))
    one, two, back = (
        [build_run(*case[0]).into(first[case], stop=2), build_run(*case[1]).into(found[case], resume=first[case])]
        for case in (CONTINUED[2], CONTINUED[1], CONTINUED[0])
    )
    _run_ranks([*parity[1], one[0]], 1, base)
    _run_ranks([*parity[2], *two, one[1], back[0]], 2, base)
    _run_ranks([back[1]], 1, base)
    return found | {(case, "first"): folder for case, folder in first.items()}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_steps_equal_a_plain_torch_loop(case: Any, build_run: Callable[..., Run], folders: dict[Any, Path]) -> None:
    plain, history = build_run(*case).train_plainly()
    result = load_file(folders[case] / "out.safetensors")
    assert history[-1] != history[0]
    trained = {name for name, parameter in plain.named_parameters() if parameter.requires_grad}
    assert (len(trained) < len(dict(plain.named_parameters()))) == (case[3] == "frozen lower layers")
    assert {f"exp_avg.{name}" for name in trained} <= result.keys()
    for name, expected in plain.state_dict().items():
        torch.testing.assert_close(
            result[name], expected, rtol=1e-5, atol=2e-6, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("case", MIXED, ids=["one worker", "accumulation", "token budget"])
def test_each_loss_is_divided_by_its_own_count_over_fixed_minibatches(
    case: Any, build_mixed: Callable[..., Run], folders: dict[Any, Path]
) -> None:
    """Neither workers nor budgets change which cells share a minibatch; every figure is that of the plain loop."""
    run = build_mixed(*case)
    plain, history = run.train_plainly()
    result = load_file(folders[case] / "out.safetensors")
    for name, expected in plain.state_dict().items():
        torch.testing.assert_close(
            result[name], expected, rtol=1e-5, atol=2e-6, msg=lambda text, n=name: f"{n}: {text}"
        )
    figures, objective = json.loads((folders[case] / "out.json").read_text()), run.settings.objective
    for step, (losses, means) in enumerate(zip(figures["losses"], history, strict=True)):
        weights = objective.weights(step)
        assert losses.keys() == {"loss", *means}
        assert losses["loss"] == pytest.approx(sum(means.values()), rel=1e-4)
        assert {name: weights[name] * losses[name] for name in means} == pytest.approx(means, rel=1e-4)
    whole = run.stream.read_step(NUM_STEPS - 1, rank=0, world_size=1)
    with torch.no_grad():
        judged = objective.judge(plain, objective.prepare(whole))
    assert len({int(figure.count) for figure in judged.values()}) == 2, "genes and cells"
    assert figures["judged"] == pytest.approx({name: float(found.mean) for name, found in judged.items()}, rel=1e-4)


@pytest.mark.parametrize("case", CONTINUED, ids=str)
def test_a_run_continues_at_another_world_size_and_stage(
    case: Any, build_run: Callable[..., Run], folders: dict[Any, Path]
) -> None:
    """Two steps, then one by other workers (number, ZeRO stage): the weights of three plain steps."""
    plain, _ = build_run(*case[0]).train_plainly()
    result = load_file(folders[case] / "out.safetensors")
    for name, expected in plain.state_dict().items():
        torch.testing.assert_close(result[name], expected, rtol=1e-5, atol=2e-6)
    reads = {int((folders[case] / f"read.{rank}").read_text()) for rank in range(case[1][0])}
    assert case[2] is None or reads == {case[2]}
    saved = require_checkpoint(str(folders[case, "first"]), "run")
    written, gathered = (
        saved.load_weights() | saved.load_moments(),
        load_file(folders[case, "first"] / "out.safetensors"),
    )
    assert written.keys() == gathered.keys()
    for name, tensor in gathered.items():
        assert torch.equal(written[name], tensor), name


def test_learning_rate_warms_up_and_follows_the_cosine() -> None:
    config = OptimizerConfig(learning_rate=0.5, warmup_steps=4, final_share=0.1)
    rates = [learning_rate(config, step, 14) for step in range(15)]
    assert rates[:4] == [0.125, 0.25, 0.375, 0.5]
    assert rates[4] == 0.5
    assert rates[9] == pytest.approx(0.5 * (0.1 + 0.9 * 0.5))
    assert rates[14] == pytest.approx(0.05)
    assert all(math.isfinite(rate) and earlier >= rate for earlier, rate in itertools.pairwise(rates[4:]))
