"""Ship journalled events to MLflow, in the background of a run or later with ``sync``; repeating is harmless.

Events keep the timestamps of the journal, and MLflow ignores metric rows that it already has; parameters, tags, files
and states are overwritten with equal values. So a crash between sending and recording it leaves no duplicates.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cytoray.errors import NotFoundError, RegistryError
from cytoray.failpoints import failpoint
from cytoray.tracking.journal import Cursor, Event, Journal, read_events, shipping_lock
from cytoray.tracking.metrics import BEHIND, FAILURES, LOST
from cytoray.tracking.server import connect, experiment_id, explained, public

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RUN_UUID_TAG = "cytoray.run_uuid"
INTERVAL_S = 1.0
LONGEST_PAUSE_S = 60.0
_BATCH_EVENTS = 500
_METRICS_A_CALL, _VALUES_A_CALL = 1000, 100  # MLflow's limits on metrics, and on parameters or tags, in one log_batch
_BATCHABLE = ("metrics", "params", "tags")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shipped:
    """Result of one pass: events sent, and events that MLflow rejects (invalid name, changed parameter, lost file)."""

    sent: int = 0
    refused: int = 0


@dataclass(frozen=True)
class SyncReport:
    """Result of ``sync``: journals found, events sent and rejected, journals of live runs, failures by journal."""

    journals: int
    sent: int
    refused: int
    busy: int
    failed: dict[str, str] = field(default_factory=dict)


def sync(journal_folder: str | Path, *, uri: str) -> SyncReport:
    """Ship the remaining events of the journals in a folder to the MLflow at ``uri``; a second call sends nothing.

    Raises NotFoundError if the folder is missing, RegistryError if MLflow does not answer.
    """
    folder = Path(journal_folder)
    if not folder.is_dir():
        raise NotFoundError(f"The journal folder {folder} is missing.", remedy="Check the path.", uri=str(folder))
    connect(uri)
    journals = sorted(folder.glob("*.jsonl"))
    passes: list[Shipped | None] = []
    failed: dict[str, str] = {}
    for journal in journals:
        try:
            passes.append(ship(journal, uri=uri))
        except RegistryError as error:
            failed[journal.stem] = str(error)
    done = [shipped for shipped in passes if shipped is not None]
    sent, refused = sum(shipped.sent for shipped in done), sum(shipped.refused for shipped in done)
    return SyncReport(len(journals), sent, refused, busy=len(passes) - len(done), failed=failed)


def ship(journal: Path, *, uri: str) -> Shipped | None:
    """Ship the events after the cursor. Returns None if another process is shipping them. Raises RegistryError."""
    with shipping_lock(journal) as ours:
        if not ours:
            return None
        if Cursor.load(journal, uri=uri).offset == journal.stat().st_size:
            return Shipped()
        client = connect(uri)
        with explained(uri):
            return _ship_rest(client, journal, _find_place(client, journal, uri=uri))


def _find_place(client: MlflowClient, journal: Path, *, uri: str) -> Cursor:
    """Return the cursor and its run; at the start if that run is no longer in the store."""
    from mlflow.exceptions import MlflowException

    cursor = Cursor.load(journal, uri=uri)
    if cursor.mlflow_run_id is not None:
        try:
            _refuse_deleted(client.get_run(cursor.mlflow_run_id))
            return cursor
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    cursor = dataclasses.replace(cursor, mlflow_run_id=_find_or_create_run(client, journal, uri=uri), offset=0)
    cursor.save(journal)
    return cursor


def _find_or_create_run(client: MlflowClient, journal: Path, *, uri: str) -> str:
    """Find this journal's MLflow run by its tag, or create it; return its id.

    After a lost response MLflow's client repeats the creation; the surplus runs are deleted here.
    """
    header = next((event for event, _ in read_events(journal)), None)
    if header is None or header["kind"] != "start":
        remedy = "A crash has damaged its first line; move the file away."
        raise RegistryError(f"The journal {journal} does not name its run.", remedy=remedy)
    experiment = experiment_id(client, header["experiment"], artifact_location=header["artifact_location"], uri=uri)
    runs = _runs_of(client, experiment, header["run_uuid"])
    if not runs:
        tags = {RUN_UUID_TAG: header["run_uuid"]}
        client.create_run(experiment, start_time=header["time_ms"], tags=tags, run_name=header["run_name"])
        failpoint("tracking.after_create_run")
        runs = _runs_of(client, experiment, header["run_uuid"])
    active = [run for run in runs if run.info.lifecycle_stage == "active"]
    for spare in active[1:]:
        client.delete_run(spare.info.run_id)
    _refuse_deleted((active or runs)[0])
    return str(active[0].info.run_id)


def _runs_of(client: MlflowClient, experiment: str, run_uuid: str) -> list[Run]:
    """Return all runs with this tag, including deleted ones, in a fixed order."""
    from mlflow.entities import ViewType

    found = client.search_runs([experiment], f"tags.`{RUN_UUID_TAG}` = '{run_uuid}'", run_view_type=ViewType.ALL)
    return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))


def _refuse_deleted(run: Run) -> None:
    if run.info.lifecycle_stage != "active":
        remedy = "Restore it (mlflow runs restore) to receive the rest, or remove its journal."
        raise RegistryError(f"The MLflow run {run.info.run_id} is deleted.", remedy=remedy, run=run.info.run_id)


def _ship_rest(client: MlflowClient, journal: Path, cursor: Cursor) -> Shipped:
    """Send the events after the cursor, moving it after each batch."""
    assert cursor.mlflow_run_id is not None
    sent = refused = 0
    for events, offset in _batches(read_events(journal, offset=cursor.offset)):
        rejected = _send(client, cursor.mlflow_run_id, events)
        failpoint("tracking.after_log_batch")
        cursor = dataclasses.replace(cursor, offset=offset)
        cursor.save(journal)
        sent, refused = sent + len(events) - rejected, refused + rejected
    return Shipped(sent, refused)


def _batches(events: Iterable[tuple[Event, int]]) -> Iterator[tuple[list[Event], int]]:
    """Group adjacent events that fit into one call; others are sent alone. Yields (events, offset after them)."""
    for batchable, group in itertools.groupby(events, key=lambda item: item[0]["kind"] in _BATCHABLE):
        while chunk := list(itertools.islice(group, _BATCH_EVENTS if batchable else 1)):
            yield [event for event, _ in chunk], chunk[-1][1]


def _send(client: MlflowClient, run_id: str, events: list[Event]) -> int:
    """Send one batch, halving it while MLflow finds invalid events. Returns the number of rejected events."""
    from mlflow.exceptions import MlflowException

    try:
        if events[0]["kind"] in _BATCHABLE:
            _send_batch(client, run_id, events)
            return 0
        return _send_single(client, run_id, events[0])
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        if len(events) > 1:
            middle = len(events) // 2
            return _send(client, run_id, events[:middle]) + _send(client, run_id, events[middle:])
        _logger.warning("MLflow rejected event %s of run %s: %s", events[0].get("seq"), run_id, error)
        return 1


def _send_batch(client: MlflowClient, run_id: str, events: list[Event]) -> None:
    """Send metrics, parameters and tags in the fewest calls that MLflow's limits allow."""
    from mlflow.entities import Metric, Param, RunTag

    metrics = [
        Metric(name, float(value), event["time_ms"], event["step"])
        for event in events
        if event["kind"] == "metrics"
        for name, value in event["values"].items()
    ]
    params = {key: value for event in events if event["kind"] == "params" for key, value in event["values"].items()}
    tags = {key: value for event in events if event["kind"] == "tags" for key, value in event["values"].items()}
    for start in range(0, len(metrics), _METRICS_A_CALL):
        client.log_batch(run_id, metrics=metrics[start : start + _METRICS_A_CALL], synchronous=True)
    for start in range(0, len(params), _VALUES_A_CALL):
        some = list(params.items())[start : start + _VALUES_A_CALL]
        client.log_batch(run_id, params=[Param(*item) for item in some], synchronous=True)
    for start in range(0, len(tags), _VALUES_A_CALL):
        some = list(tags.items())[start : start + _VALUES_A_CALL]
        client.log_batch(run_id, tags=[RunTag(*item) for item in some], synchronous=True)


