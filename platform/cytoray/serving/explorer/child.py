"""Work on a session in a process of its own, with limits: the model's process never opens a file from outside."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cytoray.errors import CorpusError, CytorayError
from cytoray.serving.confinement import ENVIRONMENT, confine_reader

FAILED = 2  # exit status of a process whose last line names the problem
LOG = "child.log"
MAX_LINE = 2**20
Report = Callable[[dict[str, Any]], None]


async def run_child(
    module: str, folder: Path, *, max_memory_bytes: int, max_step_s: float, report: Report, **options: Any
) -> None:
    """Run ``python -m MODULE`` on a session's folder; ``report`` gets each of its messages.

    Raises the CytorayError that the process reports, or one that says how it ended.
    """
    limits = {"max_memory_bytes": max_memory_bytes, "max_step_s": max_step_s}
    command = (sys.executable, "-m", module, str(folder), json.dumps(options | limits))
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with (folder / LOG).open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=log,
            env=environment, start_new_session=True, limit=MAX_LINE,
        )  # fmt: skip
    last: dict[str, Any] = {}
    try:
        async with asyncio.timeout(max_step_s):
            assert process.stdout is not None
            async for line in process.stdout:
                last = json.loads(line)
                report(last)
            await process.wait()
    except TimeoutError as error:
        raise CorpusError(
            f"The file was not done within {max_step_s:g} s.", remedy="Take part of its cells."
        ) from error
    finally:
        await _end(process)
    _raise_failure(process.returncode, last)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill what is left of a process and wait for it."""
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _raise_failure(status: int | None, last: dict[str, Any]) -> None:
    """Raise CorpusError unless a process ended well."""
    if status == 0:
        return
    if status == FAILED and "problem" in last:
        raise CorpusError(last["problem"], remedy=last["remedy"])
    raise CorpusError(
        "The file could not be read: the process that reads it ended unexpectedly.",
        remedy="It may be damaged, or need more memory than the service allows; take part of its cells.",
        status=status,
    )


def child_main(work: Callable[[Path, dict[str, Any], Report], None]) -> None:
    """Do ``work(folder, options, report)`` in this process, which `run_child` started; exits with its outcome."""
    folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    network = "://" in options.get("uri", "")  # a demo in a store; what was uploaded is a local file
    confine_reader(memory_bytes=options["max_memory_bytes"], seconds=options["max_step_s"], network=network)
    try:
        work(folder, options, _print)
    except CytorayError as error:
        _print({"problem": error.problem, "remedy": error.remedy})
        sys.exit(FAILED)
    except MemoryError:
        _print({"problem": "The file needs more memory than the service allows.", "remedy": "Take part of its cells."})
        sys.exit(FAILED)


def _print(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()
