"""The edge in Ray Serve's HTTP server, which reads headers and bodies before any application does.

``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=cytoray.serving.edge.proxy:build_middlewares`` puts it there; the variable
must be set when Ray is started, as `cytoray serve` does. CYTORAY_EDGE then holds the keys ``edge`` and ``limits`` of
the service as JSON; without it, keys are only checked by the replicas. RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS=1 lets
Serve kill a replica that hangs, instead of waiting for it while its requests wait: the edge asks another.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

from pydantic import Field
from starlette.middleware import Middleware

from cytoray.config import Config
from cytoray.serving.config import AppArgs, Limits
from cytoray.serving.edge.config import EdgeConfig
from cytoray.serving.edge.forwarding import Retries
from cytoray.serving.edge.guard import Guard
from cytoray.serving.edge.metrics import REGISTRY, EdgeMetrics
from cytoray.serving.edge.middleware import Edge, Parts
from cytoray.serving.processes import gather_metrics

CALLBACK_VARIABLE, SETTINGS_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "CYTORAY_EDGE"
KILL_VARIABLE = "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS"
RETRIES = 2


class ProxySettings(Config):
    """Settings of the edge in Serve's HTTP server."""

    edge: EdgeConfig = Field(EdgeConfig(), description="Who may ask the service, and where requests are logged.")
    limits: Limits = Field(Limits(), description="Limits of one request.")


def prepare_environment(args: AppArgs, environment: MutableMapping[str, str]) -> None:
    """Set what puts the edge into the HTTP server of a Ray that is started with ``environment``."""
    environment[CALLBACK_VARIABLE] = f"{build_middlewares.__module__}:{build_middlewares.__name__}"
    environment[KILL_VARIABLE] = "1"
    environment[SETTINGS_VARIABLE] = ProxySettings(edge=args.edge, limits=args.limits).model_dump_json()


def build_middlewares() -> list[Middleware]:
    """Build the edge for the HTTP server of this process; Ray Serve calls this when it starts one.

    Raises ValidationError for settings that are not valid, NotFoundError or ConfigError if keys cannot be read.
    """
    given = os.environ.get(SETTINGS_VARIABLE)
    settings = ProxySettings() if given is None else ProxySettings.model_validate_json(given)
    parts = Parts(
        settings.edge,
        settings.limits,
        EdgeMetrics(REGISTRY),
        guard=None if given is None else Guard(settings.edge),
        retries=Retries(RETRIES, settings.limits.deadline_s),
        # Without settings, the replicas decide who may read them. They would also refuse it under overload.
        gather=None if given is None else gather_metrics,
    )
    return [Middleware(Edge, parts)]
