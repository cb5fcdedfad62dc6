"""leave-cluster, the preStop hook of Ray's pods, with drivers that end well or not at all; with Ray: test_pod.py.

Each test has a namespace of processes, like a pod: the hook asks every driver that it sees to end.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.infra
HOOK = Path(__file__).parents[2] / "infra" / "docker" / "leave_cluster.py"
DRIVER = """
import pathlib, signal, sys, time
def leave(*_):
    time.sleep(1)  # a checkpoint
    pathlib.Path("committed").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, {handler})
pathlib.Path("up").touch()
time.sleep(60)
"""
POD = """
{python} -m jobs.pretrain --config x & driver=$!
{python} -c 'import time; time.sleep(60)' & other=$!
until test -e up; do sleep 0.05; done
{python} {hook} --grace-s {grace_s}
kill -0 $driver 2>/dev/null && echo driver runs
kill -0 $other && echo other runs
test -e committed && echo committed
kill -9 $driver 2>/dev/null; wait $driver; echo driver exit $?
"""


def live(folder: Path, *, handler: str, grace_s: float) -> str:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare")
    (folder / "jobs").mkdir()
    (folder / "jobs" / "pretrain.py").write_text(DRIVER.format(handler=handler), encoding="utf-8")
    script = POD.format(python=sys.executable, hook=HOOK, grace_s=grace_s)
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "/bin/bash", "-c", script]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_hook_waits_until_a_driver_has_committed(tmp_path: Path):
    output = live(tmp_path, handler="leave", grace_s=60)
    assert "SIGTERM to" in output
    assert "driver runs" not in output
    assert "other runs\ncommitted\ndriver exit 75" in output


def test_the_hook_does_not_wait_longer_than_the_pod_has(tmp_path: Path):
    output = live(tmp_path, handler="signal.SIG_IGN", grace_s=2)
    assert "1 still running\ndriver runs\nother runs\ndriver exit 137" in output
    assert "committed" not in output
