"""Every ZeRO stage, world size, accumulation and objective gives the gradients of a plain torch loop."""

from __future__ import annotations

import itertools
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from processes import run_together
from rank_group import new_meeting
from reference_training import mean_losses
from safetensors.torch import load_file

from cytoray.corpus.stream import open_stream
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.model.transformer import ScGPT
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.training.config import GenerativeConfig, PretrainConfig
from cytoray.training.loop import WorkerSettings
from cytoray.training.objectives import build_pretraining_objective
from cytoray.training.pretraining import build_model

STAGES, ACCUMULATIONS = (0, 1, 2, 3), (1, 4)
PASSES = {
    "one": GenerativeConfig(second_pass_after=None),
    "two": GenerativeConfig(),
    "masked": GenerativeConfig(style="masked"),
}
BOUND = 1e-6  # of the gradient as a whole
PARAMETER_BOUND = 5e-6  # of each parameter's: in a norm's weight large terms cancel, 1.5e-6 is seen in all stages


def _run(cases: object, world_size: int, folder: Path) -> dict[str, torch.Tensor]:
    """Gradients by ``world_size`` processes."""
    (folder / "cases").write_bytes(pickle.dumps(cases))
    meeting = new_meeting(folder)
    script, out = Path(__file__).parents[1] / "helpers" / "gradient_rank.py", folder / "out.safetensors"
    command = [sys.executable, str(script), str(folder / "cases")]
    run_together(
        [[*command, str(rank), str(world_size), meeting, str(out)] for rank in range(world_size)], timeout_s=280
    )
    return load_file(out)


@pytest.mark.parametrize("world_size", [1, 2])
def test_gradients_equal_a_plain_torch_loop(
    world_size: int,
    pretrain_config: Callable[..., PretrainConfig],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    vocabulary = GeneVocabulary.load_default()
    base = pretrain_config("gradients")
    cases, plain = {}, {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the ranks have it: another order of additions is worth 1e-6 by itself
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    for passes, learned in PASSES.items():
        options = StreamOptions(base.tokenizer, 42, 16, style=learned.style, ratios=(0.25, 0.5, 0.75))
        stream = open_stream(base.store, "cells", options)
        objective = build_pretraining_objective(learned, pad_id=vocabulary.pad_id)
        model = build_model(base.model_copy(update={"objective": learned}))
        torch.manual_seed(base.train.seed)
        reference = ScGPT(model, pad_id=vocabulary.pad_id)
        losses = mean_losses(reference, objective, stream.read_step(0, rank=0, world_size=1))
        sum(losses.values(), torch.zeros(())).backward()
        plain[passes] = {name: parameter.grad for name, parameter in reference.named_parameters()}
        for stage, accumulation in itertools.product(STAGES, ACCUMULATIONS):
            workers = {"num_workers": world_size, "zero_stage": stage}
            # A stage that gathers whole micro-batches must agree with one whose budget cuts them anew.
            train = {"accumulation": accumulation} if accumulation > 1 else {"micro_batch_tokens": 250}
            config = pretrain_config("gradients", train=train, workers=workers)
            settings = WorkerSettings(
                config, model, vocabulary.pad_id, objective, "manifest", "config", "uuid", None, None
            )
            cases[f"stage {stage}, accumulation {accumulation}, {passes}"] = (settings, stream)
    found = _run(cases, world_size, tmp_path)
    far = {}
    for case in cases:
        wanted = plain[case.rpartition(" ")[2]]
        got = {name: found[f"{case}/{name}"] for name in wanted}
        errors = {name: _relative([got[name]], [wanted[name]]) for name in wanted}
        errors = {name: error for name, error in errors.items() if not error <= PARAMETER_BOUND}
        whole = _relative(list(got.values()), list(wanted.values()))
        far |= {f"{case}: {name}": error for name, error in errors.items()}
        if not whole <= BOUND:
            far[case] = whole
    assert far == {}
    assert len(found) == sum(len(plain[case.rpartition(" ")[2]]) for case in cases)


def _relative(got: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """Length of the difference over the length of what is wanted; 1e-5 stands for none, which is rounding."""
    difference = torch.cat([(a - b).flatten() for a, b in zip(got, wanted, strict=True)]).norm()
    return float(difference / torch.cat([b.flatten() for b in wanted]).norm().clamp(min=1e-5))
