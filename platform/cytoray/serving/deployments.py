"""The Ray Serve deployment: each replica holds a model, its batcher and its HTTP routes in one process."""

from __future__ import annotations

import logging

import torch
from fastapi import FastAPI
from ray import serve

from cytoray.model.bundle import ModelBundle
from cytoray.model.device import choose_reserved_device
from cytoray.registry.opening import open_model
from cytoray.serving.api import build_api
from cytoray.serving.config import AppArgs
from cytoray.serving.service import CellService
from cytoray.tasks.annotation.product import build_predictor
from cytoray.tasks.endpoint import ServedModel
from cytoray.tasks.messages import ModelInfo

logger = logging.getLogger(__name__)
HEALTH_PERIOD_S = 10.0
HEALTH_TIMEOUT_S = 30.0
CANARY_TIMEOUT_S = 20.0  # shorter than Serve's own, so that a slow replica reports why it is unhealthy
DRAIN_S = 40.0  # in direct-ingress mode Serve itself keeps a stopping replica open for 30 s


@serve.ingress()
class CellDeployment:
    """A replica: it loads and tests its model before Serve routes to it, and repeats the test in health checks."""

    def __init__(self, args: AppArgs) -> None:
        torch.set_num_threads(args.torch_threads)
        self._service, self._explorer = load_service(args), args.explorer

    def __serve_build_asgi_app__(self) -> FastAPI:
        # Serve's HTTP server writes X-Request-Id on every reply; clients would join a second one to it.
        return build_api(self._service, echo_request_id=False, explorer=self._explorer)

    async def check_health(self) -> None:
        """Check the model; Serve calls this every ``HEALTH_PERIOD_S``, and the replica is unhealthy if it raises."""
        await self._service.check(timeout_s=CANARY_TIMEOUT_S)


def load_service(args: AppArgs) -> CellService:
    """Load the model of ``args``; raises RegistryError, ModelError, DigestError or NotFoundError if that fails."""
    bundle, model = load_model(args)
    device = choose_reserved_device(args.num_gpus)
    bundle.model.to(device)
    logger.info("the model runs on %s", device)
    predictor = build_predictor(bundle, empty_cells="nan")
    return CellService(ServedModel(bundle, predictor, model), limits=args.limits)


def load_model(args: AppArgs) -> tuple[ModelBundle, ModelInfo]:
    """Open the model of ``args``; returns its bundle and what identifies it."""
    opened = open_model(args.model_uri, store=args.store, tracking=args.tracking, cache_folder=args.cache_folder)
    return opened.bundle, ModelInfo(name=opened.name, version=opened.version, digest=opened.digest)
