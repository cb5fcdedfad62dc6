"""The routes that describe the models of a service: `/v1/models` and `/v1/models/NAME`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from pydantic import Field

from cytoray.errors import CytorayError
from cytoray.serving.documenting import problems
from cytoray.serving.hosting.names import EVERY, is_allowed
from cytoray.serving.hosting.table import HostedModel, ModelTable
from cytoray.serving.payloads.media import JSON
from cytoray.serving.problems import reply_headers
from cytoray.serving.queries import check_query
from cytoray.tasks import task_endpoints
from cytoray.tasks.messages import Message

MODELS = "/v1/models"


class ModelAbout(Message):
    """A model of a service."""

    name: str = Field(description="By which requests ask it.")
    registered_name: str = Field(description="In the registry, else the name of the run or folder.")
    version: str = Field(description="In the registry, else `unregistered`.")
    alias: str | None = Field(description="In the registry, by which it was looked up.")
    digest: str = Field(description="SHA-256 of the model bundle.")
    default: bool = Field(description="Whether it answers requests that name no model.")
    ready: bool = Field(description="Whether it can answer.")
    tasks: list[str] = Field(description="Endpoints that it can answer.")
    num_labels: int = Field(description="Number of cell types that it predicts.")
    embedding_width: int = Field(description="Length of an embedding.")
    vocabulary_digest: str = Field(
        description="SHA-256 of its genes; embeddings and genes of models with the same fit."
    )
    num_genes: int = Field(description="Number of genes that it knows.")
    context_length: int = Field(description="Maximum number of tokens of a cell.")
    precision: str = Field(description="Of the forward pass.")
    provenance: dict[str, str] = Field(description="Where it comes from, as written when it was trained.")


class ModelList(Message):
    """The models of a service, the default first."""

    models: list[ModelAbout]


LISTED: dict[str, Any] = {"response_model": ModelList, "openapi_extra": problems("malformed_payload")}
DESCRIBED: dict[str, Any] = {
    "response_model": ModelAbout,
    "openapi_extra": problems("malformed_payload", "unknown_model"),
}


def add_models(api: FastAPI, table: ModelTable) -> None:
    """Add the routes."""

    @api.get(MODELS, **LISTED)
    async def list_models(request: Request) -> Response:
        """Return all models that the key may ask."""
        check_query(request)
        allowed = allowed_models(request)
        found = [describe(model, table) for model in table if is_allowed(model, allowed)]
        return _reply(request, ModelList(models=found))

    @api.get(MODELS + "/{model:path}", **DESCRIBED)
    async def describe_model(request: Request, model: str) -> Response:
        """Return one model: NAME, NAME@ALIAS or NAME/VERSION."""
        check_describes(request, model)
        return _reply(request, describe(table.find(model, allowed=allowed_models(request)), table))


def check_describes(request: Request, model: str) -> None:
    """Raise HTTPException (405) if the path of a request is one of an endpoint, RequestError for a parameter."""
    if model.rpartition("/")[2] in task_endpoints():
        raise HTTPException(405, headers={"Allow": "POST"})
    check_query(request)


def describe(model: HostedModel, table: ModelTable) -> ModelAbout:
    """Describe a model of a service."""
    slot = model.slot
    served, info = slot.served, slot.model
    bundle = served.bundle
    return ModelAbout(
        name=model.name,
        registered_name=info.name,
        version=info.version,
        alias=model.alias or None,
        digest=info.digest,
        default=model is table.default,
        ready=_passes(slot.check_ready),
        tasks=[name for name, endpoint in task_endpoints().items() if _passes(endpoint.check, served)],
        num_labels=len(slot.labels),
        embedding_width=slot.width,
        vocabulary_digest=bundle.vocabulary.digest(),
        num_genes=len(bundle.vocabulary.index),
        context_length=bundle.tokenizer_config.max_length,
        precision=model.precision,
        provenance=dict(bundle.lineage),
    )


def allowed_models(request: Request) -> Sequence[str]:
    """Return the names of the models that the key of a request is for."""
    allowed: Sequence[str] = request.scope.get("state", {}).get("allowed_models", EVERY)
    return allowed


def _passes(check: Any, *arguments: Any) -> bool:
    """Return whether a check raises no error."""
    try:
        check(*arguments)
    except CytorayError:
        return False
    return True


def _reply(request: Request, content: Message) -> Response:
    return Response(content.model_dump_json(), headers=reply_headers(request), media_type=JSON)
