"""The Ray Serve deployment: each replica holds models, their batchers and HTTP routes in one process.

The process that deploys imports this module too, so torch and the model's code are imported by the replica only.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

import ray
from ray import serve

from cytoray.serving.config import AppArgs
from cytoray.serving.hosting.planning import PlannedModel

if TYPE_CHECKING:
    from fastapi import FastAPI


# Serve replaces a replica after three failures. One that hangs is found after less than 20 s, in time to ask another.
HEALTH_PERIOD_S = 4.0
HEALTH_TIMEOUT_S = 5.0
CANARY_TIMEOUT_S = 4.5  # shorter than Serve's own, so that a slow replica reports why it is unhealthy
DRAIN_S = 40.0  # in direct-ingress mode Serve itself keeps a stopping replica open for 30 s


@serve.ingress()
class CellDeployment:
    """A replica: it loads and tests its models before Serve routes to it, and repeats the test in health checks."""

    def __init__(self, args: AppArgs, planned: tuple[PlannedModel, ...]) -> None:
        import torch

        from cytoray.serving.hosting.loading import load_table

        torch.set_num_threads(args.torch_threads)
        self._edge, self._explorer, self._rollout = args.edge, args.explorer, args.rollout
        self._models = load_table(planned)
        self._args = args
        if args.jobs.on_cluster:
            os.environ.setdefault("RAY_ADDRESS", ray.get_runtime_context().gcs_address)

    def __serve_build_asgi_app__(self) -> FastAPI:
        from cytoray.serving.api import build_api
        from cytoray.serving.edge.guard import Guard
        from cytoray.serving.edge.metrics import REGISTRY, EdgeMetrics
        from cytoray.serving.edge.middleware import Parts
        from cytoray.serving.jobs.hub import Jobs, JobsPlace
        from cytoray.serving.processes import gather_metrics, notify_all
        from cytoray.serving.rollout.routes import Rollouts

        # Serve's HTTP server writes X-Request-Id on every reply; clients would join a second one to it.
        edge = Parts(
            self._edge, self._models.limits, EdgeMetrics(REGISTRY), guard=Guard(self._edge), echo_request_id=False
        )
        args, make_jobs = self._args, None
        if args.jobs.enabled:
            place = JobsPlace(args.jobs, args.store, args.cache_folder, args.limits.max_body_bytes)
            make_jobs = partial(Jobs, place)
        return build_api(
            self._models,
            edge=edge,
            gather=gather_metrics,
            explorer=self._explorer,
            rollouts=Rollouts(self._rollout.webhook_secret_file, notify_all),
            make_jobs=make_jobs,
        )

    async def check_health(self) -> None:
        """Check the models; Serve calls this every ``HEALTH_PERIOD_S``, and the replica is unhealthy if it raises."""
        await self._models.check(timeout_s=CANARY_TIMEOUT_S)
