"""Configuration of a service: its model, resources, replicas, and limits of one request."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from cytoray.config import Config, Location
from cytoray.registry.pinning import REGISTERED, RUN, Sources
from cytoray.serving.batching.config import BatchingConfig
from cytoray.serving.edge.addresses import is_loopback
from cytoray.serving.edge.config import EdgeConfig
from cytoray.serving.explorer.config import ExplorerConfig
from cytoray.serving.jobs.config import JobsConfig
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


class AppArgs(Config):
    """The ``args`` of the application: the model to serve, its resources and the number of replicas."""

    model_uri: str = Field(
        min_length=1,
        description="models:/NAME@ALIAS, models:/NAME/VERSION, run:NAME, or the folder or s3:// URI of a bundle or a "
        "public scGPT checkpoint.",
    )
    store: Location | None = Field(None, description="Root of all data of cytoray; required for run:NAME.")
    tracking: TrackingConfig | None = Field(None, description="MLflow, to look up models:/….")
    cache_folder: str = Field("~/.cache/cytoray/models", description="Local folder for bundles from MLflow or s3://.")
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
    jobs: JobsConfig = Field(JobsConfig(), description="Jobs, at `/v1/jobs`.")

    def sources(self) -> Sources:
        """Return where the model is looked up and kept."""
        return Sources(self.store, self.tracking, self.cache_folder)

    @field_validator("model_uri", "cache_folder")
    @classmethod
    def _absolute(cls, place: str) -> str:
        """Make paths absolute: a replica's working folder differs from that of the process that deploys it."""
        if place.startswith((REGISTERED, RUN)) or "://" in place:
            return place
        return str(Path(place).expanduser().absolute())

    @model_validator(mode="after")
    def _check_together(self) -> AppArgs:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is more than max_replicas {self.max_replicas}")
        if self.model_uri.startswith(REGISTERED) and self.tracking is None:
            raise ValueError(f"{self.model_uri} is looked up in MLflow: tracking.uri is required")
        if self.model_uri.startswith(RUN) and self.store is None:
            raise ValueError(f"{self.model_uri} is looked up in the store: store is required")
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
