"""Protocols in processes of their own, each of which a failpoint may kill: ``python crash_driver.py`` serves them.

Each line of stdin asks for one (``Driver`` writes them); the process that reads them has imported everything, and forks
for each, since the imports of a scenario take ten times as long as the scenario. Mode ``run`` does the protocol from
the beginning; ``recover`` first looks at what is visible, does it again, looks once more and tidies up.
``FOLDER/result.json`` gets the result, and how often each failpoint was passed.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cytoray import failpoints

TIMEOUT_S = 280  # of a scenario
# What the scenarios would import in each fork.
PRELOADED = (
    "cytoray.corpus.ingest", "cytoray.operations.pipeline.page", "cytoray.operations.pipeline.reading",
    "cytoray.operations.pipeline.runners", "cytoray.operations.pipeline.running", "cytoray.serving.hosting.loading",
    "cytoray.serving.rollout.building", "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
)  # fmt: skip


@dataclass(frozen=True)
class Scenario:
    """A protocol with a deterministic result that may be killed and done again.

    Attributes:
        run: Does it, or what is missing of it; returns what has to be equal.
        look: Fails if a reader would see something that is not whole.
        tidy: Collects garbage, and fails if something is left that nothing refers to.
        points: Prefixes of its failpoints.
    """

    run: Callable[[Path, Path], Any]
    look: Callable[[Path], None]
    tidy: Callable[[Path], None]
    points: tuple[str, ...]


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, negative for a signal, and what it printed."""

    code: int
    log: str


@dataclass
class Driver:
    """The process that forks, as its parent sees it."""

    process: subprocess.Popen[str]
    shared: Path  # inputs of all scenarios

    def run(self, scenario: str, folder: Path, mode: str = "run", **environment: str) -> Ended:
        """Do a scenario in a process with these variables, and wait until it has ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        folder.mkdir(parents=True, exist_ok=True)
        log = folder.with_name(f"{folder.name}-{mode}.log")
        words = {"name": scenario, "folder": str(folder), "shared": str(self.shared), "mode": mode}
        self.process.stdin.write(json.dumps({"log": str(log), "environment": environment, "words": words}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        return Ended(int(answer), log.read_text())

    def result(self, scenario: str, folder: Path, mode: str = "run", **environment: str) -> dict[str, Any]:
        """Do a scenario that is not killed; returns its result."""
        ended = self.run(scenario, folder, mode, **environment)
        assert ended.code == 0, ended.log[-4000:]
        found: dict[str, Any] = json.loads((folder / "result.json").read_text())
        return found


@contextmanager
def started_driver(shared: Path) -> Iterator[Driver]:
    """A driver, which has ended with everything below it when the block is left."""
    from processes import started

    hidden = (failpoints.VARIABLE, failpoints.ONCE_VARIABLE)
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    command, pipe = [sys.executable, "-W", "ignore", __file__], subprocess.PIPE
    with started(command, env=environment, stdin=pipe, stdout=pipe, text=True) as process:
        yield Driver(process, shared)


def find_scenarios() -> dict[str, Scenario]:
    """All scenarios by name."""
    import crash_registry
    import crash_stores

    return {**crash_stores.SCENARIOS, **crash_registry.SCENARIOS}


def perform(*, name: str, folder: Path, shared: Path, mode: str) -> None:
    """Do one scenario."""
    scenario = find_scenarios()[name]
    if mode == "recover":
        scenario.look(folder)
    found = scenario.run(folder, shared)
    hits = dict(failpoints._hits)
    if mode == "recover":
        scenario.look(folder)
        scenario.tidy(folder)
        scenario.look(folder)
    (folder / "result.json").write_text(json.dumps({"result": found, "hits": hits}, sort_keys=True))


def serve() -> None:
    """Fork for each line of stdin; its exit code is a line of stdout."""
    find_scenarios()
    for module in PRELOADED:
        importlib.import_module(module)
    for line in sys.stdin:
        assert threading.active_count() == 1, "a thread would not be there in the forks"
        request = json.loads(line)
        if (child := os.fork()) == 0:
            _perform_in_fork(request)
        alarm = threading.Timer(TIMEOUT_S, os.kill, (child, 9))
        alarm.start()
        _, status = os.waitpid(child, 0)
        alarm.cancel()
        alarm.join()
        print(os.waitstatus_to_exitcode(status), flush=True)


def _perform_in_fork(request: dict[str, Any]) -> None:
    """Do one scenario as a process that was started for it would; never returns."""
    os.setsid()
    log = os.open(request["log"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.environ.update(request["environment"])
    words = request["words"]
    code = 1
    try:
        perform(name=words["name"], folder=Path(words["folder"]), shared=Path(words["shared"]), mode=words["mode"])
        code = 0
    except BaseException:  # noqa: BLE001 - as an interpreter does at its end
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
