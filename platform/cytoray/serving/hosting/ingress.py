"""The HTTP application of the ingress of a tiered service: it chooses the model and relays requests to its replicas."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

import cytoray
from cytoray.serving.api import add_endpoints, add_metrics, read_asked, read_body
from cytoray.serving.config import AppArgs
from cytoray.serving.edge.metrics import Gather
from cytoray.serving.edge.middleware import Edge, Parts
from cytoray.serving.hosting.asking import find_asked
from cytoray.serving.hosting.names import is_allowed
from cytoray.serving.hosting.remote import RemoteTable
from cytoray.serving.hosting.routes import MODELS, ModelAbout, ModelList, allowed_models, check_describes
from cytoray.serving.payloads.media import JSON, MODEL
from cytoray.serving.problems import add_problem_handlers, reply_headers
from cytoray.serving.queries import check_query
from cytoray.tasks.endpoint import Endpoint

ANY_METHOD = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def build_ingress(table: RemoteTable, args: AppArgs, *, edge: Parts, gather: Gather) -> FastAPI:
    """Build the application around models that other deployments hold; its OpenAPI document is that of the default."""
    api = FastAPI(openapi_url=None, redirect_slashes=False)
    api.state.echo_request_id = edge.echo_request_id
    api.state.models = table
    api.add_middleware(Edge, parts=edge)
    add_problem_handlers(api)
    _add_probes(api, table, args)
    add_metrics(api, gather)

    async def respond(request: Request, endpoint: Endpoint[Any, Any]) -> Response:
        """Have the model that a request asks answer it."""
        body, form = await read_asked(request, endpoint, limits=args.limits)
        _, form = await find_asked(body, form, path=request.path_params.get("model"), limits=args.limits)
        model = await table.find(form.model, allowed=allowed_models(request))
        return model.answer(body)

    add_endpoints(api, respond)
    _add_models(api, table)
    _add_others(api, table, args)
    return api


def _add_probes(api: FastAPI, table: RemoteTable, args: AppArgs) -> None:
    """Add the routes for liveness, readiness and information about the service."""

    @api.get("/healthz")
    async def healthz(request: Request) -> Response:
        """Report that the process is alive."""
        return JSONResponse({"status": "ok"}, headers=reply_headers(request))

    @api.get("/readyz")
    async def readyz(request: Request) -> Response:
        """Report whether all models are loaded and can answer; otherwise 503, which names one that cannot."""
        seen = {one["name"]: one["degraded"] for one in await table.describe()}
        degraded = {name: why for name, why in seen.items() if why is not None}
        model = table.default.model.model_dump()
        about = {"status": "ready", "model": model, "models": list(seen), "degraded": degraded}
        return JSONResponse(about, headers=reply_headers(request))

    @api.get("/version")
    async def version(request: Request) -> Response:
        """Return the code version, a model (`?model=NAME`; default: the first) and the limits of this service."""
        check_query(request, MODEL)
        model = await table.find(request.query_params.get("model"), allowed=allowed_models(request))
        seen = await model.describe()
        about = {
            "cytoray": cytoray.__version__,
            "model": model.model.model_dump(),
            "labels": seen["labels"],
            "embedding_width": seen["embedding_width"],
            "limits": args.limits.model_dump(),
        }
        return JSONResponse(about, headers=reply_headers(request))


def _add_models(api: FastAPI, table: RemoteTable) -> None:
    """Add the routes that describe the models."""

    def as_about(model: Any, seen: dict[str, Any]) -> ModelAbout:
        """Return what is shown of a model."""
        known = {name: value for name, value in seen.items() if name in ModelAbout.model_fields}
        return ModelAbout(**known | {"default": model is table.default})

    @api.get(MODELS)
    async def list_models(request: Request) -> Response:
        """Return all models that the key may ask."""
        check_query(request)
        allowed, seen = allowed_models(request), await table.describe()
        pairs = zip(table.models, seen, strict=True)
        found = ModelList(models=[as_about(model, one) for model, one in pairs if is_allowed(model, allowed)])
        return Response(found.model_dump_json(), headers=reply_headers(request), media_type=JSON)

    @api.get(MODELS + "/{model:path}")
    async def describe_model(request: Request, model: str) -> Response:
        """Return one model: NAME, NAME@ALIAS or NAME/VERSION."""
        check_describes(request, model)
        found = await table.find(model, allowed=allowed_models(request))
        about = as_about(found, await found.describe())
        return Response(about.model_dump_json(), headers=reply_headers(request), media_type=JSON)


def _add_others(api: FastAPI, table: RemoteTable, args: AppArgs) -> None:
    """Relay all other requests, such as those of the explorer, to the default model, or that in their query."""

    @api.api_route("/{path:path}", methods=ANY_METHOD, include_in_schema=False)
    async def relay(request: Request, path: str) -> Response:
        """Have the model answer."""
        body = await read_body(request, limit=args.limits.max_body_bytes)
        model = await table.find(request.query_params.get("model"), allowed=allowed_models(request))
        return model.relay(body)
