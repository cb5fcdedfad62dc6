"""One driver per run: whoever starts a run holds its lease, so that the same name started twice does not train twice.

``<run>/leases/000001.json`` is put if absent and names the holder; ``000001.beat`` is written every few seconds and
``000001.ended`` at the end. A lease without a beat for ``EXPIRES_S``, or of a process of this machine that no longer
exists, is taken over by putting the next number. That number is a fencing token: a holder that finds a higher one
(at each beat, before it writes a checkpoint and before it commits one) has lost the run and stops.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cytoray import storage
from cytoray.errors import ConflictError, NotFoundError, StorageError, TrainingError

logger = logging.getLogger(__name__)
BEAT_S = 10.0
EXPIRES_S = 60.0
_PLACE = ("host", "boot", "pid_namespace")  # processes that share all three see each other's ids


class LeaseLostError(TrainingError):
    """Another driver has taken the run over."""


@dataclass(frozen=True)
class Lease:
    """The right to write to a run, held until a higher number appears; workers receive a copy."""

    run: str
    folder: str
    number: int

    def check(self) -> None:
        """Raise LeaseLostError if another driver has taken the run over."""
        newest = max(_numbers(self.folder), default=0)
        if newest > self.number:
            holder = _read_holder(self.folder, newest)
            raise LeaseLostError(
                f"Run {self.run!r} was taken over by process {holder['pid']} on {holder['host']} (lease {newest}, this "
                f"is lease {self.number}), so this process has stopped and commits nothing more.",
                remedy="Let that process finish, or use another run name for this one.",
                run=self.run,
                lease=self.number,
                newer=newest,
            )


@dataclass(frozen=True)
class Holder:
    """A lease while it is held; ``lost`` is set when a beat finds that it was taken over."""

    lease: Lease
    lost: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def held(run_uri: str, run: str) -> Iterator[Holder]:
    """Hold the lease of a run inside the block.

    If the newest lease was neither ended nor held by a process that this one can see, waits up to ``EXPIRES_S`` for a
    beat of its holder. Raises TrainingError if another process trains the run.
    """
    folder = storage.join(run_uri, "leases")
    holder = Holder(Lease(run, folder, _next_number(folder, run)))
    here = _lease_uri(holder.lease)
    who = {"attempt": uuid.uuid4().hex[:12], **_place(), "pid": os.getpid(), "started": _start_of(os.getpid())}
    try:
        storage.put_if_absent(f"{here}.json", json.dumps(who).encode())
    except ConflictError as error:
        raise _busy(run, "was started elsewhere at the same moment") from error
    over = threading.Event()
    thread = threading.Thread(target=_beat, args=(holder, over), name="cytoray-lease", daemon=True)
    thread.start()
    try:
        yield holder
    finally:
        over.set()
        thread.join(timeout=5)
        try:
            storage.write_bytes(f"{here}.ended", b"")
        except StorageError as error:  # must not hide what ended the block; the next start sees that no beat comes
            logger.warning("the lease of run %s could not be given back: %s", run, error)


def _next_number(folder: str, run: str) -> int:
    """The number after the newest lease, which must be over."""
    newest = max(_numbers(folder), default=0)
    if newest == 0 or storage.exists(storage.join(folder, f"{newest:06d}.ended")):
        return newest + 1
    holder = _read_holder(folder, newest)
    if _is_visible(holder):
        # Process ids are used again; its start time shows whether it is the same process.
        is_over = _start_of(holder["pid"]) != holder["started"]
    else:
        is_over = _is_silent(storage.join(folder, f"{newest:06d}.beat"))
    if is_over:
        return newest + 1
    raise _busy(run, f"is being trained by process {holder['pid']} on {holder['host']}")


def _numbers(folder: str) -> list[int]:
    """Numbers of all leases of a run."""
    names = [uri.rpartition("/")[2] for uri in storage.list_files(folder)]
    return [int(name.removesuffix(".json")) for name in names if name.endswith(".json")]


def _read_holder(folder: str, number: int) -> dict[str, Any]:
    """The process that put a lease."""
    return dict(json.loads(storage.read_bytes(storage.join(folder, f"{number:06d}.json"))))


def _lease_uri(lease: Lease) -> str:
    """The objects of a lease, without their suffix."""
    return storage.join(lease.folder, f"{lease.number:06d}")


def _is_visible(holder: dict[str, Any]) -> bool:
    """Whether a process of the holder's place can be looked up here; pods may share a host's name and boot id."""
    here = _place()
    return all(here.values()) and all(holder.get(name) == here[name] for name in _PLACE)


def _is_silent(beat: str) -> bool:
    """Whether no beat comes in the time in which one must; judged by change, since clocks differ."""
    logger.warning("another process has not given this run back: waiting up to %.0f s for a beat of it", EXPIRES_S)
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


def _beat(holder: Holder, over: threading.Event) -> None:
    """Write a changing object until the block ends or the lease is lost; a failing store costs beats, not the run."""
    number = 0
    while True:
        try:
            storage.write_bytes(f"{_lease_uri(holder.lease)}.beat", str(number).encode())
            holder.lease.check()
        except LeaseLostError as error:
            logger.error("%s", error)
            holder.lost.set()
            return
        except StorageError as error:
            logger.warning("run %s: a beat of its lease failed: %s", holder.lease.run, error)
        number += 1
        if over.wait(BEAT_S):
            return


def _busy(run: str, how: str) -> TrainingError:
    return TrainingError(
        f"Run {run!r} {how}.", remedy="Wait until that has ended, stop it, or use another run name.", run=run
    )


def _place() -> dict[str, str]:
    """Names of this machine, of its current boot and of this process's pid namespace; empty if not known."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    return {
        "host": socket.gethostname(),
        "boot": boot.read_text().strip() if boot.exists() else "",
        "pid_namespace": os.readlink(namespace) if namespace.is_symlink() else "",
    }


def _start_of(pid: int) -> str | None:
    """When a process of this machine began, in ticks since the machine did; None if no such process runs."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state == "Z" else fields[18]
