"""The Ray Serve deployment: one replica is a model, its batcher and its HTTP routes, without a second hop."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from fastapi import FastAPI
from ray import serve

from cytoray.errors import ServingError
from cytoray.model.bundle import ModelBundle, load_bundle
from cytoray.model.device import choose_reserved_device
from cytoray.model.predictor import CellPredictor
from cytoray.registry.models import resolve
from cytoray.serving.api import build_api
from cytoray.serving.config import REGISTRY_SCHEME, AppArgs
from cytoray.serving.schemas import ModelInfo
from cytoray.serving.service import CellService

logger = logging.getLogger(__name__)
HEALTH_PERIOD_S = 10.0
HEALTH_TIMEOUT_S = 30.0
CANARY_TIMEOUT_S = 20.0  # shorter than Serve's own, so that a slow replica says why it is unhealthy
DRAIN_S = 40.0  # in direct-ingress mode Serve itself holds a leaving replica open for 30 s


@serve.ingress()
class CellDeployment:
    """A replica: loads and proves its model before Serve routes to it, and keeps proving it while it lives."""

    def __init__(self, args: AppArgs) -> None:
        torch.set_num_threads(args.torch_threads)
        self._service = load_service(args)

    def __serve_build_asgi_app__(self) -> FastAPI:
        # Serve's HTTP server writes X-Request-Id on every reply; a second one would be joined to it by clients.
        return build_api(self._service, echo_request_id=False)

    async def check_health(self) -> None:
        """Called by Serve every ``HEALTH_PERIOD_S``; raising marks the replica as unhealthy."""
        await self._service.check(timeout_s=CANARY_TIMEOUT_S)


def load_service(args: AppArgs) -> CellService:
    """Load the model of ``args``; raises RegistryError, ModelError, DigestError or NotFoundError where it cannot."""
    bundle, model = load_model(args)
    device = choose_reserved_device(args.num_gpus)
    bundle.model.to(device)
    logger.info("the model computes on %s", device)
    predictor = CellPredictor(bundle, empty_cells="nan")
    return CellService(predictor, vocabulary=bundle.vocabulary, model=model, limits=args.limits)


def load_model(args: AppArgs) -> tuple[ModelBundle, ModelInfo]:
    """Resolve and load the bundle of ``args`` with what identifies it."""
    if args.model_uri.startswith(REGISTRY_SCHEME):
        assert args.tracking is not None, "AppArgs requires tracking for models:/ URIs"
        bundle, version = resolve(args.model_uri, tracking=args.tracking, cache_folder=Path(args.cache_folder))
        name, number = version.name, str(version.version)
    else:
        bundle, name, number = load_bundle(Path(args.model_uri)), Path(args.model_uri).name, "local"
    if bundle.digest is None:
        raise ServingError(f"{args.model_uri} has no digest.", remedy="Export the bundle again.")
    return bundle, ModelInfo(name=name, version=number, digest=bundle.digest)
