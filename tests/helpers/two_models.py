"""A service with two small models, asked without a network."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from documented import CHECKED
from prometheus_client import CollectorRegistry

from cytoray.model.predictor import CellPredictor
from cytoray.serving.api import build_api
from cytoray.serving.config import Limits
from cytoray.serving.edge.config import EdgeConfig
from cytoray.serving.edge.guard import Guard
from cytoray.serving.edge.metrics import EdgeMetrics
from cytoray.serving.edge.middleware import Parts
from cytoray.serving.hosting.table import HostedModel, ModelTable
from cytoray.serving.service import CellService
from cytoray.tasks.endpoint import ServedModel
from cytoray.tasks.messages import ModelInfo


class TwoModels:
    """A service with the models blood (champion, version 3) and gut (version 1, without cell types)."""

    def __init__(self, bundles: dict[str, Any], runner: asyncio.Runner, limits: Limits) -> None:
        self.bundles, self.runner, self.limits = bundles, runner, limits
        about = {"blood": ("3", "champion"), "gut": ("1", "")}
        self.services = {
            name: CellService(
                ServedModel(
                    bundles[name],
                    CellPredictor(bundles[name], empty_cells="nan"),
                    ModelInfo(name=name, version=version, digest=name),
                ),
                limits=limits,
            )
            for name, (version, _) in about.items()
        }
        self.table = ModelTable([HostedModel(name, self.services[name], about[name][1]) for name in about])

    def ask(self, route: str, *, method: str = "POST", config: EdgeConfig | None = None, **options: Any) -> Any:
        parts = None
        if config is not None:
            parts = Parts(config, self.limits, EdgeMetrics(CollectorRegistry()), guard=Guard(config))
        return self.runner.run(self._ask(build_api(self.table, edge=parts), method, route, options))

    async def _ask(self, api: Any, method: str, route: str, options: dict[str, Any]) -> httpx.Response:
        transport = httpx.ASGITransport(api, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", event_hooks=CHECKED) as client:
            return await client.request(method, route, **options)

    def get(self, route: str) -> Any:
        return self.ask(route, method="GET")