def _send_single(client: MlflowClient, run_id: str, event: Event) -> int:
    """Send an event that needs its own call. Returns 1 if it can no longer be sent, otherwise 0."""
    kind = event["kind"]
    if kind == "artifact":
        if not Path(event["path"]).exists():
            _logger.warning("the artifact %s of run %s is missing and cannot be shipped", event["path"], run_id)
            return 1
        client.log_artifact(run_id, event["path"], event["folder"] or None)
    elif kind == "finish":
        client.set_terminated(run_id, event["status"], end_time=event["time_ms"])
    elif kind == "resume":
        client.update_run(run_id, status="RUNNING")
    return int(kind == "torn")


class Shipper(threading.Thread):
    """Ships one live journal about once per second; backs off while MLflow is unreachable, until the run ends."""

    def __init__(self, journal: Journal, *, uri: str) -> None:
        super().__init__(name=f"ship-{journal.path.stem[:8]}", daemon=True)
        self._journal, self._uri = journal, uri
        self._closing = threading.Event()
        self._deadline = float("inf")

    def run(self) -> None:
        """Ship until closed."""
        pause = INTERVAL_S
        while True:
            closing = self._closing.wait(pause)
            if time.monotonic() >= self._deadline:
                return
            self._journal.fsync()
            shipped = self._try_to_ship(quiet=pause > INTERVAL_S)
            if closing and shipped:
                return
            pause = INTERVAL_S if shipped else min(2 * pause, LONGEST_PAUSE_S)
            if closing:
                time.sleep(0.2)

    def _try_to_ship(self, *, quiet: bool) -> bool:
        path = self._journal.path
        LOST.set(self._journal.num_lost, run_uuid=path.stem)
        try:
            shipped = ship(path, uri=self._uri) is not None
            if shipped:
                BEHIND.set(0, run_uuid=path.stem)
            return shipped
        except RegistryError as error:
            FAILURES.add(run_uuid=path.stem)
            BEHIND.set(path.stat().st_size - Cursor.load(path, uri=self._uri).offset, run_uuid=path.stem)
            level = logging.DEBUG if quiet else logging.WARNING
            _logger.log(level, "tracking continues in %s: %s", path, error)
            return False

    def close(self, *, wait_s: float) -> bool:
        """Ship the rest for at most ``wait_s`` seconds. Returns whether everything arrived."""
        self._deadline = time.monotonic() + wait_s
        self._closing.set()
        self.join(wait_s)
        left = self._journal.path.stat().st_size - Cursor.load(self._journal.path, uri=self._uri).offset
        if left:
            _logger.warning(
                "%d bytes of %s have not reached MLflow; `cytoray tracking sync %s --uri %s` sends them.",
                left,
                self._journal.path,
                self._journal.path.parent,
                public(self._uri),
            )
        return left == 0
