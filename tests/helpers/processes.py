"""End the processes that a test started, with everything below them, whatever state they are in."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import psutil

GONE_AFTER_S = 30.0


def end_all(*processes: subprocess.Popen[Any], ask_s: float = 0.0) -> None:
    """End processes and everything they started, and wait until all are gone; those that have ended are fine.

    With ``ask_s`` they first get SIGTERM and that long to leave; SIGKILL ends what is then left. Members are the
    descendants and, for a process that leads a session (``start_new_session``), all of its session: they are found
    even if the leader has died before them.
    """
    members = {member for process in processes for member in _members(process)}
    if ask_s:
        for process in processes:
            if process.poll() is None:
                process.terminate()
        _wait(members, ask_s)
    deadline = time.monotonic() + GONE_AFTER_S
    # A process may have started another one since the last look.
    while alive := {member for member in members if _is_alive(member)}:
        assert time.monotonic() < deadline, f"cannot end {alive}"
        for member in alive:
            _kill(member)
        _wait(alive, 1.0)
        members = alive | {member for process in processes for member in _members(process)}
    for process in processes:
        process.wait(GONE_AFTER_S)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


@contextmanager
def started(command: Sequence[str], *, ask_s: float = 0.0, **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process that has ended, with everything below it, when the block is left; ``options`` are those of Popen."""
    process: subprocess.Popen[Any] = subprocess.Popen(command, **{"start_new_session": True, **options})
    try:
        yield process
    finally:
        end_all(process, ask_s=ask_s)


def run_together(commands: Sequence[Sequence[str]], *, timeout_s: float) -> list[str]:
    """Run commands at the same time and return their output; fails if one ends with another exit code than 0."""
    with ExitStack() as stack:
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        running = [stack.enter_context(started(command, **pipes)) for command in commands]
        outputs = [process.communicate(timeout=timeout_s)[0] for process in running]
        codes = [process.returncode for process in running]
    assert codes == [0] * len(codes), outputs[0][-3000:] + outputs[-1][-3000:]
    return outputs


def _members(process: subprocess.Popen[Any]) -> set[psutil.Process]:
    """A process that may have ended, its descendants, and the session that it leads, if it leads one."""
    found: set[psutil.Process] = set()
    for pid in psutil.pids():
        try:
            if os.getsid(pid) == process.pid:
                found.add(psutil.Process(pid))
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    if process.poll() is None:
        try:
            leader = psutil.Process(process.pid)
            found |= {leader, *leader.children(recursive=True)}
        except psutil.NoSuchProcess:
            pass
    return found


def _is_alive(member: psutil.Process) -> bool:
    """Whether it still runs: whoever adopted a process may never collect its exit status."""
    try:
        return bool(member.is_running() and member.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _kill(member: psutil.Process) -> None:
    try:
        member.kill()
    except psutil.NoSuchProcess:
        return


def _wait(members: set[psutil.Process], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while any(map(_is_alive, members)) and time.monotonic() < deadline:
        time.sleep(0.02)
