"""Kill, stop, double or damage a training: it ends with the very weights of an undisturbed one, or says what to do."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import cytoray
from cytoray import failpoints
from cytoray.corpus import ingest as ingest_module
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tracking import TrackingConfig
from cytoray.training.checkpoint import latest_checkpoint
from cytoray.training.config import OptimizerConfig, PretrainConfig, ShapeConfig, TrainConfig, WorkersConfig

from .conftest import make_config

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.timeout(400)]
DRIVER = Path(__file__).parent.parent / "helpers" / "train_driver.py"
STEPS, EVERY, RUN = 12, 4, "run"
SOURCE = Path(cytoray.__file__).parent / "training"
POINTS = sorted(
    {name for file in SOURCE.rglob("*.py") for name in re.findall(r'failpoint\("(\w+\.\w+)"\)', file.read_text())}
)


@dataclass
class Training:
    """A training in another process."""

    process: subprocess.Popen[bytes]
    folder: Path

    @property
    def log(self) -> str:
        """What it has said on stderr."""
        return (self.folder / "stderr").read_text()

    def result(self, code: int = 0) -> dict[str, Any]:
        """What it wrote at its end, which must be with this exit code."""
        assert self.process.wait(240) == code, self.log[-3000:]
        found: dict[str, Any] = json.loads((self.folder / "result.json").read_text())
        return found


def _config(store: Path) -> PretrainConfig:
    return PretrainConfig(
        store=str(store), run=RUN, corpus="cells",
        model=ShapeConfig(width=16, num_heads=2, feedforward_width=16, num_layers=1, dropout=0.0),
        tokenizer=TokenizerConfig(max_length=41),
        train=TrainConfig(num_steps=STEPS, cells_per_step=16, checkpoint_every=EVERY),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2, epsilon=1e-3),
        workers=WorkersConfig(num_workers=2),
        tracking=TrackingConfig(uri="http://127.0.0.1:9", journal_folder=str(store / "journal")),
    )  # fmt: skip


def _start(store: Path, folder: Path, *, plan: str = "", once: Path | None = None) -> Training:
    """Start the run of ``store``, with failpoints."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(_config(store).model_dump_json())
    environment = {**os.environ, failpoints.VARIABLE: plan}
    if once is not None:
        once.mkdir()
        environment[failpoints.ONCE_VARIABLE] = str(once)
    command = [sys.executable, str(DRIVER), str(folder / "config.json"), str(folder / "result.json")]
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True
        )
    return Training(process, folder)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Training]]:
    """A function that starts a run, which is not left behind."""
    started: list[Training] = []

    def begin(store: Path, **options: Any) -> Training:
        started.append(_start(store, tmp_path / f"driver-{len(started)}", **options))
        return started[-1]

    yield begin
    for training in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(training.process.pid, signal.SIGKILL)
        training.process.wait()


