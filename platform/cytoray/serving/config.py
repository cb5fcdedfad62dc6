"""Configuration of a service: its model, resources, replicas, and limits of one request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from cytoray.config import Config, Location, check_location
from cytoray.registry.pinning import REGISTERED, RUN, Sources
from cytoray.serving.batching.config import BatchingConfig
from cytoray.serving.edge.addresses import is_loopback
from cytoray.serving.edge.config import EdgeConfig
from cytoray.serving.explorer.config import ExplorerConfig
from cytoray.serving.jobs.config import JobsConfig
from cytoray.serving.rollout.config import RolloutConfig
from cytoray.tracking import TrackingConfig


class Limits(Config):
    """Limits of one request."""

    max_cells: int = Field(
        default=1024, ge=1, description="Maximum number of cells in one request; use an offline job for more."
    )
    max_body_bytes: int = Field(default=32 * 2**20, ge=1024, description="Maximum size of a request body in bytes.")
    max_decoded_bytes: int = Field(
        default=256 * 2**20, ge=1024, description="Maximum size of a body in bytes after it is decompressed."
    )
    max_decoded_ratio: float = Field(
        default=100.0, ge=1, description="Maximum ratio of the size of a body after and before it is decompressed."
    )
    max_genes: int = Field(default=200_000, ge=1, description="Maximum number of genes in one request.")
    max_nonzeros: int = Field(default=4_000_000, ge=1, description="Maximum number of non-zero values in one request.")
    min_gene_overlap: float = Field(
        default=0.1, ge=0, le=1, description="Minimum share of the request's genes that the model must know."
    )
    deadline_s: float = Field(
        default=60.0, gt=0, description="Maximum time in seconds from the last byte of a request to its answer."
    )


def _absolute_place(place: str) -> str:
    """Make paths absolute: a replica's working folder differs from that of the process that deploys it."""
    if place.startswith((REGISTERED, RUN)):
        return place
    check_location(place)
    if "://" in place:
        return place
    return str(Path(place).expanduser().absolute())


Place = Annotated[str, AfterValidator(_absolute_place)]
MODEL_URI = (
    "models:/NAME@ALIAS, models:/NAME/VERSION, run:NAME, or the folder or s3:// URI of a bundle or a public scGPT "
    "checkpoint"
)


Precision = Literal["float32", "bfloat16"]
#: Keys of a model that has replicas of its own.
OWN_REPLICAS = ("torch_threads", "min_replicas", "max_replicas", "target_ongoing_requests")


