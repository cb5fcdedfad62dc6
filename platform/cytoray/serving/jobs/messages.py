"""The JSON of jobs and uploads: what is asked, and what is reported."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from cytoray.tasks.messages import Message, ModelInfo

Format = Literal["parquet", "h5ad", "csv"]
Outcome = Literal["succeeded", "failed", "cancelled"]
State = Literal["queued", "running", "cancelling", "succeeded", "failed", "cancelled"]
Text = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
MEDIA_TYPES: dict[Format, str] = {
    "parquet": "application/vnd.apache.parquet",
    "h5ad": "application/x-h5ad",
    "csv": "text/csv; charset=utf-8",
}


class JobInput(Message):
    """The cells of a job: exactly one of its members."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": [name], "properties": {name: {"type": "string"}}} for name in ("upload", "uri", "corpus")
            ]
        }
    )

    upload: Text | None = Field(None, description="Id of an upload.")
    uri: Text | None = Field(None, description="A file, or a prefix that ends in '/', below one of the allowed places.")
    corpus: Text | None = Field(None, description="A corpus of the service's store: NAME, or NAME@VERSION.")

    @model_validator(mode="after")
    def _is_one(self) -> JobInput:
        if sum(value is not None for value in (self.upload, self.uri, self.corpus)) != 1:
            raise ValueError("exactly one of upload, uri and corpus is expected")
        return self


class JobRequest(Message):
    """A job to be done."""

    task: Text = Field(description="embed, annotate, map or proteins: the name of the route.")
    input: JobInput
    model: Text | None = Field(None, description="Name of a model of the service; default: its first.")
    format: Format = Field("parquet", description="Format of the result.")
    parameters: dict[str, Any] = Field({}, description="Other members of a request of the task; default: as offline.")


class UploadRequest(Message):
    """A file that is about to be sent."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=255)] = Field(
        "cells.h5ad", description="Its name, which becomes the `source` of its cells."
    )
    num_bytes: int = Field(ge=1, description="Its size.")
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")] | None = Field(
        None, description="Its SHA-256 (hex), which is verified."
    )


class UploadState(Message):
    """An upload, and how much of it has arrived."""

    id: str
    name: str
    num_bytes: int
    received: int = Field(description="Bytes so far: the next part begins there.")
    complete: bool
    part_bytes: int = Field(description="Maximum size of a part.")
    put_url: str | None = Field(None, description="Pre-signed URL for the whole file, if the store is S3.")
    expires: datetime = Field(description="When it is deleted.")


class JobProblem(Message):
    """Why a job failed."""

    code: str
    title: str
    detail: str


class JobResult(Message):
    """The file of a job's answers."""

    href: str
    name: str
    media_type: str
    num_bytes: int
    sha256: str


class JobState(Message):
    """A job, and how far it is."""

    id: str
    task: str
    input: JobInput
    format: Format
    parameters: dict[str, Any]
    model: ModelInfo
    state: State
    done: int = Field(description="Cells answered.")
    total: int | None = Field(description="Cells of the input; null until it has been opened.")
    rate: float | None = Field(description="Cells per second.")
    eta_s: float | None = Field(description="Seconds left, by the rate.")
    created: datetime
    started: datetime | None
    ended: datetime | None
    expires: datetime | None = Field(description="When it is deleted with its result.")
    attempts: int = Field(description="How often it was started: more than once if a process was lost.")
    num_empty: int | None = Field(description="Cells without any gene that the model knows; they have no answer.")
    warnings: tuple[str, ...]
    problem: JobProblem | None
    result: JobResult | None


class JobList(Message):
    """The jobs of an owner, newest first."""

    jobs: list[JobState]
