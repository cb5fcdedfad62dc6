"""The JSON schema of a problem; those of requests and answers belong to the tasks, see ``tasks.messages``."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Problem(BaseModel):
    """An RFC 9457 problem: why a request was not answered, with further fields that name the bad entries."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str = Field(description="Stable error code, for programs.")
    request_id: str
