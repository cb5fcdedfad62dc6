"""The JSON schemas of problems and of what the service says of itself; the others are in ``tasks.messages``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cytoray.tasks.messages import Message, ModelInfo


class Alive(Message):
    """A process that is alive."""

    status: Literal["ok"]


class Ready(Message):
    """A service whose models can answer."""

    status: Literal["ready"]
    model: ModelInfo = Field(description="The first one.")
    models: list[str] = Field(description="Names of all models.")
    degraded: dict[str, str] = Field(description="By name of a model: why it may not serve what its alias names.")


class About(Message):
    """A service and one of its models."""

    cytoray: str = Field(description="Version of the code.")
    model: ModelInfo
    labels: list[str] = Field(description="Cell types that the model predicts.")
    embedding_width: int = Field(description="Length of an embedding.")
    limits: dict[str, Any] = Field(description="Limits of one request, by their keys in the YAML.")


class Moved(Message):
    """A message of MLflow that was read."""

    looked_at: str | None = Field(description="The registered model whose alias was looked at; null if none was.")


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
