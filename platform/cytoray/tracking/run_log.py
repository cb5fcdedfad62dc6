"""The log of one run, used by the training loop, jobs and the quickstart."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal

from cytoray.tracking.journal import Cursor, Journal, encode_number
from cytoray.tracking.server import TrackingConfig
from cytoray.tracking.shipping import Shipper

Status = Literal["FINISHED", "FAILED", "KILLED"]


class RunLog:
    """Journals metrics, tags and files of one run and ships them to one MLflow run.

    No method waits for MLflow, except ``finish`` for a limited time. As a context manager it finishes the run, as
    FAILED if the block raises. Create it with ``start``, ``resume`` or ``open``.
    """

    def __init__(self, config: TrackingConfig, *, run_uuid: str, run_name: str | None) -> None:
        self.run_uuid = run_uuid
        self.folder = Path(config.journal_folder)
        self._uri = config.uri
        self._journal = Journal(self.folder / f"{run_uuid}.jsonl")
        self._continues = not self._journal.is_new
        if self._journal.is_new:
            self._journal.write(
                "start",
                run_uuid=run_uuid,
                run_name=run_name or run_uuid[:8],
                experiment=config.experiment,
                artifact_location=config.artifact_location,
            )
        self._shipper = Shipper(self._journal, uri=config.uri)
        self._finished = False
        self._shipper.start()

    @classmethod
    def start(
        cls,
        config: TrackingConfig,
        *,
        run_name: str,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, object] | None = None,
    ) -> RunLog:
        """Open the journal of a new run. Raises StorageError if the journal folder cannot be written."""
        log = cls(config, run_uuid=uuid.uuid4().hex, run_name=run_name)
        log.set_tags(tags or {})
        if params:
            log._write("params", values={key: str(value) for key, value in params.items()})
        return log

    @classmethod
    def resume(cls, config: TrackingConfig, run_uuid: str) -> RunLog:
        """Continue the run ``run_uuid`` after a restart, on this node or another, in the same MLflow run."""
        log = cls(config, run_uuid=run_uuid, run_name=None)
        log._write("resume")
        return log

    @classmethod
    def open(cls, config: TrackingConfig, *, run_uuid: str, run_name: str) -> RunLog:
        """Start the run ``run_uuid``, or continue it if its journal is here, in the same MLflow run."""
        log = cls(config, run_uuid=run_uuid, run_name=run_name)
        if log._continues:
            log._write("resume")
        return log

    @property
    def mlflow_run_id(self) -> str | None:
        """The MLflow run's id; None until MLflow was reached once."""
        return Cursor.load(self._journal.path, uri=self._uri).mlflow_run_id

    def log_metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """Record the metrics of one step, including NaN and infinities."""
        self._write("metrics", step=int(step), values={key: encode_number(value) for key, value in values.items()})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set or replace tags of the run."""
        if tags:
            self._write("tags", values={key: str(value) for key, value in tags.items()})

    def log_artifact(self, path: str | Path, *, folder: str = "") -> None:
        """Add a local file or folder to the run, under ``folder``. It must not be moved until it is shipped."""
        self._write("artifact", path=str(Path(path).absolute()), folder=folder)

    def finish(self, status: Status = "FINISHED", *, wait_s: float = 10.0) -> bool:
        """End the run. Waits at most ``wait_s`` for MLflow; returns whether it has everything (if not, ``sync``)."""
        self._write("finish", status=status)
        self._finished = True
        self._journal.fsync()
        self._journal.close()
        return self._shipper.close(wait_s=wait_s)

    def _write(self, kind: str, **fields: object) -> None:
        assert not self._finished, f"run {self.run_uuid} is finished; resume it to log more"
        self._journal.write(kind, **fields)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if not self._finished:
            self.finish("FINISHED" if kind is None else "FAILED")
