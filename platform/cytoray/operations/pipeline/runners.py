"""Where a stage's job runs: in a process of this machine."""

from __future__ import annotations

import signal
import subprocess
import sys
from types import FrameType
from typing import Protocol

from cytoray.operations.pipeline.records import StageTask
from cytoray.operations.pipeline.stage_job import FOLLOW

MODULE = "cytoray.operations.pipeline.stage_job"


class Runner(Protocol):
    """Runs jobs of stages."""

    def run(self, task: StageTask) -> int:
        """Run the job of a task, which is in the store, to its end; returns its exit status.

        A job that this runner started before, and that still runs, is waited for.
        """

    @property
    def is_stopping(self) -> bool:
        """Whether the pipeline was asked to stop."""


class LocalRunner:
    """Runs each job in a process of its own, which stops when this one is asked to stop or dies."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._is_stopping = False

    @property
    def is_stopping(self) -> bool:
        """Whether this process got SIGTERM or Ctrl-C."""
        return self._is_stopping

    def run(self, task: StageTask) -> int:
        """Run the job; SIGTERM and Ctrl-C are passed on as SIGTERM, at which a training commits a checkpoint."""
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            command = [sys.executable, "-m", MODULE, task.uri, FOLLOW]
            # Its results are in the store, and what it prints belongs beside the log.
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=sys.stderr.fileno())
            if self._is_stopping:
                self._process.terminate()
            code = self._process.wait()
            assert self._process.stdin is not None, "a pipe was asked for"
            self._process.stdin.close()
            return code
        finally:
            self._process = None
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Pass a signal on."""
        self._is_stopping = True
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
