"""Kill a perturbation fine-tuning and run it again: weights and validation are those of an undisturbed run."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from planted_generator import build_settings, save_base, write_screen
from training_process import EVERY, RUN, STEPS, Training, assert_equal, begun_at, start_run, wait_for_commit

from cytoray.tasks.perturbation.config import FinetunePerturbationConfig
from cytoray.training.checkpoint import latest_checkpoint

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.timeout(1500)]
Begin = Callable[..., Training]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """A function that starts the fine-tuning of a store in a process of its own."""
    base, started = save_base(tmp_path), []

    def start(store: Path, *, plan: str = "") -> Training:
        number = len(started)
        settings = build_settings(str(store), base, tmp_path / f"journal-{store.name}")
        settings["perturbation"] |= {"loss": "weighted", "balanced": True, "max_tokens": 12}
        config = FinetunePerturbationConfig.model_validate(settings, strict=False)
        started.append(start_run(config, tmp_path / f"driver-{number}", plan=plan))
        return started[-1]

    yield start
    for training in started:
        training.stop_at_once()


def test_a_killed_perturbation_finetuning_ends_as_an_unbroken_one(
    begin: Begin, tmp_path: Path, outcome: Callable[[str, int, str], None]
) -> None:
    unbroken, store = tmp_path / "unbroken", tmp_path / "store"
    write_screen(str(unbroken))
    write_screen(str(store))
    assert begin(unbroken).result()["step"] == STEPS
    first = begin(store, plan="train.after_step=sleep:0.5")
    wait_for_commit(store, first, EVERY)
    os.kill(first.process.pid, signal.SIGKILL)
    assert first.process.wait() == -signal.SIGKILL
    begun = begun_at(begin(store).result()["events"][0])
    assert EVERY <= begun < STEPS
    assert_equal(store, unbroken)
    found, expected = (latest_checkpoint(str(each), RUN) for each in (store, unbroken))
    assert found is not None
    assert expected is not None
    assert found.state.validation == expected.state.validation
    outcome("T20 kill -9 of a perturbation fine-tuning", 1, f"run again from step {begun}: equal, validation too")
