"""Do one stage in a process of its own: ``python -m cytoray.operations.pipeline.stage_job TASK``.

TASK is the URI of a task (``records.StageTask``). This process puts the record of the stage into the store, so
that a stage which is done stays done whatever happens to the pipeline that started it. On a cluster it is a job, whose
``--config`` is the configuration of the task with another folder for local files (``scratch_folder``).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cytoray import provenance, storage
from cytoray.config import Config, build_from
from cytoray.errors import ConflictError, CytorayError, RegistryError, RegistryUnavailableError
from cytoray.failpoints import failpoint
from cytoray.operations.pipeline.records import (
    StageFailure,
    StageRecord,
    StageTask,
    failure_uri,
    record_uri,
    scratch_folder,
    set_latest,
)
from cytoray.stages.config import load_stage_config, stage_configs
from cytoray.stages.job import run_configured
from cytoray.tracking.server import connect

logger = logging.getLogger(__name__)
PAUSE_S = 10.0  # between two attempts while MLflow is away
FOLLOW = "--with-parent"  # stop when stdin is closed: the pipeline that started this process has died


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the stage of the task that is named on the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", help="URI of the task")
    parser.add_argument("--config", type=Path, help="file with the configuration that a job got; default: the task's")
    parser.add_argument(FOLLOW, action="store_true", help="stop when stdin is closed")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("cytoray").setLevel(logging.INFO)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal; the pipeline turns it into SIGTERM
    if options.with_parent:
        threading.Thread(target=_stop_with_parent, name="cytoray-parent", daemon=True).start()
    try:
        task = StageTask.model_validate_json(storage.read_bytes(options.task))
        do_task(task, options.config)
    except CytorayError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


def do_task(task: StageTask, file: Path | None = None) -> StageRecord:
    """Do a stage and record it; a failure is recorded too, and raised. ``file`` replaces the task's configuration."""
    started, clock = _now(), time.monotonic()
    try:
        if file is None:
            config = build_from(stage_configs()[task.key.kind], task.config, source=task.uri)
        else:
            config = load_stage_config(file)
        result = _run_patiently(task, config)
        files = _publish(task, result)
    except CytorayError as error:
        try:
            _note_failure(task, error)
        except CytorayError as other:  # such as a store that is away: the stage's own error is the one to report
            logger.warning("why %s failed was not recorded: %s", task.stage, other)
        raise
    finally:
        shutil.rmtree(scratch_folder(task), ignore_errors=True)
    record = StageRecord(
        stage=task.stage,
        key=task.key,
        result=result,
        files=files,
        started=started,
        seconds=round(time.monotonic() - clock, 1),
        revision=provenance.git_revision(),
    )
    failpoint("pipeline.before_record")
    with contextlib.suppress(ConflictError):  # it was done before: the first record stays
        storage.put_if_absent(record_uri(task.folder, task.key.digest), record.model_dump_json(indent=1).encode())
    failpoint("pipeline.after_record")
    set_latest(task.folder, task.key.digest)
    storage.delete(failure_uri(task.folder, task.key.digest))
    return record


def _run_patiently(task: StageTask, config: Config) -> dict[str, Any]:
    """Run the stage; while MLflow is away it is done again, which every stage can be, for as long as the task says.

    If MLflow answers, the error is its answer: then once more only, as MLflow may just have come back.
    """
    deadline = time.monotonic() + task.patience_s
    was_there = False
    while True:
        try:
            return run_configured(task.key.kind, config, num_cpus=task.num_cpus)
        except RegistryUnavailableError as error:
            left = deadline - time.monotonic()
            if left <= 0 or was_there:
                raise
            was_there = _answers(error.details["uri"])
            logger.warning("%s is tried again for %.0f s. %s", task.stage, left, error)
            time.sleep(min(PAUSE_S, left))


def _answers(uri: str) -> bool:
    """Return whether the MLflow at ``uri`` answers now."""
    try:
        connect(uri)
    except RegistryError:
        return False
    return True


def _publish(task: StageTask, result: dict[str, Any]) -> dict[str, str]:
    """Copy the report files that a stage left in a local folder to the store; returns their digests by URI."""
    found: dict[str, str] = {}
    for path in (Path(value) for value in _report_files(result)):
        uri = storage.join(task.reports, path.name)
        data = path.read_bytes()
        failpoint("pipeline.before_report")
        storage.write_bytes(uri, data)
        found[uri] = hashlib.sha256(data).hexdigest()
        failpoint("pipeline.after_report")
    return found


def _report_files(result: dict[str, Any]) -> list[str]:
    """Return the local files that an evaluation names in its result."""
    files = result.get("files")
    return sorted(value for value in files.values() if isinstance(value, str)) if isinstance(files, dict) else []


def _note_failure(task: StageTask, error: CytorayError) -> None:
    """Record why an attempt failed, for the pipeline and its page."""
    failure = StageFailure(
        kind=type(error).__name__, problem=error.problem, remedy=error.remedy, exit_code=error.exit_code, at=_now()
    )
    uri = failure_uri(task.folder, task.key.digest)
    storage.write_bytes(uri, failure.model_dump_json(indent=1).encode())


def _stop_with_parent() -> None:
    """Send this process SIGTERM when stdin ends, so that a training commits a checkpoint and stops."""
    while os.read(0, 1):  # sys.stdin would hold a lock that the interpreter wants at its end
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


if __name__ == "__main__":
    sys.exit(main())
