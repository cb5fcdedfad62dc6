"""Configuration of jobs: where their files are kept, what they may read, and how many there may be."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from cytoray import storage
from cytoray.config import Config, Location

CORPUS = "corpus:"  # of an entry of ``allowed_inputs``


class JobsConfig(Config):
    """Jobs of a service, at `/v1/jobs`."""

    enabled: bool = Field(True, description="Whether the service takes jobs.")
    folder: Location | None = Field(
        None,
        description="Folder or s3:// prefix for uploads, the state of jobs and their results, shared by all replicas; "
        "default: below the system's temporary folder, for replicas on one machine.",
    )
    allowed_inputs: tuple[str, ...] = Field(
        (),
        description="What jobs may read beside uploads: local folders, s3://BUCKET/PREFIX, corpus:NAME of the store, "
        "or corpus:* for all of them. Everybody with a key can read what is below.",
    )
    max_running: int = Field(1, ge=1, description="Maximum number of jobs that run at a time.")
    max_queued: int = Field(100, ge=1, description="Maximum number of unfinished jobs; more get a 503.")
    max_per_owner: int = Field(10, ge=1, description="Maximum number of unfinished jobs per owner; more get a 429.")
    max_cells: int = Field(50_000_000, ge=1, description="Maximum number of cells of a job.")
    max_upload_bytes: int = Field(16 * 2**30, ge=1, description="Maximum size of an upload in bytes.")
    max_stored_bytes: int = Field(64 * 2**30, ge=1, description="Maximum size of all uploads together in bytes.")
    keep_h: float = Field(
        24.0, gt=0, description="Hours until a finished job with its result, or an upload, is deleted."
    )
    rows_per_chunk: int = Field(
        4_096, ge=1, description="Cells that are answered and kept together: what a killed job loses at most."
    )
    max_memory_bytes: int = Field(
        8 * 2**30, ge=2**30, description="Address space of the process that reads the files of a job."
    )
    num_cpus: int = Field(1, ge=1, description="Processes of a large job, each with a copy of the model.")
    num_gpus: float = Field(0.0, ge=0, description="GPUs reserved for each of them; 0 runs the model on the CPU.")
    on_cluster: bool = Field(
        False,
        description="Run large jobs in the Ray cluster of the service, which needs free CPUs, instead of in a Ray of "
        "their own on the machine of the replica.",
    )

    @property
    def root(self) -> str:
        """The folder or prefix of all files."""
        return self.folder or str(Path(tempfile.gettempdir()) / f"cytoray-jobs-{os.getuid()}")

    @field_validator("allowed_inputs", mode="before")
    @classmethod
    def _list_is_a_tuple(cls, entries: Any) -> Any:
        """Accept a list: Ray Serve validates ``args`` as they come from YAML, which has no tuples."""
        return tuple(entries) if isinstance(entries, list) else entries

    @field_validator("allowed_inputs")
    @classmethod
    def _entries_are_places(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_checked(entry) for entry in entries)


class RunnerSettings(Config):
    """All that a process needs to know to do a job."""

    job: str
    attempt: int
    config: JobsConfig
    bundle: str = Field(description="URI of the model.")
    cache_folder: str = Field(description="Local folder for models from a remote store.")


def _checked(entry: str) -> str:
    """Return an entry of ``allowed_inputs``, a local folder as an absolute path."""
    if entry.startswith(CORPUS):
        if entry == CORPUS:
            raise ValueError("corpus: has no name; write corpus:NAME, or corpus:* for all")
        return entry
    if entry.startswith("s3://"):
        if not entry.removeprefix("s3://").strip("/"):
            raise ValueError(f"{entry} has no bucket")
        return entry
    if storage.is_remote(entry):
        raise ValueError(f"{entry}: a local folder, s3://BUCKET/PREFIX or corpus:NAME is expected")
    return str(storage.local_path(entry))