class HostedArgs(Config):
    """One of several models; keys that are null have the value of the service."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="Name by which requests ask it.")
    model_uri: Place = Field(min_length=1, description=f"{MODEL_URI}.")
    num_cpus: float | None = Field(None, ge=0, description="CPUs reserved for it.")
    num_gpus: float | None = Field(None, ge=0, description="GPUs reserved for it; 0 runs it on the CPU.")
    precision: Precision | None = Field(None, description="Of its forward pass.")
    torch_threads: int | None = Field(None, ge=1, description="Threads of its forward pass; layout tiered.")
    min_replicas: int | None = Field(None, ge=1, description="Minimum number of its replicas; layout tiered.")
    max_replicas: int | None = Field(None, ge=1, description="Maximum number of its replicas; layout tiered.")
    target_ongoing_requests: float | None = Field(
        None, gt=0, description="Target number of requests in flight per replica of it; layout tiered."
    )

    def changes(self) -> dict[str, Any]:
        """Return the keys that it has of its own."""
        return {name: value for name, value in self if value is not None and name != "name"}


class PrecisionCheck(Config):
    """Bounds on how far answers in bfloat16 may be from those in float32, on artificial cells."""

    min_cosine: float = Field(0.99, ge=-1, le=1, description="Minimum cosine of the two embeddings of a cell.")
    min_label_agreement: float = Field(0.95, ge=0, le=1, description="Minimum share of cells with the same label.")


class AppArgs(Config):
    """The ``args`` of the application: the models to serve, their resources and the number of replicas."""

    model_uri: Place | None = Field(None, min_length=1, description=f"The model: {MODEL_URI}.")
    models: tuple[HostedArgs, ...] = Field(
        (), description="Several models, instead of model_uri; the first answers requests that name none."
    )
    layout: Literal["fused", "tiered"] = Field(
        "fused",
        description="fused: each replica answers HTTP and holds all models. tiered: replicas of an ingress answer "
        "HTTP, and each model has replicas of its own.",
    )
    ingress_replicas: int = Field(2, ge=1, description="Number of replicas of the ingress of layout tiered.")
    ingress_num_cpus: float = Field(0.5, ge=0, description="CPUs reserved for each of them.")
    precision: Precision = Field(
        "float32",
        description="Of the forward pass; bfloat16 is faster on GPUs, and refused if answers differ too much.",
    )
    precision_check: PrecisionCheck = Field(PrecisionCheck(), description="When bfloat16 is refused.")
    store: Location | None = Field(None, description="Root of all data of cytoray; required for run:NAME.")
    tracking: TrackingConfig | None = Field(None, description="MLflow, to look up models:/….")
    cache_folder: Place = Field("~/.cache/cytoray/models", description="Local folder for bundles from MLflow or s3://.")
    num_cpus: float = Field(1.0, ge=0, description="CPUs reserved for a replica; fractions share one.")
    num_gpus: float = Field(
        0.0, ge=0, description="GPUs reserved for a replica; fractions share one; 0 runs the model on the CPU."
    )
    torch_threads: int = Field(1, ge=1, description="Threads of a replica's forward pass.")
    min_replicas: int = Field(1, ge=1, description="Minimum number of replicas, when idle.")
    max_replicas: int = Field(2, ge=1, description="Maximum number of replicas, under load.")
    target_ongoing_requests: float = Field(4.0, gt=0, description="Target number of requests in flight per replica.")
    max_ongoing_requests: int = Field(
        64, ge=1, description="Maximum number of requests in flight per replica, probes included."
    )
    max_queued_requests: int = Field(
        64, ge=1, description="Maximum number of requests waiting in the proxy; more get a 503."
    )
    limits: Limits = Field(Limits(), description="Limits of one request.")
    batching: BatchingConfig = Field(BatchingConfig(), description="Batches and the queue of each replica.")
    edge: EdgeConfig = Field(EdgeConfig(), description="Who may ask the service, and where requests are logged.")
    explorer: ExplorerConfig = Field(ExplorerConfig(), description="The page at `/`.")
    rollout: RolloutConfig = Field(RolloutConfig(), description="How the service follows an alias that moves.")
    jobs: JobsConfig = Field(JobsConfig(), description="Jobs, at `/v1/jobs`.")

    def sources(self) -> Sources:
        """Return where the model is looked up and kept."""
        return Sources(self.store, self.tracking, self.cache_folder)

    @property
    def uris(self) -> tuple[str, ...]:
        """URIs of all models."""
        return (self.model_uri,) if self.model_uri is not None else tuple(model.model_uri for model in self.models)

    def for_model(self, model: HostedArgs) -> AppArgs:
        """Return the arguments of a service that has only one of the models."""
        return self.model_copy(update={"models": (), **model.changes()})

    def reserved(self, resource: Literal["num_cpus", "num_gpus"]) -> float:
        """Return what a replica with all models reserves: the sum of the models, if one has a value of its own."""
        given = [
            getattr(self.for_model(model), resource) for model in self.models if getattr(model, resource) is not None
        ]
        others = getattr(self, resource) * (len(self.models) - len(given))
        return float(sum(given) + others if given else getattr(self, resource))

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """Validate values; plain data, as Ray Serve passes it from YAML, may have lists for tuples, as in our files."""
        try:
            text = json.dumps(obj)
        except TypeError:  # objects of Python
            return super().model_validate(obj, **options)
        return cls.model_validate_json(text, **options)

    @model_validator(mode="after")
    def _check_together(self) -> AppArgs:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is more than max_replicas {self.max_replicas}")
        if (self.model_uri is None) == (not self.models):
            raise ValueError("one of model_uri (for a single model) and models (for several) is required")
        names = [model.name for model in self.models]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"models: the name {repeated[0]} is given more than once")
        for model in self.models:
            own = [name for name in OWN_REPLICAS if getattr(model, name) is not None]
            if own and self.layout == "fused":
                raise ValueError(f"models: {own[0]} of {model.name}: only with layout: tiered do models have replicas")
            one = self.for_model(model)
            if one.min_replicas > one.max_replicas:
                raise ValueError(f"models: min_replicas of {model.name} is more than max_replicas {one.max_replicas}")
        for uri in self.uris:
            if uri.startswith(REGISTERED) and self.tracking is None:
                raise ValueError(f"{uri} is looked up in MLflow: tracking.uri is required")
            if uri.startswith(RUN) and self.store is None:
                raise ValueError(f"{uri} is looked up in the store: store is required")
        return self


class ServeConfig(AppArgs):
    """Configuration of `cytoray serve`."""

    kind: Literal["serve"] = Field("serve", description="Which stage this file configures.")
    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Address to listen on; beyond loopback, edge.keys_file is required, or `edge.auth: off`.",
    )
    port: int = Field(8000, ge=1, le=65535, description="Port to listen on.")
    start_timeout_s: float = Field(
        120.0, gt=0, description="Maximum time in seconds until the service answers; large models take longer to load."
    )
    drain_timeout_s: float = Field(
        90.0, ge=0, description="Maximum time in seconds to answer what is in flight when the service is stopped."
    )

    def listening(self) -> dict[str, Any]:
        """Return the arguments of ``app.run_service`` that are not those of the application."""
        return {"host": self.host, "port": self.port, "timeout_s": self.start_timeout_s}

    @model_validator(mode="after")
    def _check_exposure(self) -> ServeConfig:
        if not is_loopback(self.host) and not self.edge.is_decided:
            raise ValueError(self.edge.undecided(self.host))
        return self
