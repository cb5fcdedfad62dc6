"""The routes about versions: `GET /v1/model` and MLflow's webhook."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from cytoray.errors import RequestError
from cytoray.serving.documenting import header_parameter, json_content, problems
from cytoray.serving.documenting_tasks import MODEL_PARAMETER
from cytoray.serving.problems import reply_headers
from cytoray.serving.queries import check_query
from cytoray.serving.rollout.notice import poke_followers
from cytoray.serving.rollout.status import RolloutStatus
from cytoray.serving.rollout.webhook import DELIVERY, SIGNATURE, TIMESTAMP, Webhook

MODEL, WEBHOOK = "/v1/model", "/v1/webhooks/mlflow"
_EVENT = {"entity": "model_version_alias", "action": "created", "data": {"name": "blood", "alias": "champion"}}
_BODY = {
    "requestBody": {
        "required": True,
        "description": "An event of MLflow, see its documentation; of aliases, the data has the name and the alias.",
        "content": {"application/json": {"schema": {"type": "object"}, "example": _EVENT}},
    },
    "parameters": [
        header_parameter(name, about, {"type": "string"})
        for name, about in (
            (SIGNATURE, "`v1,` and the HMAC-SHA256 of DELIVERY.TIMESTAMP.BODY in base64, by the secret."),
            (TIMESTAMP, "Seconds since 1970; a message is accepted for five minutes."),
            (DELIVERY, "Id of the message; a repeated one changes nothing."),
        )
    ],
}
Notify = Callable[[str], Awaitable[None]]
Read = Callable[[Request], RolloutStatus]


async def notify_here(name: str) -> None:
    """Have the followers of a registered model in this process look at its alias."""
    poke_followers(name)


@dataclass(frozen=True)
class Rollouts:
    """The webhook of a service; ``notify`` reaches the followers of all its processes."""

    secret_file: str | None = None
    notify: Notify = notify_here


NO_WEBHOOK = Rollouts()


def add_rollout(api: FastAPI, read: Read, rollouts: Rollouts = NO_WEBHOOK) -> None:
    """Add the routes; ``read`` returns the status of the model that a request names."""
    webhook = None if rollouts.secret_file is None else Webhook(rollouts.secret_file)

    found_by = problems("malformed_payload", "unknown_model") | {"parameters": [MODEL_PARAMETER]}

    @api.get(MODEL, response_model=RolloutStatus, openapi_extra=found_by)
    async def model(request: Request) -> Response:
        """Return which version of a model (`?model=NAME`; default: the first) this replica serves, and why."""
        check_query(request, "model")
        found = read(request)
        headers = reply_headers(request) | {"X-Model-Version": found.model.version}
        return JSONResponse(found.model_dump(), headers=headers)

    accepted = {"description": "The message was read.", "content": json_content("Moved")}
    moved_to: dict[int | str, dict[str, Any]] = {202: accepted}
    refused = problems("malformed_payload", "unauthenticated", "not_found")

    @api.post(WEBHOOK, status_code=202, openapi_extra=_BODY | refused, responses=moved_to)
    async def moved(request: Request) -> Response:
        """Look at the alias that MLflow's signed message names at once, in all replicas."""
        if webhook is None:
            raise RequestError(
                "This service has no webhook.", remedy="Operator: set rollout.webhook_secret_file.", code="not_found"
            )
        name = webhook.read(await request.body(), request.headers)
        if name:
            await rollouts.notify(name)
        return JSONResponse({"looked_at": name or None}, 202, headers=reply_headers(request))
