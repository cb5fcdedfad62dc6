"""Applications behind an edge, asked without a network."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from cytoray.serving.config import Limits
from cytoray.serving.edge.config import EdgeConfig
from cytoray.serving.edge.forwarding import Retries
from cytoray.serving.edge.gate import Gate
from cytoray.serving.edge.guard import Guard
from cytoray.serving.edge.metrics import EdgeMetrics, collect, render
from cytoray.serving.edge.middleware import Edge, Parts


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Behind:
    """An application behind an edge."""

    def __init__(self, app: Any, parts: Parts, runner: asyncio.Runner) -> None:
        self.parts, self.runner = parts, runner
        self.app = Edge(app, parts)
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000")

    def ask(self, path: str = "/v1/embed", *, key: str | None = None, method: str = "POST", **options: Any) -> Any:
        headers = dict(options.pop("headers", {})) | ({"Authorization": f"Bearer {key}"} if key else {})
        return self.runner.run(self._client.request(method, path, headers=headers, **options))

    def metrics(self) -> dict[str, float]:
        """The figures by name and labels, as Prometheus writes them."""
        text = render([collect(self.parts.metrics.registry, process="p")]).decode()
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {
            re.sub(r'process="p",?', "", name).replace(",}", "}").replace("{}", ""): float(n) for name, _, n in lines
        }


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def behind(runner: asyncio.Runner, clock: Clock) -> Iterator[Callable[..., Behind]]:
    """``behind(app)``: the application behind an edge; more arguments change the edge."""

    built: list[Behind] = []

    def build(
        app: Any, *, config: EdgeConfig | None = None, retries: int = 0, gather: Any = None, **limits: Any
    ) -> Behind:
        config = config or EdgeConfig()
        parts = Parts(
            config,
            Limits(**limits),
            EdgeMetrics(CollectorRegistry()),
            guard=Guard(config, clock=clock),
            retries=Retries(retries, 60.0),
            gather=gather,
            gate=Gate(),
            clock=clock,
        )
        built.append(Behind(app, parts, runner))
        return built[-1]

    yield build
    for one in built:
        one.app.close()
