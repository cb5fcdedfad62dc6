"""Engines of every ZeRO stage: updates that are not finite are skipped, and checkpoints restore exactly."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from engine_rank import CASES
from processes import run_together
from rank_group import new_meeting
from safetensors.torch import load_file
from torch import Tensor

from cytoray.training.checkpoint import require_checkpoint

pytestmark = pytest.mark.timeout(300)
IDS = [f"{stage}{precision}" for stage, precision in CASES]
Results = dict[str, dict[str, Tensor]]


def _run(folder: Path, world_size: int, *others: Path) -> list[dict[str, Tensor]]:
    """Run the ranks; return the results of each."""
    meeting = new_meeting(folder)
    script = Path(__file__).parents[1] / "helpers" / "engine_rank.py"
    rest = [str(world_size), meeting, str(folder / "out"), *map(str, others)]
    run_together([[sys.executable, str(script), str(rank), *rest] for rank in range(world_size)], timeout_s=240)
    return [load_file(f"{folder / 'out'}.{rank}") for rank in range(world_size)]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folder of the checkpoints by number of ranks."""
    return {world_size: tmp_path_factory.mktemp(f"world{world_size}") for world_size in (2, 1)}


@pytest.fixture(scope="module")
def found(stores: dict[int, Path]) -> dict[int, list[dict[str, Tensor]]]:
    """Results of the ranks by world size; one rank also restores the checkpoints of two."""
    return {2: _run(stores[2], 2), 1: _run(stores[1], 1, stores[2])}


def _of(found: dict[str, Tensor], case: str) -> Results:
    """Results of one case by its moments."""
    parts: Results = {}
    for key, tensor in found.items():
        name, moment, tensor_name = key.split("/", 2)
        if name == case:
            parts.setdefault(moment, {})[tensor_name] = tensor
    return parts


def _assert_same(results: dict[str, Tensor], wanted: dict[str, Tensor], *, far: float = 0.0) -> None:
    assert results.keys() == wanted.keys()
    for name, expected in wanted.items():
        torch.testing.assert_close(results[name], expected, rtol=far, atol=far, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("case", IDS)
def test_an_update_with_a_gradient_that_is_not_finite_is_skipped(
    case: str, world_size: int, found: dict[int, list[dict[str, Tensor]]]
) -> None:
    """The last rank's first micro-batch makes it not finite; later steps are unaffected."""
    for rank in found[world_size]:
        results = _of(rank, case)
        assert results["facts"]["applied"].tolist() == [True] * 7
        assert math.isinf(float(results["facts"]["norm"]))
        _assert_same(results["after nan"], results["before"])
        _assert_same(results["after inf"], results["before"])
        _assert_same(results["skipping"], results["smooth"])
        assert not torch.equal(results["smooth"]["0.weight"], results["before"]["0.weight"])
        assert float(results["smooth"]["num_updates"]) == 2


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("case", IDS)
def test_a_checkpoint_restores_bit_for_bit(
    case: str, world_size: int, found: dict[int, list[dict[str, Tensor]]], stores: dict[int, Path]
) -> None:
    """At the same stage from this rank's own file alone, at another stage, and from two ranks to one."""
    for rank in found[world_size]:
        results = _of(rank, case)
        _assert_same(results["restored 1"], results["skipping"])
        _assert_same(results["restored 2"], results["skipping"])
        if world_size == 1:
            _assert_same(results["restored 3"], _of(found[2][0], case)["skipping"])
            assert results["facts"]["reads"][2] == 2
        _assert_same(results["third step 1"], results["third step"])
        _assert_same(results["third step 2"], results["third step"], far=0.05 if case.endswith("bf16") else 1e-5)
        assert results["facts"]["reads"][0] == (world_size if case.startswith("0") else 1)
    saved = require_checkpoint(str(stores[world_size]), case)
    assert (saved.layout.world_size, saved.layout.zero_stage) == (world_size, int(case[0]))
    moments = {name: tensor for name, tensor in results["skipping"].items() if name.startswith("exp_avg")}
    _assert_same(saved.load_moments(), moments)
    weights = saved.load_weights()  # in fp32 whatever the precision, and the frozen ones too
    assert {"3.weight", "counter"} <= weights.keys()
    _assert_same(weights, {name: results["skipping"][name] for name in weights})
    if case.endswith("bf16"):
        assert not torch.equal(weights["0.weight"], weights["0.weight"].bfloat16().float()), "the fp32 masters"


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("case", [case for case in IDS if not case.startswith("3")])
def test_averages_are_those_of_the_fp32_weights(
    case: str, world_size: int, found: dict[int, list[dict[str, Tensor]]]
) -> None:
    """With bf16 too, whose weights are rounded; ranks agree, and so does an average that was saved and continued."""
    for rank in found[world_size]:
        results = _of(rank, case)
        expected = results["averages expected"]
        _assert_same(results["averages"], expected, far=1e-7)
        _assert_same(results["averages restarted"], expected, far=1e-7)
        _assert_same(results["swapped in"], expected, far=0.01 if case.endswith("bf16") else 1e-7)
        _assert_same(results["averages"], _of(found[world_size][0], case)["averages"])
        assert not torch.equal(expected["0.weight"], results["before"]["0.weight"])


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("case", IDS)
def test_a_checkpoint_is_restored_in_another_precision(
    case: str, world_size: int, found: dict[int, list[dict[str, Tensor]]]
) -> None:
    """From fp32 to bf16 the weights become the masters, from bf16 to fp32 the masters the weights."""
    for rank in found[world_size]:
        results = _of(rank, case)
        # Frozen weights have no masters: they are rounded to bf16.
        trained = {
            name: tensor for name, tensor in results["skipping"].items() if f"exp_avg.{name}" in results["skipping"]
        }
        moments = {name: tensor for name, tensor in results["skipping"].items() if name.startswith("exp_avg")}
        assert len(moments) == 2 * len(trained) > 0
        again = results["restored in another precision"]
        _assert_same({name: again[name] for name in trained | moments}, trained | moments)
        assert float(again["num_updates"]) == 2


@pytest.mark.parametrize("case", IDS)
def test_a_checkpoint_gathers_nothing(case: str, found: dict[int, list[dict[str, Tensor]]]) -> None:
    """At every stage each rank copies what it holds: no rank ever has the whole model of ZeRO 3 at once."""
    for rank in found[2]:
        snapshot, gathered = _of(rank, case)["facts"]["exchanged"].tolist()
        assert snapshot == 0
        assert gathered > 0 or not case.startswith("3"), "exchanges would have been counted"
