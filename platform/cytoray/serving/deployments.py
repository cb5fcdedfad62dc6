"""The Ray Serve deployment: each replica holds a model, its batcher and its HTTP routes in one process.

The process that deploys imports this module too, so torch and the model's code are imported by the replica only.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ray import serve

from cytoray.registry.pinning import PinnedModel
from cytoray.serving.config import AppArgs

if TYPE_CHECKING:
    from fastapi import FastAPI

    from cytoray.serving.service import CellService

logger = logging.getLogger(__name__)
# Serve replaces a replica after three failures. One that hangs is found after less than 20 s, in time to ask another.
HEALTH_PERIOD_S = 4.0
HEALTH_TIMEOUT_S = 5.0
CANARY_TIMEOUT_S = 4.5  # shorter than Serve's own, so that a slow replica reports why it is unhealthy
DRAIN_S = 40.0  # in direct-ingress mode Serve itself keeps a stopping replica open for 30 s


@serve.ingress()
class CellDeployment:
    """A replica: it loads and tests its model before Serve routes to it, and repeats the test in health checks."""

    def __init__(self, args: AppArgs, pinned: PinnedModel) -> None:
        import torch

        torch.set_num_threads(args.torch_threads)
        self._edge, self._explorer = args.edge, args.explorer
        self._service = load_service(args, pinned)

    def __serve_build_asgi_app__(self) -> FastAPI:
        from cytoray.serving.api import build_api
        from cytoray.serving.edge.guard import Guard
        from cytoray.serving.edge.metrics import REGISTRY, EdgeMetrics
        from cytoray.serving.edge.middleware import Parts
        from cytoray.serving.processes import gather_metrics

        # Serve's HTTP server writes X-Request-Id on every reply; clients would join a second one to it.
        edge = Parts(
            self._edge, self._service.limits, EdgeMetrics(REGISTRY), guard=Guard(self._edge), echo_request_id=False
        )
        return build_api(self._service, edge=edge, gather=gather_metrics, explorer=self._explorer)

    async def check_health(self) -> None:
        """Check the model; Serve calls this every ``HEALTH_PERIOD_S``, and the replica is unhealthy if it raises."""
        await self._service.check(timeout_s=CANARY_TIMEOUT_S)


def load_service(args: AppArgs, pinned: PinnedModel) -> CellService:
    """Load a pinned model; raises RegistryError, ModelError, DigestError or NotFoundError if that fails."""
    from cytoray.model.device import choose_reserved_device
    from cytoray.registry.pinning import open_pinned
    from cytoray.serving.service import CellService
    from cytoray.tasks.annotation.product import build_predictor
    from cytoray.tasks.endpoint import ServedModel
    from cytoray.tasks.messages import ModelInfo

    bundle = open_pinned(pinned, sources=args.sources()).bundle
    device = choose_reserved_device(args.num_gpus)
    bundle.model.to(device)
    logger.info("the model runs on %s", device)
    model = ModelInfo(name=pinned.name, version=pinned.version, digest=pinned.digest)
    served = ServedModel(bundle, build_predictor(bundle, empty_cells="nan"), model)
    return CellService(served, limits=args.limits, batching=args.batching)
