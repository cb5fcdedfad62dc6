"""Read h5ad files in confined processes like the service, but forked from one that has h5py, so that each takes 10 ms.

Run as a script it is that process: for each file on its input it forks one that runs the sandbox's ``main``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_HEAD = struct.Struct("<iqq")  # status of the process, its peak memory in bytes, length of what it wrote


@dataclass
class Forks:
    """Reads files in processes of their own; ``peak_bytes`` is the largest of their peak memories."""

    process: subprocess.Popen[bytes]
    peak_bytes: int = 0

    def read(self, body: bytes) -> tuple[int, bytes]:
        """Return the status (negative: killed by that signal) of the process that read a file, and what it wrote."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(struct.pack("<q", len(body)) + body)
        self.process.stdin.flush()
        status, peak, length = _HEAD.unpack(self.process.stdout.read(_HEAD.size))
        self.peak_bytes = max(self.peak_bytes, peak)
        return status, self.process.stdout.read(length)


@contextmanager
def start_forks(asked: dict[str, Any], environment: dict[str, str]) -> Iterator[Forks]:
    """Start the process with h5py; ``asked`` are the arguments of the sandbox."""
    from cytoray.serving.payloads import h5ad_cells

    script = Path(h5ad_cells.__file__).with_name("h5ad_sandbox.py")
    command = [sys.executable, "-I", __file__, str(script), json.dumps(asked)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=environment, cwd="/", **pipes) as process:
        yield Forks(process)


def _serve(sandbox: Any, asked: str) -> None:
    source, target = sys.stdin.buffer, sys.stdout.buffer
    while head := source.read(8):
        body = source.read(struct.unpack("<q", head)[0])
        with os.fdopen(os.memfd_create("source"), "w+b") as given, os.fdopen(os.memfd_create("target"), "w+b") as made:
            given.write(body)
            given.flush()
            status, peak = _fork(sandbox, given, made, asked)
            made.seek(0)
            written = made.read()
        target.write(_HEAD.pack(status, peak, len(written)) + written)
        target.flush()


def _fork(sandbox: Any, given: IO[bytes], made: IO[bytes], asked: str) -> tuple[int, int]:
    process = os.fork()
    if process == 0:
        try:
            sys.argv[1:] = [str(given.fileno()), str(made.fileno()), asked]
            sandbox.main()
        finally:
            os._exit(1)  # main ends by itself
    _, status, usage = os.wait4(process, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024


def _load(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("h5ad_sandbox", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    _serve(_load(sys.argv[1]), sys.argv[2])
