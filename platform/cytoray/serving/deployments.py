"""The Ray Serve deployments: one that holds all models and answers HTTP, or an ingress and one for each model.

The process that deploys imports this module too, so torch and the model's code are imported by the replica only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from cytoray.serving.config import AppArgs
from cytoray.serving.edge.exchange import Message, Scope
from cytoray.serving.hosting.planning import PlannedModel

if TYPE_CHECKING:
    from fastapi import FastAPI


HEALTH_PERIOD_S = 10.0
HEALTH_TIMEOUT_S = 30.0
CANARY_TIMEOUT_S = 20.0  # shorter than Serve's own, so that a slow replica reports why it is unhealthy
DRAIN_S = 40.0  # in direct-ingress mode Serve itself keeps a stopping replica open for 30 s


@serve.ingress()
class CellDeployment:
    """A replica: it loads and tests its models before Serve routes to it, and repeats the test in health checks."""

    def __init__(self, args: AppArgs, planned: tuple[PlannedModel, ...]) -> None:
        import torch

        from cytoray.serving.hosting.loading import load_table

        torch.set_num_threads(args.torch_threads)
        self._edge, self._explorer = args.edge, args.explorer
        self._models = load_table(planned)

    def __serve_build_asgi_app__(self) -> FastAPI:
        from cytoray.serving.api import build_api
        from cytoray.serving.edge.guard import Guard
        from cytoray.serving.edge.metrics import REGISTRY, EdgeMetrics
        from cytoray.serving.edge.middleware import Parts
        from cytoray.serving.processes import gather_metrics

        # Serve's HTTP server writes X-Request-Id on every reply; clients would join a second one to it.
        edge = Parts(
            self._edge, self._models.limits, EdgeMetrics(REGISTRY), guard=Guard(self._edge), echo_request_id=False
        )
        return build_api(self._models, edge=edge, gather=gather_metrics, explorer=self._explorer)

    async def check_health(self) -> None:
        """Check the models; Serve calls this every ``HEALTH_PERIOD_S``, and the replica is unhealthy if it raises."""
        await self._models.check(timeout_s=CANARY_TIMEOUT_S)


class ModelDeployment:
    """A replica of one model of a tiered service: it answers requests that the ingress relays."""

    def __init__(self, args: AppArgs, planned: PlannedModel, has_explorer: bool) -> None:
        import torch

        from cytoray.serving.api import build_api
        from cytoray.serving.edge.metrics import REGISTRY, EdgeMetrics
        from cytoray.serving.edge.middleware import Parts
        from cytoray.serving.hosting.loading import load_table

        torch.set_num_threads(planned.args.torch_threads)
        self._models = load_table((planned,))
        edge = Parts(args.edge, args.limits, EdgeMetrics(REGISTRY), echo_request_id=False)
        self._api = build_api(self._models, edge=edge, explorer=args.explorer if has_explorer else None)

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

        self._models.check_ready()
        about = describe(self._models.default, self._models).model_dump()
        return about | {"labels": list(self._models.default.slot.labels)}

    async def check_health(self) -> None:
        """Check the model; as ``CellDeployment.check_health``."""
        await self._models.check(timeout_s=CANARY_TIMEOUT_S)

    async def __del__(self) -> None:
        """Close the model and what uses it; Serve calls this when the replica has been drained."""
        async with self._api.router.lifespan_context(self._api):
            pass


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
        from cytoray.serving.processes import gather_metrics

        args, metrics = self._args, EdgeMetrics(REGISTRY)

        def count(reason: str) -> None:
            """Count a request that is sent to another replica."""
            metrics.retries.labels(reason).inc()

        retries = Retries(within_s=args.limits.deadline_s)
        models = [
            RemoteModel.build(model, self._handles[model.name], retries=retries, on_retry=count)
            for model in self._planned
        ]
        edge = Parts(args.edge, args.limits, metrics, guard=Guard(args.edge), echo_request_id=False)
        return build_ingress(RemoteTable(models), args, edge=edge, gather=gather_metrics)
