"""Kill, stop, double, hang or damage a run: it ends with the weights of an undisturbed one, or with a remedy."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from training_process import (
    EVERY,
    RUN,
    STEPS,
    Training,
    assert_equal,
    begun_at,
    recovery_s,
    wait_for_commit,
)

import cytoray
from cytoray.training.checkpoint import latest_checkpoint
from cytoray.training.commit import COMMIT, STATE

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.timeout(1500)]
SOURCE = Path(cytoray.__file__).parent / "training"
POINTS = sorted(  # of ranks; those of the driver and of the export are in test_crash_matrix.py
    {
        name
        for file in (SOURCE / "loop.py", SOURCE / "checkpoint.py")
        for name in re.findall(r'failpoint\("(\w+\.\w+)"\)', file.read_text())
    }
)
HARMS = ["a flipped bit", "a cut file", "a missing file", "a cut commit"]
Start = Callable[..., Training]
Outcome = Callable[[str, int, str], None]


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_rank_is_replaced(
    point: str, start: Start, store: Path, unbroken: Path, tmp_path: Path, outcome: Outcome
) -> None:
    nth = 6 if point == "train.after_step" else 2  # each after the first checkpoint
    training = start(store, plan=f"{point}=kill@{nth}", once=tmp_path / "once")
    first, again = training.result()["events"]
    assert [path.name for path in (tmp_path / "once").iterdir()] == [point]
    assert begun_at(first) == 0
    assert begun_at(again) in (EVERY, 2 * EVERY), "no more than one interval is lost"
    assert_equal(store, unbroken)
    name = "T1" if point == "train.after_step" else "T3"
    result = f"on from step {begun_at(again)} in {recovery_s(training):.1f} s: equal"
    outcome(f"{name} kill -9 of a rank at {point}", 1, result)


def test_a_killed_driver_continues_when_run_again(start: Start, store: Path, unbroken: Path, outcome: Outcome) -> None:
    first = start(store, plan="train.after_step=sleep:0.5")
    wait_for_commit(store, first, EVERY)
    os.kill(first.process.pid, signal.SIGKILL)
    assert first.process.wait() == -signal.SIGKILL
    killed = time.monotonic()
    found = start(store).result()
    assert not found["skipped"]
    begun = begun_at(found["events"][0])
    assert EVERY <= begun < STEPS
    assert_equal(store, unbroken)
    result = f"run again from step {begun}, over in {time.monotonic() - killed:.1f} s: equal"
    outcome("T2 kill -9 of the driver", 1, result)


def test_one_ranks_failing_upload_is_made_good(
    start: Start, store: Path, unbroken: Path, tmp_path: Path, outcome: Outcome
) -> None:
    training = start(store, plan="checkpoint.before_part=raise@2", once=tmp_path / "once")
    _, again = training.result()["events"]
    assert [path.name for path in (tmp_path / "once").iterdir()] == ["checkpoint.before_part"]
    assert begun_at(again) == EVERY, "a checkpoint without the part of one rank must not be committed"
    assert_equal(store, unbroken)
    outcome("T4 one rank's upload fails", 1, f"on from step {EVERY} in {recovery_s(training):.1f} s: equal")


def test_a_part_that_comes_too_late_restarts_the_workers(
    start: Start, store: Path, unbroken: Path, tmp_path: Path, outcome: Outcome
) -> None:
    """Rank 0 waits for it as long as for a collective; the run does not end with that error."""
    changes = {"workers": {"num_workers": 2, "collective_timeout_s": 20}}
    training = start(store, plan="checkpoint.before_part=sleep:60@2", once=tmp_path / "once", changes=changes)
    begins = [begun_at(event) for event in training.result()["events"]]
    assert begins == [0, EVERY]
    assert_equal(store, unbroken)
    outcome("T15 a rank's part comes too late", 1, f"on from step {EVERY} in {recovery_s(training):.1f} s: equal")


@pytest.mark.parametrize("how", HARMS)
def test_a_damaged_checkpoint_is_passed_over(
    how: str, unbroken: Path, start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture, outcome: Outcome
) -> None:
    store = Path(shutil.copytree(unbroken, tmp_path / "store"))
    _damage(store / f"runs/{RUN}/checkpoints/step-{STEPS:09d}", how)
    found = latest_checkpoint(str(store), RUN)
    assert found is not None
    assert found.state.step == STEPS - EVERY
    assert f"step-{STEPS:09d} is damaged, the previous one is used" in caplog.text
    result = "the previous one is used, with a warning"
    if how == HARMS[0]:  # all four continue from the same step: one whole run is enough
        (store / f"runs/{RUN}/DONE.json").unlink()
        damaged, begun = start(store).result()["events"]
        assert "is damaged" in damaged
        assert begun_at(begun) == found.state.step
        assert_equal(store, unbroken)
        result += ": equal"
    outcome(f"T5 newest checkpoint with {how}", 1, result)


def _damage(folder: Path, how: str) -> None:
    """Do one kind of harm to a checkpoint."""
    weights, commit = max(folder.rglob("*.safetensors"), key=lambda path: path.stat().st_size), folder / COMMIT
    data = weights.read_bytes()
    if how == "a flipped bit":
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif how == "a cut file":
        weights.write_bytes(data[: len(data) // 2])
    elif how == "a missing file":
        weights.unlink()
    else:
        commit.write_bytes(commit.read_bytes()[:40])


def test_a_hung_rank_is_given_up(start: Start, store: Path, unbroken: Path, outcome: Outcome) -> None:
    changes = {"workers": {"num_workers": 2, "collective_timeout_s": 20}}
    training = start(store, plan="train.after_step=sleep:0.5", changes=changes)
    wait_for_commit(store, training, EVERY)
    training.ranks()[-1].send_signal(signal.SIGSTOP)
    first, again = training.result()["events"]
    assert (begun_at(first), begun_at(again)) == (0, EVERY)
    assert_equal(store, unbroken)
    outcome("T8 a rank hangs", 1, f"on from step {EVERY} in {recovery_s(training):.1f} s, 20 of them waited: equal")


def test_a_gradient_that_is_not_finite_ends_the_run_with_its_cells(start: Start, store: Path, outcome: Outcome) -> None:
    optimizer = {"learning_rate": 1e30, "warmup_steps": 0}  # after one step nothing is finite any more
    training = start(store, changes={"optimizer": optimizer, "train": {"max_skipped_steps": 2}})
    error = training.result(2)
    assert error["error"] == "TrainingError"
    assert "the last of 3 in a row" in error["text"]
    assert "Cells of that step: " in error["text"]
    assert "optimizer.learning_rate" in error["remedy"]
    outcome("T9 gradients that are not finite", 3, "skipped, then an error with the cells and a remedy")


def test_sigterm_commits_and_exits_75(start: Start, store: Path, unbroken: Path, outcome: Outcome) -> None:
    first = start(store, plan="train.after_step=sleep:0.7")
    wait_for_commit(store, first, EVERY)
    os.kill(first.process.pid, signal.SIGTERM)
    stopped = first.result(75)
    assert stopped["error"] == "TrainingStoppedError"
    saved = latest_checkpoint(str(store), RUN)
    assert saved is not None
    assert EVERY <= saved.state.step < STEPS
    assert begun_at(start(store).result()["events"][0]) == saved.state.step
    assert_equal(store, unbroken)
    outcome("T11 SIGTERM to the driver", 1, f"exit 75 at step {saved.state.step}, run again: equal")


def test_of_two_starts_one_is_refused(start: Start, store: Path, unbroken: Path, outcome: Outcome) -> None:
    both = [start(store), start(store)]
    codes = [training.process.wait(240) for training in both]
    assert sorted(code == 0 for code in codes) == [False, True], [training.log[-2000:] for training in both]
    winner, loser = sorted(both, key=lambda training: training.process.returncode)
    refusal = loser.result(loser.process.returncode)
    assert refusal["error"] == "TrainingError"
    assert "use another run name" in refusal["remedy"]
    assert not winner.result()["skipped"]
    assert_equal(store, unbroken)
    outcome("T12 one run started twice at once", 1, "one refused with a remedy, the other: equal")


def test_other_versions_are_reported(start: Start, unbroken: Path, tmp_path: Path, outcome: Outcome) -> None:
    store = Path(shutil.copytree(unbroken, tmp_path / "store"))
    run = store / f"runs/{RUN}"
    (run / "DONE.json").unlink()
    shutil.rmtree(run / f"checkpoints/step-{STEPS:09d}")
    folder = run / f"checkpoints/step-{STEPS - EVERY:09d}"
    state, commit = (json.loads((folder / name).read_text()) for name in (STATE, COMMIT))
    state["versions"] |= {"torch": "1.0.0", "ray": "1.0.0"}
    (folder / STATE).write_text(json.dumps(state))
    commit["files"][STATE] = hashlib.sha256((folder / STATE).read_bytes()).hexdigest()
    (folder / COMMIT).write_text(json.dumps(commit))
    warned = [event for event in start(store).result()["events"] if "was written with" in event]
    assert {name for name in ("torch", "ray") for event in warned if f"{name} 1.0.0" in event} == {"torch", "ray"}
    assert_equal(store, unbroken)
    outcome("T13 a checkpoint of other versions", len(warned), "named in a warning: equal")


def test_a_lost_node_leaves_fewer_workers_and_the_same_order(
    start: Start, store: Path, unbroken: Path, outcome: Outcome
) -> None:
    workers = {"num_workers": [1, 2], "cpus_per_worker": 1.5}
    first = start(store, plan="train.after_step=sleep:0.7", changes={"workers": workers}, nodes=2)
    wait_for_commit(store, first, EVERY)
    (first.folder / "lose-a-node").touch()
    wait_for_commit(store, first, 2 * EVERY)
    alone = latest_checkpoint(str(store), RUN)
    assert alone is not None
    assert alone.state.world_size == 1
    os.kill(first.process.pid, signal.SIGTERM)
    first.result(75)
    events = start(store, changes={"workers": {"num_workers": 2}}).result()["events"]
    assert "started with 2 workers" in events[0]
    found, expected = latest_checkpoint(str(store), RUN), latest_checkpoint(str(unbroken), RUN)
    assert found is not None
    assert expected is not None
    losses, others = ([point["loss"] for point in saved.state.history] for saved in (found, expected))
    assert losses == pytest.approx(others, rel=1e-6)
    weights, others_ = found.load_weights(), expected.load_weights()
    worst = max(float((weights[name] - others_[name]).abs().max()) for name in weights)
    assert worst < 1e-4
    assert torch.isfinite(torch.tensor(losses)).all()
    outcome("T14 a node lost: workers 2, 1, 2", 1, f"on in {recovery_s(first):.1f} s; weights within {worst:.0e}")
