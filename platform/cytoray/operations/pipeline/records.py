"""Records of a pipeline in its store: what each stage has done, with which settings and inputs, and what came of it.

``stages/STAGE/KEY.json`` is put if absent when a stage is done; KEY is a digest of its settings and inputs, so a rerun
finds it. ``KEY.task.json`` is what a job gets, ``KEY.error.json`` why the last attempt failed, ``LATEST.json`` the key
of the last one done.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from cytoray import storage
from cytoray.config import Config
from cytoray.errors import StorageError
from cytoray.failpoints import failpoint


class StageKey(Config):
    """Settings and inputs that the result of a stage depends on."""

    kind: str
    settings: dict[str, Any] = Field(description="Keys with other values than their defaults, without places.")
    inputs: dict[str, str] = Field(description="Digest of each thing that the stage reads.")
    sources: dict[str, str] = Field({}, description="Version of each source file of an ingest.")

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of kind, settings and inputs; the sources are part of it by their digest in the inputs."""
        text = json.dumps([self.kind, self.settings, self.inputs], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


class StageRecord(Config):
    """A stage that is done."""

    format: int = 1
    stage: str
    key: StageKey
    result: dict[str, Any] = Field(description="The JSON that the stage printed.")
    files: dict[str, str] = Field({}, description="SHA-256 of each report file, by its URI in the store.")
    started: str = Field(description="ISO time in UTC.")
    seconds: float
    revision: str = Field(description="Git revision of the code.")


class StageFailure(Config):
    """Why the last attempt at a stage failed."""

    kind: str
    problem: str
    remedy: str
    exit_code: int
    at: str = Field(description="ISO time in UTC.")


class StageTask(Config):
    """Everything that a job needs to do a stage, in one file of the store."""

    stage: str
    folder: str = Field(description="Folder of the stage's records.")
    reports: str = Field(description="Folder for the reports of this key.")
    key: StageKey
    config: dict[str, Any] = Field(description="The configuration as it was set, without defaults.")
    num_cpus: int
    patience_s: float = Field(0.0, description="Seconds for which it is tried again while MLflow is away.")

    @property
    def uri(self) -> str:
        """Where the task is stored."""
        return task_uri(self.folder, self.key.digest)


class _Latest(Config):
    key: str


Found = TypeVar("Found", bound=Config)


def record_uri(folder: str, key: str) -> str:
    """Return where the record of a stage lies; ``folder`` is the stage's."""
    return storage.join(folder, f"{key}.json")


def task_uri(folder: str, key: str) -> str:
    """Return where the task of a stage lies."""
    return storage.join(folder, f"{key}.task.json")


def failure_uri(folder: str, key: str) -> str:
    """Return where the last failure of a stage lies."""
    return storage.join(folder, f"{key}.error.json")


def scratch_folder(task: StageTask) -> str:
    """Return the local folder in which a job on a cluster writes reports, before it copies them to the store."""
    return f"/tmp/cytoray-reports-{task.key.digest}"


def find_record(folder: str, key: str) -> StageRecord | None:
    """Load the record of a stage that is done; None if it is not. Raises StorageError if it is damaged."""
    return _find(StageRecord, record_uri(folder, key))


def find_failure(folder: str, key: str) -> StageFailure | None:
    """Load why the last attempt failed; None if it did not, or was killed."""
    return _find(StageFailure, failure_uri(folder, key))


def find_latest(folder: str) -> StageRecord | None:
    """Load the record of the last thing that a stage has done; None if there is no such record."""
    latest = _find(_Latest, storage.join(folder, "LATEST.json"))
    return None if latest is None else find_record(folder, latest.key)


def set_latest(folder: str, key: str) -> None:
    """Record which key a stage has done last."""
    failpoint("pipeline.before_latest")
    storage.write_bytes(storage.join(folder, "LATEST.json"), _Latest(key=key).model_dump_json().encode())
    failpoint("pipeline.after_latest")


def _find(kind: type[Found], uri: str) -> Found | None:
    data = storage.find_bytes(uri)
    if data is None:
        return None
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise StorageError(
            f"{uri} is damaged, or was not written by this version of cytoray.",
            remedy="Delete it: the stage finds what it has done and writes it again.",
            uri=uri,
        ) from error
