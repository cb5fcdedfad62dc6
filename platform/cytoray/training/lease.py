"""One driver a run: whoever starts a run holds its lease, so that the same name started twice does not train twice.

``<run>/leases/000001.json`` is put if absent and says who holds it; ``000001.beat`` is written every few seconds and
``000001.ended`` at the end. A lease without a beat for ``EXPIRES_S``, or of a process of this machine that is gone, is
taken over by the next number, which one of several takers gets.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from cytoray import storage
from cytoray.errors import ConflictError, NotFoundError, StorageError, TrainingError

logger = logging.getLogger(__name__)
BEAT_S = 10.0
EXPIRES_S = 60.0


@contextlib.contextmanager
def held(run_uri: str, run: str) -> Iterator[str]:
    """Hold the lease of a run inside the block; yields a name for this attempt.

    Where another machine held it and has not given it back, waits up to ``EXPIRES_S`` for a beat. Raises TrainingError
    where somebody else trains the run.
    """
    folder, attempt = storage.join(run_uri, "leases"), uuid.uuid4().hex[:12]
    number = _next_number(folder, run)
    here = storage.join(folder, f"{number:06d}")
    who = {"attempt": attempt, "host": socket.gethostname(), "boot": _boot(), "pid": os.getpid()}
    who["started"] = _start_of(os.getpid())
    try:
        storage.put_if_absent(f"{here}.json", json.dumps(who).encode())
    except ConflictError as error:
        raise _busy(run, "was started elsewhere at the same moment") from error
    over = threading.Event()
    thread = threading.Thread(target=_beat, args=(f"{here}.beat", over), name="cytoray-lease", daemon=True)
    thread.start()
    try:
        yield attempt
    finally:
        over.set()
        thread.join(timeout=5)
        try:
            storage.write_bytes(f"{here}.ended", b"")
        except StorageError as error:  # must not hide what ended the block; the next start sees that no beat comes
            logger.warning("the lease of run %s could not be given back: %s", run, error)


def _next_number(folder: str, run: str) -> int:
    """The number after the newest lease, which must be over."""
    objects = {item.rpartition("/")[2]: item for item in storage.list_files(folder)}
    numbers = [int(name.removesuffix(".json")) for name in objects if name.endswith(".json")]
    if not numbers:
        return 1
    newest = max(numbers)
    if f"{newest:06d}.ended" in objects:
        return newest + 1
    holder = json.loads(storage.read_bytes(objects[f"{newest:06d}.json"]))
    if (holder["host"], holder["boot"]) == (socket.gethostname(), _boot()):
        # Numbers of processes are given again; when it began tells whether it is the same one.
        if _start_of(holder["pid"]) != holder["started"] or holder["started"] is None:
            return newest + 1
    elif _is_silent(storage.join(folder, f"{newest:06d}.beat")):
        return newest + 1
    raise _busy(run, f"is being trained by process {holder['pid']} on {holder['host']}")


def _is_silent(beat: str) -> bool:
    """Whether no beat comes in the time in which one must; told by change, since clocks differ."""
    logger.warning("another machine has not given this run back: waiting up to %.0f s for a sign of it", EXPIRES_S)
    first, deadline = _read(beat), time.monotonic() + EXPIRES_S
    while time.monotonic() < deadline:
        time.sleep(min(BEAT_S / 4, max(0.0, deadline - time.monotonic())))
        if _read(beat) != first:
            return False
    return True


def _read(uri: str) -> bytes | None:
    try:
        return storage.read_bytes(uri)
    except NotFoundError:
        return None


def _beat(uri: str, over: threading.Event) -> None:
    """Write a changing object until it is over; a store that fails for a while costs beats, not the run."""
    number = 0
    while True:
        with contextlib.suppress(StorageError):
            storage.write_bytes(uri, str(number).encode())
        number += 1
        if over.wait(BEAT_S):
            return


def _busy(run: str, how: str) -> TrainingError:
    return TrainingError(
        f"Run {run!r} {how}.", remedy="Wait until that has ended, stop it, or use another run name.", run=run
    )


def _boot() -> str:
    """Which start of which machine this is; containers of one machine share it, their hosts' names differ."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def _start_of(pid: int) -> str | None:
    """When a process of this machine began, in ticks since the machine did; None if there is none that runs."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state == "Z" else fields[18]
