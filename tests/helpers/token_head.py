"""A token-protected Ray head of its own, the command line that talks to it, and an S3 server that its jobs reach."""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest
from chaos_head import BINARIES, Head, scratch_folder, started_head

from cytoray.cli import main

ROOT = Path(__file__).parents[2]
CYTORAY = "from cytoray.cli import main; main()"


@dataclass(frozen=True)
class Site:
    """A head, and the environment in which a user talks to it."""

    head: Head
    environment: dict[str, str]

    @contextmanager
    def started(self, *arguments: object, **variables: str) -> Iterator[subprocess.Popen[str]]:
        """``cytoray`` in the root of the checkout, ended when the block is left."""
        words = [sys.executable, "-c", CYTORAY, *map(str, arguments)]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(words, env=self.environment | variables, cwd=ROOT, **pipes) as process:
            try:
                yield process
            finally:
                process.kill()

    def drivers(self, module: str) -> list[psutil.Process]:
        """Processes of jobs that run ``python -m module``."""
        found = []
        for child in psutil.Process(self.head.process.pid).children(recursive=True):
            try:
                words = child.cmdline()
                if module in words and "python" in Path(words[0]).name:
                    found.append(child)
            except (psutil.NoSuchProcess, IndexError):
                continue
        return found

    def run(self, *arguments: object, code: int = 0, **variables: str) -> tuple[str, str]:
        """Run ``cytoray`` in this process, which has imported Ray, and return its output and its errors.

        Fails if its exit code is not ``code``.
        """
        out, err = io.StringIO(), io.StringIO()
        with (
            mock.patch.dict(os.environ, self.environment | variables, clear=True),
            mock.patch.object(sys, "argv", ["cytoray", *map(str, arguments)]),
            contextlib.chdir(ROOT),
            redirect_stdout(out),
            redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):
            main()
        printed, errors = out.getvalue(), err.getvalue()
        assert (ended.value.code or 0) == code, (arguments, ended.value.code, printed[-3000:], errors[-3000:])
        return printed, errors

    def json(self, *arguments: object, code: int = 0, **variables: str) -> Any:
        """Run ``cytoray … --json`` and return what it prints."""
        return json.loads(self.run(*arguments, "--json", code=code, **variables)[0])


@contextmanager
def token_site(variables: Mapping[str, str], *, num_cpus: int = 2) -> Iterator[Site]:
    """A head with a token, in an environment that has ``variables``; everything has ended afterwards."""
    with scratch_folder() as folder:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
        environment |= {"PATH": f"{BINARIES}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": str(folder), **variables}
        with started_head(environment, num_cpus=num_cpus) as head:
            yield Site(head, environment | {"RAY_API_SERVER_ADDRESS": head.dashboard})