@pytest.fixture(scope="module")
def corpus(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a corpus and no run."""
    folder = tmp_path_factory.mktemp("corpus")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest_module, "_map_tasks", lambda items, work, concurrency: map(work, items))
        ingest_module.ingest(make_config(folder, sources))
    return folder


@pytest.fixture(scope="module")
def unbroken(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of that store with a run which nothing disturbed."""
    folder = tmp_path_factory.mktemp("unbroken")
    store = Path(shutil.copytree(corpus, folder / "store"))
    assert _start(store, folder / "driver").result()["step"] == STEPS
    return store


@pytest.fixture
def store(corpus: Path, tmp_path: Path) -> Path:
    """A store of this test alone, with a corpus and no run."""
    return Path(shutil.copytree(corpus, tmp_path / "store"))


def _assert_equal(store: Path, unbroken: Path) -> None:
    """The last checkpoints hold the same weights, bit for bit."""
    found, expected = latest_checkpoint(str(store), RUN), latest_checkpoint(str(unbroken), RUN)
    assert found is not None
    assert expected is not None
    assert found.state.step == expected.state.step == STEPS
    weights, others = found.load_weights(), expected.load_weights()
    assert weights.keys() == others.keys()
    assert [name for name in weights if not torch.equal(weights[name], others[name])] == []


def _recovery_s(store: Path) -> float:
    """The longest time between two events of the run's journal, in seconds."""
    (journal,) = (store / "journal").rglob("*.jsonl")
    times = [json.loads(line)["time_ms"] for line in journal.read_text().splitlines()]
    return max(after - before for before, after in itertools.pairwise(times)) / 1000


def _wait_for_commit(store: Path, training: Training, step: int) -> None:
    commit, deadline = store / f"runs/{RUN}/checkpoints/step-{step:09d}/COMMIT.json", time.monotonic() + 120
    while not commit.exists():
        assert training.process.poll() is None, training.log[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_rank_is_replaced(point: str, start, store: Path, unbroken: Path, tmp_path: Path, outcome) -> None:
    nth = 6 if point == "train.after_step" else 2  # each after the first checkpoint
    found = start(store, plan=f"{point}=kill@{nth}", once=tmp_path / "once").result()
    assert [path.name for path in (tmp_path / "once").iterdir()] == [point]
    first, again = found["events"]
    assert first.endswith("at step 0")
    begun = int(re.findall(r"at step (\d+)", again)[0])
    assert begun in (EVERY, 2 * EVERY), "no more than one interval is lost"
    _assert_equal(store, unbroken)
    name = "T1" if point == "train.after_step" else "T3"
    outcome(f"{name} kill -9 of a rank at {point}", 1, f"on from step {begun} in {_recovery_s(store):.1f} s: equal")


def test_a_killed_driver_goes_on_when_run_again(start, store: Path, unbroken: Path, outcome) -> None:
    first = start(store, plan="train.after_step=sleep:0.5")
    _wait_for_commit(store, first, EVERY)
    os.kill(first.process.pid, signal.SIGKILL)
    assert first.process.wait() == -signal.SIGKILL
    killed = time.monotonic()
    found = start(store).result()
    assert not found["skipped"]
    begun = int(re.findall(r"at step (\d+)", found["events"][0])[0])
    assert EVERY <= begun < STEPS
    _assert_equal(store, unbroken)
    outcome(
        "T2 kill -9 of the driver", 1, f"run again from step {begun}, over in {time.monotonic() - killed:.1f} s: equal"
    )


def test_sigterm_commits_and_exits_75(start, store: Path, unbroken: Path, outcome) -> None:
    first = start(store, plan="train.after_step=sleep:0.7")
    _wait_for_commit(store, first, EVERY)
    os.kill(first.process.pid, signal.SIGTERM)
    stopped = first.result(75)
    assert stopped["error"] == "TrainingStoppedError"
    saved = latest_checkpoint(str(store), RUN)
    assert saved is not None
    assert EVERY <= saved.state.step < STEPS
    found = start(store).result()
    assert found["events"][0].endswith(f"at step {saved.state.step}")
    _assert_equal(store, unbroken)
    outcome("T11 SIGTERM to the driver", 1, f"exit 75 at step {saved.state.step}, run again: equal")


def test_of_two_starts_one_is_refused(start, store: Path, unbroken: Path, outcome) -> None:
    both = [start(store), start(store)]
    codes = [training.process.wait(240) for training in both]
    assert sorted(code == 0 for code in codes) == [False, True], [training.log[-2000:] for training in both]
    winner, loser = sorted(both, key=lambda training: training.process.returncode)
    refusal = loser.result(loser.process.returncode)
    assert refusal["error"] == "TrainingError"
    assert "use another run name" in refusal["remedy"]
    assert not winner.result()["skipped"]
    _assert_equal(store, unbroken)
    outcome("T12 one run started twice at once", 1, "one refused with a remedy, the other: equal")


def _damage(folder: Path, how: str) -> None:
    """Do one kind of harm to a checkpoint."""
    weights, commit = max(folder.rglob("*.safetensors"), key=lambda path: path.stat().st_size), folder / "COMMIT.json"
    data = weights.read_bytes()
    if how == "a flipped bit":
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif how == "a cut file":
        weights.write_bytes(data[: len(data) // 2])
    elif how == "a missing file":
        weights.unlink()
    else:
        commit.write_bytes(commit.read_bytes()[:40])


HARMS = ["a flipped bit", "a cut file", "a missing file", "a cut commit"]


@pytest.mark.parametrize("how", HARMS)
def test_a_damaged_checkpoint_is_passed_over(how: str, unbroken: Path, start, tmp_path: Path, caplog, outcome) -> None:
    store = Path(shutil.copytree(unbroken, tmp_path / "store"))
    _damage(store / f"runs/{RUN}/checkpoints/step-{STEPS:09d}", how)
    found = latest_checkpoint(str(store), RUN)
    assert found is not None
    assert found.state.step == STEPS - EVERY
    assert f"step-{STEPS:09d} is damaged, the one before is used" in caplog.text
    result = "the one before is used, said aloud"
    if how == HARMS[0]:  # all four go on from the same step: one whole run tells of all
        (store / f"runs/{RUN}/DONE.json").unlink()
        assert start(store).result()["events"][0].endswith(f"at step {found.state.step}")
        _assert_equal(store, unbroken)
        result += ": equal"
    outcome(f"T5 newest checkpoint with {how}", 1, result)
