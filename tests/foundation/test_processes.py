"""The helper with which every test ends what it started: nothing is left, whatever state it was in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest
from processes import end_all, run_together, started

DEAF = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"
POLITE = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print('up', flush=True)
signal.pause()
"""
# Started with the code of a child and of a grandchild: each prints its pid below that of its parent.
LINK = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], stdout=subprocess.PIPE, text=True)
print(child.pid, child.stdout.readline().strip(), flush=True)
"""
WAIT = "import signal; signal.pause()"


def start(*codes: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", *codes], stdout=subprocess.PIPE, text=True, **options)


def read_pids(process: subprocess.Popen[str]) -> list[int]:
    """Of a child and a grandchild, which are alive."""
    pids = [int(word) for word in process.stdout.readline().split() if word != "up"]
    assert len(pids) == 2
    assert not any(map(is_gone, pids))
    return pids


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_process_that_has_ended_already_is_collected():
    process = start("")
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, its exit status not yet collected
    end_all(process)
    assert process.returncode == 0
    end_all(process)  # and a second time, when its pid means nothing any more
    with pytest.raises(psutil.NoSuchProcess):
        psutil.Process(process.pid)


def test_asked_first_a_process_ends_its_own_way():
    process = start(POLITE)
    process.stdout.readline()
    end_all(process, ask_s=20)
    assert process.returncode == 7


def test_one_that_ignores_sigterm_is_killed():
    process = start(DEAF)
    process.stdout.readline()
    end_all(process, ask_s=0.2)
    assert process.returncode == -signal.SIGKILL


def test_a_tree_is_ended_to_its_leaves():
    process = start(LINK + WAIT, LINK + WAIT, DEAF)
    pids = read_pids(process)
    end_all(process)
    assert all(map(is_gone, pids))


def test_a_session_whose_leader_died_first_is_ended_too():
    process = start(LINK + "os._exit(0)", LINK + WAIT, DEAF, start_new_session=True)
    pids = read_pids(process)
    process.wait()
    end_all(process)
    assert all(map(is_gone, pids))


def test_leaving_the_block_ends_the_process_even_after_an_error():
    with pytest.raises(ZeroDivisionError), started([sys.executable, "-c", DEAF], stdout=subprocess.PIPE) as process:
        raise ZeroDivisionError
    assert process.returncode == -signal.SIGKILL


def test_when_one_of_several_commands_hangs_none_is_left():
    pid_of = "import os; print(os.getpid(), flush=True);"
    with pytest.raises(subprocess.TimeoutExpired) as raised:
        run_together([[sys.executable, "-c", f"{pid_of} {DEAF}"]] * 2, timeout_s=2)
    assert is_gone(int(raised.value.output.split()[0]))
    assert run_together([[sys.executable, "-c", "print(1)"], [sys.executable, "-c", "print(2)"]], timeout_s=60) == [
        "1\n",
        "2\n",
    ]
    with pytest.raises(AssertionError, match="broken"):
        run_together([[sys.executable, "-c", "raise SystemExit('broken')"]], timeout_s=60)
