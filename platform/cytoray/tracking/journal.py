"""A run's journal: one JSON event per line on the local disk, written before anything is sent.

``<run_uuid>.cursor.json`` beside ``<run_uuid>.jsonl`` records how far the journal was shipped, and to which MLflow run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import math
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cytoray.errors import StorageError

Event = dict[str, Any]
_logger = logging.getLogger(__name__)


class Journal:
    """Appends events to one file. Each line is one write system call, so a killed process loses nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._failed, self.num_lost = False, 0  # events that could not be written
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            existing = path.read_bytes() if path.exists() else b""
            self._file = path.open("ab", buffering=0)
            if existing and not existing.endswith(b"\n"):  # a crash of the machine left a partial line: end it
                self._file.write(b"\n")
        except OSError as error:
            remedy = "Set journal_folder to a local folder that can be written."
            raise StorageError(f"The run journal {path} cannot be written: {error}.", remedy=remedy) from error
        self._seq = existing.count(b"\n")
        self.is_new = not existing

    def write(self, kind: str, **fields: Any) -> None:
        """Append one event. If the disk is full, the event is lost and this is logged; nothing is raised."""
        with self._lock:
            event = {"seq": self._seq, "time_ms": time.time_ns() // 1_000_000, "kind": kind, **fields}
            line = json.dumps(event, allow_nan=False, separators=(",", ":")) + "\n"
            try:
                self._file.write(line.encode())
            except OSError as error:
                if not self._failed:
                    _logger.error("run journal %s: events are being lost: %s", self.path, error)
                self._failed = True
                self.num_lost += 1
            self._seq += 1

    def fsync(self) -> None:
        """Flush the journal to the disk, in case the machine crashes."""
        with contextlib.suppress(OSError, ValueError):  # write() reports a full disk; or just closed
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@dataclass(frozen=True)
class Cursor:
    """Position up to which a journal was shipped to one store; ``store`` is a digest, as a URI may hold a password."""

    store: str
    mlflow_run_id: str | None = None
    offset: int = 0

    @classmethod
    def load(cls, journal: Path, *, uri: str) -> Cursor:
        """Load the cursor for the store at ``uri``; at the start if it is missing or belongs to another store."""
        fresh = cls(store=hashlib.sha256(uri.encode()).hexdigest()[:16])
        try:
            saved = cls(**json.loads(_cursor_path(journal).read_text()))
        except (OSError, ValueError, TypeError):
            return fresh
        return saved if saved.store == fresh.store else fresh

    def save(self, journal: Path) -> None:
        """Replace the cursor file atomically."""
        path = _cursor_path(journal)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(dataclasses.asdict(self)))
        temporary.replace(path)


def _cursor_path(journal: Path) -> Path:
    return journal.with_suffix(".cursor.json")


def read_events(journal: Path, *, offset: int = 0) -> Iterator[tuple[Event, int]]:
    """Yield each complete event from ``offset`` (bytes) with the offset after it; invalid lines are "torn"."""
    with journal.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return  # still being written
            offset += len(line)
            yield _parse(line), offset


def _parse(line: bytes) -> Event:
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    return event if isinstance(event, dict) and "kind" in event else {"kind": "torn"}


@contextlib.contextmanager
def shipping_lock(journal: Path) -> Iterator[bool]:
    """Lock this journal for shipping until the end of the block; yields whether the lock was free."""
    with journal.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def encode_number(value: float) -> float | str:
    """Encode NaN and infinities, which JSON lacks, as the strings ``nan``, ``inf`` and ``-inf``."""
    number = float(value)
    return number if math.isfinite(number) else str(number)
