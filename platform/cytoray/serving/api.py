"""The HTTP API of the service: routes, headers, body limits and OpenAPI, independent of Ray and the model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import cytoray
from cytoray.errors import RequestError
from cytoray.serving.cell_work import Caller
from cytoray.serving.config import Limits
from cytoray.serving.documenting import complete, json_content, problems
from cytoray.serving.documenting_tasks import MODEL_PARAMETER, task_operation
from cytoray.serving.edge.config import EdgeConfig
from cytoray.serving.edge.metrics import (
    CONTENT_TYPE,
    EdgeMetrics,
    FiguresCollector,
    Gather,
    InfoCollector,
    ProcessMetrics,
    collect,
    render,
)
from cytoray.serving.edge.middleware import Edge, Parts
from cytoray.serving.explorer.config import ExplorerConfig
from cytoray.serving.explorer.hub import Explorer
from cytoray.serving.explorer.routes import add_explorer
from cytoray.serving.hosting.asking import find_asked
from cytoray.serving.hosting.routes import MODELS, add_models, allowed_models
from cytoray.serving.hosting.table import ModelTable, Slot
from cytoray.serving.jobs.hub import Find, Jobs, names_of_tasks
from cytoray.serving.jobs.routes import SCHEMAS, add_jobs
from cytoray.serving.payloads.media import MODEL, Form, read_form
from cytoray.serving.problems import add_problem_handlers, reply_headers
from cytoray.serving.queries import check_query, one_header
from cytoray.serving.rollout.metrics import RolloutCollector
from cytoray.serving.rollout.routes import NO_WEBHOOK, Rollouts, add_rollout
from cytoray.serving.rollout.status import RolloutStatus, status_of
from cytoray.serving.schemas import About, Alive, Moved, Problem, Ready
from cytoray.tasks import task_endpoints
from cytoray.tasks.endpoint import Endpoint
from cytoray.tasks.messages import CellsRequest

DESCRIPTION = """Embeddings and cell types of single cells. Every error is an RFC 9457 problem with a stable `code`.

