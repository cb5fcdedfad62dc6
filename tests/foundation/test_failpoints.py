"""Crash points that do nothing until a test switches them on, and then exactly what it says."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import uuid

import pytest

from cytoray.failpoints import ONCE_VARIABLE, VARIABLE, FailpointError, failpoint


def run(code: str, plan: str | None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    environment |= {VARIABLE: plan} if plan is not None else {}
    code = f"from cytoray.failpoints import failpoint\n{code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=280)


@pytest.fixture
def point() -> str:
    """A name that no other test has hit."""
    return f"test.before_{uuid.uuid4().hex}"


THREE_STEPS = "for step in range(1, 4):\n    failpoint('save.before_commit')\n    print(step, flush=True)"


@pytest.mark.parametrize("plan", [None, "", "save.before_commits=kill", "save=kill", "other.after_x=raise"])
def test_without_its_name_in_the_plan_nothing_happens(plan: str | None):
    finished = run(THREE_STEPS, plan)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "1\n2\n3\n", "")


@pytest.mark.parametrize("plan", ["save.before_commit=kill@2", "other=raise, save.before_commit=kill@2"])
def test_kill_at_the_second_hit_is_a_sigkill_then(plan: str):
    finished = run(THREE_STEPS, plan)
    assert finished.returncode == -signal.SIGKILL
    assert finished.stdout == "1\n"
    assert "failpoint save.before_commit fires: kill" in finished.stderr


def test_kill_without_a_number_is_at_the_first_hit():
    finished = run(THREE_STEPS, "save.before_commit=kill")
    assert (finished.returncode, finished.stdout) == (-signal.SIGKILL, "")


def test_raise_names_the_point(point: str, monkeypatch):
    monkeypatch.setenv(VARIABLE, f"{point}=raise")
    for _ in range(2):
        with pytest.raises(FailpointError) as caught:
            failpoint(point)
        assert caught.value.details == {"point": point}
        assert VARIABLE in caught.value.remedy


def test_enospc_is_what_a_full_disk_raises(point: str, monkeypatch):
    monkeypatch.setenv(VARIABLE, f"{point}=enospc@3")
    failpoint(point)
    failpoint(point)
    with pytest.raises(OSError, match="No space left") as caught:
        failpoint(point)
    assert caught.value.errno == errno.ENOSPC
    failpoint(point)


def test_two_entries_for_one_point_count_its_hits_once(point: str, monkeypatch):
    monkeypatch.setenv(VARIABLE, f"{point}=sleep:0@1,{point}=raise@2")
    failpoint(point)
    with pytest.raises(FailpointError):
        failpoint(point)
    failpoint(point)


def test_sleep_waits_as_long_as_told(point: str, monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr("cytoray.failpoints.time.sleep", slept.append)
    monkeypatch.setenv(VARIABLE, f"{point}=sleep:2.5")
    failpoint(point)
    failpoint(point)
    assert slept == [2.5, 2.5]


@pytest.mark.parametrize("action", ["explode", "", "kil"])
def test_an_unknown_action_is_the_testers_mistake(point: str, monkeypatch, action: str):
    monkeypatch.setenv(VARIABLE, f"{point}={action}")
    with pytest.raises(ValueError, match="unknown action") as caught:
        failpoint(point)
    assert point in str(caught.value)


def test_with_a_folder_a_point_fires_once_over_all_processes(tmp_path):
    environment = {**os.environ, VARIABLE: "save.before_commit=kill", ONCE_VARIABLE: str(tmp_path)}
    code = f"from cytoray.failpoints import failpoint\n{THREE_STEPS}"
    command = [sys.executable, "-c", code]
    outputs = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)
        outputs.append((done.returncode, done.stdout))
    assert outputs == [(-signal.SIGKILL, ""), (0, "1\n2\n3\n")]
    assert [path.name for path in tmp_path.iterdir()] == ["save.before_commit"]
