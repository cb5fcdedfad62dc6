"""The Ray Serve deployments: one that holds all models and answers HTTP, or an ingress and one for each model.

The process that deploys imports this module too, so torch and the model's code are imported by the replica only.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from cytoray.serving.config import AppArgs
from cytoray.serving.hosting.planning import PlannedModel

if TYPE_CHECKING:
    from fastapi import FastAPI

    from cytoray.serving.edge.exchange import Message, Scope
    from cytoray.serving.edge.guard import Guard
    from cytoray.serving.hosting.table import ModelTable

# Serve replaces a replica after three failures. One that hangs is found after less than 20 s, in time to ask another.
HEALTH_PERIOD_S = 4.0
HEALTH_TIMEOUT_S = 5.0
CANARY_TIMEOUT_S = 20.0  # over several checks: a replica that is only slow on a busy machine is not replaced
DRAIN_S = 40.0  # in direct-ingress mode Serve itself keeps a stopping replica open for 30 s


@serve.ingress()
class CellDeployment:
    """A replica: it loads and tests its models before Serve routes to it, and repeats the test in health checks."""

    def __init__(self, args: AppArgs, planned: tuple[PlannedModel, ...]) -> None:
        self._args, self._models = args, _load(args, planned)

    def __serve_build_asgi_app__(self) -> FastAPI:
        from cytoray.serving.edge.guard import Guard

        return _build_api(self._models, self._args, guard=Guard(self._args.edge))

    async def check_health(self) -> None:
        """Check the models; Serve calls this every ``HEALTH_PERIOD_S``, and the replica is unhealthy if it raises."""
        await self._models.check(timeout_s=CANARY_TIMEOUT_S)


def _load(args: AppArgs, planned: tuple[PlannedModel, ...]) -> ModelTable:
    """Load the models of this replica."""
    import torch

    from cytoray.serving.hosting.loading import load_table

    torch.set_num_threads(args.torch_threads)
    if args.jobs.on_cluster:
        os.environ.setdefault("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    return load_table(planned)


def _build_api(models: ModelTable, args: AppArgs, *, guard: Guard | None, is_default: bool = True) -> FastAPI:
    """Build the application of a replica with models; the explorer and jobs are those of the default one."""
    from cytoray.serving.api import build_api
    from cytoray.serving.edge.metrics import REGISTRY, EdgeMetrics
    from cytoray.serving.edge.middleware import Parts
    from cytoray.serving.jobs.hub import Jobs, JobsPlace
    from cytoray.serving.processes import gather_metrics, notify_all
    from cytoray.serving.rollout.routes import Rollouts

    # Serve's HTTP server writes X-Request-Id on every reply; clients would join a second one to it.
    edge = Parts(args.edge, models.limits, EdgeMetrics(REGISTRY), guard=guard, echo_request_id=False)
    make_jobs = None
    if args.jobs.enabled and is_default:
        place = JobsPlace(args.jobs, args.store, args.cache_folder, args.limits.max_body_bytes)
        make_jobs = partial(Jobs, place)
    return build_api(
        models,
        edge=edge,
        gather=gather_metrics,
        explorer=args.explorer if is_default else None,
        rollouts=Rollouts(args.rollout.webhook_secret_file, notify_all),
        make_jobs=make_jobs,
    )


class ModelDeployment:
    """A replica of one model of a tiered service: it answers requests that the ingress relays and has admitted."""

    def __init__(self, planned: PlannedModel, is_default: bool) -> None:
        self._models = _load(planned.args, (planned,))
        self._api = _build_api(self._models, planned.args, guard=None, is_default=is_default)
        self._running: contextlib.AsyncExitStack | None = None

    async def answer(self, scope: Scope, body: bytes) -> list[Message]:
        """Return the messages of the answer to a request."""
        from cytoray.serving.hosting.relay import answer_whole

        return await answer_whole(self._api, scope, body)

    async def stream(self, scope: Scope, body: bytes) -> AsyncIterator[Message]:
        """Yield the messages of the answer to a request."""
        from cytoray.serving.hosting.relay import answer_in_parts

        async for message in answer_in_parts(self._api, scope, body):
            yield message

    async def describe(self) -> dict[str, Any]:
        """Return what ``/v1/models`` shows of the model, and its labels; raises ServingError if it is not ready."""
        from cytoray.serving.hosting.routes import describe
        from cytoray.serving.rollout.status import status_of

        self._models.check_ready()
        slot = self._models.default.slot
        about = describe(self._models.default, self._models).model_dump()
        return about | {"labels": list(slot.labels), "degraded": status_of(slot).degraded}

    async def check_health(self) -> None:
        """Check the model; as ``CellDeployment.check_health``. Serve also calls it before the first request."""
        if self._running is None:  # what an HTTP server would do for the application
            self._running = contextlib.AsyncExitStack()
            await self._running.enter_async_context(self._api.router.lifespan_context(self._api))
        await self._models.check(timeout_s=CANARY_TIMEOUT_S)

    async def __del__(self) -> None:
        """Close the model and what uses it; Serve calls this when the replica has been drained."""
        if self._running is not None:
            await self._running.aclose()


@serve.ingress()
class IngressDeployment:
    """A replica of the ingress of a tiered service: keys, limits, HTTP and retries; it holds no model."""

    def __init__(
        self, args: AppArgs, planned: tuple[PlannedModel, ...], handles: dict[str, DeploymentHandle[Any]]
    ) -> None:
        self._args, self._planned, self._handles = args, planned, handles

    def __serve_build_asgi_app__(self) -> FastAPI:
        from cytoray.serving.edge.forwarding import Retries
        from cytoray.serving.edge.guard import Guard
        from cytoray.serving.edge.metrics import REGISTRY, EdgeMetrics
        from cytoray.serving.edge.middleware import Parts
        from cytoray.serving.hosting.ingress import build_ingress
        from cytoray.serving.hosting.remote import RemoteModel, RemoteTable
        from cytoray.serving.hosting.replicas import Replicas
        from cytoray.serving.processes import gather_metrics

        args, metrics = self._args, EdgeMetrics(REGISTRY)

        def count(reason: str) -> None:
            """Count a request that is sent to another replica."""
            metrics.retries.labels(reason).inc()

        retries = Retries(within_s=args.limits.deadline_s)
        models = [
            RemoteModel.build(model, Replicas(model.name, self._handles[model.name]), retries=retries, on_retry=count)
            for model in self._planned
        ]
        edge = Parts(args.edge, args.limits, metrics, guard=Guard(args.edge), echo_request_id=False)
        return build_ingress(RemoteTable(models), args, edge=edge, gather=gather_metrics)