Methods that a path does not have (HEAD and OPTIONS included) get 405 `method_not_allowed` with `Allow`; other paths,
such as one with a slash at its end, 404 `not_found`. Below /v1 and at /version, unknown and repeated parameters of the
query get 400 `malformed_payload`. The routes below /explorer belong to the page of the same version: they are not
documented, and change without notice.
"""

MakeJobs = Callable[[Find], Jobs]


Respond = Callable[[Request, Endpoint[Any, Any]], Awaitable[Response]]


class Api(FastAPI):
    """FastAPI with an OpenAPI document that also describes bodies that the routes parse and encode themselves."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document with the schemas of requests and responses."""
        if self.openapi_schema is None:
            schema = super().openapi()
            endpoints = task_endpoints().values()
            models: list[type[BaseModel]] = [endpoint.request for endpoint in endpoints]
            models += [*(endpoint.response for endpoint in endpoints), Problem, Alive, Ready, About, Moved, *SCHEMAS]
            _, definitions = models_json_schema(
                [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
            )
            schema.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
            complete(schema)
            schema["components"]["schemas"]["JobRequest"]["properties"]["task"]["enum"] = names_of_tasks()
        return super().openapi()


def build_api(
    models: ModelTable | Slot,
    *,
    edge: Parts | None = None,
    gather: Gather | None = None,
    explorer: ExplorerConfig | None = None,
    rollouts: Rollouts = NO_WEBHOOK,
    make_jobs: MakeJobs | None = None,
) -> FastAPI:
    """Build the application around ``models``, with its edge (default: one without keys).

    ``gather`` collects the metrics of all processes of the service; without it, /metrics is about this one.
    ``explorer`` configures the page at `/`; without it there is no page. ``make_jobs`` makes the jobs, given how a
    model is found by its name; without it the service takes none.
    """
    table = models if isinstance(models, ModelTable) else ModelTable.of(models)
    registry = CollectorRegistry() if edge is None else edge.metrics.registry
    edge = edge or Parts(EdgeConfig(), table.limits, EdgeMetrics(registry))
    _register(table, registry)
    page = Explorer(table.default.slot, explorer) if explorer is not None and explorer.enabled else None
    jobs = make_jobs(lambda name, allowed: table.find(name, allowed=allowed).slot) if make_jobs is not None else None
    if jobs is not None:
        registry.register(FiguresCollector("jobs", lambda: {"": jobs.keeper.figures}))

    async def gather_here() -> list[ProcessMetrics]:
        """Collect the metrics of this process."""
        return [collect(registry, process="service")]

    api = Api(
        title="cytoray",
        version=cytoray.__version__,
        description=DESCRIPTION,
        redoc_url=None,
        lifespan=lambda api: _lifespan(table, jobs, page),
        redirect_slashes=False,
    )
    api.state.echo_request_id = edge.echo_request_id
    api.state.models = table
    api.add_middleware(Edge, parts=edge)
    add_problem_handlers(api)
    _add_probes(api, table)
    add_metrics(api, gather or gather_here)

    async def respond(request: Request, endpoint: Endpoint[Any, Any]) -> Response:
        """Answer a request by the model that it asks."""
        return await _answer(request, table, endpoint)

    add_endpoints(api, respond)
    add_models(api, table)
    add_rollout(api, lambda request: _status_of_asked(table, request), rollouts)
    add_jobs(api, jobs)
    if page is not None:
        _add_page(api, page, table)
    return api


@asynccontextmanager
async def _lifespan(table: ModelTable, jobs: Jobs | None, page: Explorer | None) -> AsyncIterator[None]:
    """Look after jobs while the server runs, and close the models when it ends."""
    if jobs is not None:
        jobs.resume()
    yield
    if jobs is not None:
        await jobs.close()
    if page is not None:
        await page.close()
    await table.close()


def _add_page(api: FastAPI, page: Explorer, table: ModelTable) -> None:
    """Add the explorer."""

    async def admit(request: Request) -> None:
        """Refuse a key that is not for the model of the page."""
        table.find(None, allowed=allowed_models(request))

    add_explorer(api, page, admit=admit)


def _status_of_asked(table: ModelTable, request: Request) -> RolloutStatus:
    """Return the status of the model that the query names."""
    model = table.find(request.query_params.get("model"), allowed=allowed_models(request))
    return status_of(model.slot)


def _statuses(table: ModelTable) -> dict[str, RolloutStatus]:
    """Return which version of each model serves, and why."""
    return {model.name: status_of(model.slot) for model in table}


def _register(table: ModelTable, registry: CollectorRegistry) -> None:
    """Add what /metrics shows of each model."""

    def identities() -> list[dict[str, str]]:
        """Return the labels of each model."""
        about = {"cytoray": cytoray.__version__}
        return [{"model": model.name, **model.slot.model.model_dump(), **about} for model in table]

    registry.register(InfoCollector(identities))
    registry.register(RolloutCollector(lambda: _statuses(table)))
    registry.register(FiguresCollector("batcher", lambda: {model.name: model.slot.stats for model in table}))


def add_endpoints(api: FastAPI, respond: Respond) -> None:
    """Add the routes of all endpoints: those of the model which the request names, and those of each model."""
    for endpoint in task_endpoints().values():
        _add_endpoint(api, respond, endpoint)


def _add_endpoint(api: FastAPI, respond: Respond, endpoint: Endpoint[Any, Any]) -> None:
    async def answer(request: Request) -> Response:
        """Answer a request; OpenAPI has the endpoint's description."""
        return await respond(request, endpoint)

    about: dict[str, Any] = {"description": endpoint.description, "methods": ["POST"], "response_class": Response}
    api.add_api_route(endpoint.route, answer, name=endpoint.name, **about | task_operation(endpoint))
    of_model = task_operation(endpoint, of_model=True) | {"name": f"{endpoint.name}_of_model"}
    api.add_api_route(f"{MODELS}/{{model:path}}/{endpoint.name}", answer, **about | of_model)


def _add_probes(api: FastAPI, table: ModelTable) -> None:
    """Add the routes for liveness, readiness and information about the service."""

    def reply(request: Request, content: dict[str, Any]) -> Response:
        """Return a JSON response with the headers of every reply."""
        return JSONResponse(content, headers=reply_headers(request))

    @api.get("/healthz", responses={200: {"description": "It is.", "content": json_content("Alive")}})
    async def healthz(request: Request) -> Response:
        """Report that the process is alive."""
        return reply(request, {"status": "ok"})

    @api.get("/readyz", responses={200: {"description": "They are.", "content": json_content("Ready")}})
    async def readyz(request: Request) -> Response:
        """Report whether all models are loaded and can answer; otherwise 503, which names one that cannot."""
        table.check_ready()
        found = _statuses(table)
        degraded = {name: status.degraded for name, status in found.items() if status.degraded is not None}
        model = table.default.slot.model.model_dump()
        return reply(request, {"status": "ready", "model": model, "models": list(found), "degraded": degraded})

    @api.get(
        "/version",
        responses={200: {"description": "What it is.", "content": json_content("About")}},
        openapi_extra=problems("malformed_payload", "unknown_model") | {"parameters": [MODEL_PARAMETER]},
    )
    async def version(request: Request) -> Response:
        """Return the code version, a model (`?model=NAME`; default: the first) and the limits of this service."""
        check_query(request, MODEL)
        slot = table.find(request.query_params.get("model"), allowed=allowed_models(request)).slot
        about = {
            "cytoray": cytoray.__version__,
            "model": slot.model.model_dump(),
            "labels": slot.labels,
            "embedding_width": slot.width,
            "limits": table.limits.model_dump(),
        }
        return reply(request, about)


def add_metrics(api: FastAPI, gather: Gather) -> None:
    """Add the route that Prometheus scrapes."""

    plain = {"description": "The metrics.", "content": {CONTENT_TYPE: {"schema": {"type": "string"}}}}

    @api.get("/metrics", response_class=Response, responses={200: plain})
    async def metrics(request: Request) -> Response:
        """Return the metrics of all processes of the service in Prometheus' text format."""
        return Response(render(await gather()), headers=reply_headers(request), media_type=CONTENT_TYPE)


async def _answer(request: Request, table: ModelTable, endpoint: Endpoint[Any, Any]) -> Response:
    """Answer a request by the model that it asks."""
    body, form = await read_asked(request, endpoint, limits=table.limits)
    body, form = await find_asked(body, form, path=request.path_params.get("model"), limits=table.limits)
    model = table.find(form.model, allowed=allowed_models(request))
    reply = await model.slot.answer(endpoint, body, form, caller=_caller(request))
    timing = ", ".join(f"{name};dur={seconds * 1000:.2f}" for name, seconds in reply.timings.items())
    headers = reply_headers(request) | {"Server-Timing": timing, "X-Cells": str(reply.num_cells)}
    headers |= {"X-Model": model.name, "X-Model-Version": reply.model.version}
    return Response(reply.content, headers=headers, media_type=reply.media_type)


async def read_asked(request: Request, endpoint: Endpoint[Any, Any], *, limits: Limits) -> tuple[bytes, Form]:
    """Return the body of a request and its form; raises RequestError if they are not supported or too large."""
    form = read_form(
        content_type=one_header(request, "Content-Type"),
        content_encoding=one_header(request, "Content-Encoding"),
        accept=",".join(request.headers.getlist("accept")),
        options=request.query_params.multi_items(),
        about_cells=issubclass(endpoint.request, CellsRequest),
    )
    return await read_body(request, limit=limits.max_body_bytes), form


def _caller(request: Request) -> Caller:
    """Return who asks, as the edge found out; all keys of an owner share one part of the model's time."""
    state = request.scope.get("state", {})
    kind = state.get("caller_class")
    return Caller(str(state.get("key_owner") or ""), None if kind is None else kind == "bulk")


async def read_body(request: Request, *, limit: int) -> bytes:
    """Read the body; raises RequestError as soon as it exceeds ``limit`` bytes."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(int(declared), limit=limit)
    chunks: list[bytes] = []
    seen = 0
    async for chunk in request.stream():
        seen += len(chunk)
        if seen > limit:
            raise _too_large(seen, limit=limit)
        chunks.append(chunk)
    return b"".join(chunks)


def _too_large(seen: int, *, limit: int) -> RequestError:
    return RequestError(
        f"The body has {seen} bytes or more; the limit is {limit}.",
        remedy="Send fewer cells in one request.",
        code="too_large",
        pointer="",
        what="bytes",
        seen=seen,
        limit=limit,
    )
