"""The process that reads files from outside, as its parent sees it: asked by a line, answered in time or killed."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cytoray.errors import CorpusError
from cytoray.serving.confinement import ENVIRONMENT

MODULE = "cytoray.serving.confined.child"
MAX_ANSWER_BYTES = 4 * 2**30
_PIECE = 2**20
_DTYPES = {
    "gene_ids": "<i4",
    "values": "<f4",
    "indptr": "<i8",
    "cell_ids": "<u8",
    "rows": "<i8",
    "measured": "<i4",
}
#: The reader knows nothing else of what this process was started with: no tokens, no passwords.
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "NUMBA_CACHE_DIR")
_KEPT_FOR_S3 = ("AWS_", "CYTORAY_S3_")


@dataclass(frozen=True)
class ReaderLimits:
    """Limits of a process that reads files."""

    memory_bytes: int = 8 * 2**30  # of address space; its libraries take some 2 GiB of that
    cpu_s: float = 86_400.0
    answer_s: float = 600.0  # for each answer


class Reader:
    """A process that reads files; it ends with this one."""

    def __init__(self, limits: ReaderLimits, *, for_s3: bool) -> None:
        self.vocabulary: tuple[str, ...] = ()
        self._limits = limits
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE, json.dumps(asdict(limits) | {"network": for_s3})],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_environment(for_s3=for_s3),
            start_new_session=True, bufsize=0,
        )  # fmt: skip

    def ask(self, **request: Any) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """Return the answer to a request; raises CorpusError if it reports a problem, is late, or has ended."""
        assert self._process.stdin is not None
        deadline = time.monotonic() + self._limits.answer_s
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            size = int.from_bytes(self._read(8, deadline), "little")
            head = json.loads(self._read(size, deadline))
            arrays = {}
            for name, (kind, count) in dict(head["arrays"]).items():
                if _DTYPES.get(name) != kind or not isinstance(count, int) or count < 0:
                    raise ValueError(name)
                dtype = np.dtype(kind)
                arrays[name] = np.frombuffer(self._read(count * dtype.itemsize, deadline), dtype)
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            self.close()
            raise _ended() from error
        if "problem" in head:
            raise CorpusError(str(head["problem"]), remedy=str(head.get("remedy", "")))
        return head, arrays

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _read(self, size: int, deadline: float) -> bytes:
        """Read ``size`` bytes; raises OSError if they do not come in time, ValueError if they are too many."""
        assert self._process.stdout is not None
        if size > MAX_ANSWER_BYTES:
            raise ValueError("the answer is too long")
        file, data = self._process.stdout.fileno(), bytearray()
        while len(data) < size:
            ready, _, _ = select.select([file], [], [], max(deadline - time.monotonic(), 0))
            piece = os.read(file, min(size - len(data), _PIECE)) if ready else b""
            if not piece:
                raise OSError("no answer")
            data += piece
        return bytes(data)


@contextlib.contextmanager
def readers() -> Iterator[None]:
    """Let this process start readers, and end them when the block is left, or the one around it."""
    _BLOCKS.append(None)
    try:
        yield
    finally:
        _BLOCKS.pop()
        while _READERS and not _BLOCKS:
            _READERS.popitem()[1].close()


_BLOCKS: list[None] = []
_READERS: dict[tuple[ReaderLimits, bool], Reader] = {}


def ask_reader(
    limits: ReaderLimits, *, for_s3: bool, vocabulary: tuple[str, ...] = (), **request: Any
) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Ask the reader of this process, which is started if it is missing; see ``Reader.ask``.

    ``vocabulary`` are the tokens that the answer is about; they are sent if the reader has others.
    """
    key = (limits, for_s3)
    is_new = key not in _READERS
    reader = _READERS.get(key) or _READERS.setdefault(key, Reader(limits, for_s3=for_s3))
    try:
        if vocabulary and reader.vocabulary != vocabulary:
            reader.ask(do="vocabulary", tokens=vocabulary)
            reader.vocabulary = vocabulary
        return reader.ask(**request)
    except CorpusError as error:
        if not error.details.get("has_ended"):
            raise
        _READERS.pop(key, None)
        if is_new:
            raise
    return ask_reader(limits, for_s3=for_s3, vocabulary=vocabulary, **request)  # it may have ended for another reason


def _environment(*, for_s3: bool) -> dict[str, str]:
    prefixes = _KEPT_FOR_S3 if for_s3 else ()
    kept = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith(tuple(prefixes))}
    return {**kept, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _ended() -> CorpusError:
    return CorpusError(
        "The file could not be read: the process that reads it took too long, or ended unexpectedly.",
        remedy="It may be damaged, or need more memory than the service allows; take part of its cells.",
        has_ended=True,
    )
