"""The Ray Serve deployment: one replica is a model, its batcher and its HTTP routes, without a second hop."""

from __future__ import annotations

from pathlib import Path

import torch
from fastapi import FastAPI
from pydantic import Field, field_validator, model_validator
from ray import serve

from cytoray.config import Config
from cytoray.errors import ServingError
from cytoray.model.bundle import ModelBundle, load_bundle
from cytoray.model.predictor import CellPredictor
from cytoray.registry.models import resolve
from cytoray.serving.api import build_api
from cytoray.serving.parsing import Limits
from cytoray.serving.schemas import ModelInfo
from cytoray.serving.service import CellService
from cytoray.tracking import TrackingConfig

HEALTH_PERIOD_S = 10.0
HEALTH_TIMEOUT_S = 30.0
CANARY_TIMEOUT_S = 20.0  # shorter than Serve's own, so that a slow replica says why it is unhealthy
DRAIN_S = 40.0  # in direct-ingress mode Serve itself holds a leaving replica open for 30 s
REGISTRY_SCHEME = "models:/"


class AppArgs(Config):
    """The ``args`` of the application: which model to serve, with how much, for how many."""

    model_uri: str = Field(
        min_length=1, description="models:/NAME@ALIAS, models:/NAME/VERSION, or the local folder of a model bundle."
    )
    tracking: TrackingConfig | None = Field(None, description="Where models:/… is looked up.")
    cache_folder: str = Field("~/.cache/cytoray/models", description="Local folder for bundles from the registry.")
    num_cpus: float = Field(1.0, ge=0, description="CPUs reserved for a replica; fractions share one.")
    torch_threads: int = Field(1, ge=1, description="Threads of a replica's forward pass.")
    min_replicas: int = Field(1, ge=1, description="Replicas when idle.")
    max_replicas: int = Field(2, ge=1, description="Replicas under load.")
    target_ongoing_requests: float = Field(4.0, gt=0, description="Requests in flight for each replica to aim at.")
    max_ongoing_requests: int = Field(16, ge=1, description="Most requests in flight in a replica, probes included.")
    max_queued_requests: int = Field(64, ge=1, description="Most requests waiting in the proxy; more get a 503.")
    limits: Limits = Field(Limits(), description="How much one request may ask for.")

    @field_validator("model_uri", "cache_folder")
    @classmethod
    def _absolute(cls, place: str) -> str:
        """A replica has another current folder than whoever deploys, so no path may stay relative."""
        return place if place.startswith(REGISTRY_SCHEME) else str(Path(place).expanduser().absolute())

    @model_validator(mode="after")
    def _check_together(self) -> AppArgs:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is more than max_replicas {self.max_replicas}")
        if self.model_uri.startswith(REGISTRY_SCHEME) and self.tracking is None:
            raise ValueError(f"{self.model_uri} is looked up in MLflow: give tracking.uri as well")
        return self


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
    return CellService(CellPredictor(bundle), vocabulary=bundle.vocabulary, model=model, limits=args.limits)


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
