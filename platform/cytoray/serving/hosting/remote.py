"""The models of a tiered service as its ingress knows them: each by the handle of its deployment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response

from cytoray.errors import RequestError
from cytoray.serving.edge.bodies import Replay
from cytoray.serving.edge.exchange import Receive, Scope, Send, begin
from cytoray.serving.edge.forwarding import Forwarder, Retries
from cytoray.serving.hosting.names import find_model
from cytoray.serving.hosting.planning import PlannedModel
from cytoray.serving.hosting.replicas import Replicas
from cytoray.tasks.messages import ModelInfo

MARGIN_S = 2.0  # a replica that has the request answers first, with a problem that says more
LOOK_AGAIN_S = 2.0  # between questions of what the models are, if a request names an unknown version


@dataclass(eq=False)
class RemoteModel:
    """A model with a deployment of its own."""

    name: str
    replicas: Replicas
    model: ModelInfo  # as it was when the service was deployed, or as it was last asked
    alias: str = ""
    forwarders: dict[bool, Forwarder] = field(default_factory=dict)  # by whether answers come in parts

    @classmethod
    def build(
        cls, planned: PlannedModel, replicas: Replicas, *, retries: Retries, on_retry: Callable[[str], None]
    ) -> RemoteModel:
        """Return a model that was planned, with its replicas."""
        info = ModelInfo(name=planned.pinned.name, version=planned.pinned.version, digest=planned.pinned.digest)
        forwarders = {
            streams: Forwarder(replicas.app(streams=streams), retries, time.monotonic, on_retry)
            for streams in (False, True)
        }
        return cls(planned.name, replicas, info, planned.alias, forwarders)

    async def describe(self) -> dict[str, Any]:
        """Return what ``/v1/models`` shows; raises ServingError, which names the model, if no replica answers."""
        about = await self.replicas.describe()
        self.model = ModelInfo(name=about["registered_name"], version=about["version"], digest=about["digest"])
        return about

    def answer(self, body: bytes) -> Response:
        """Return the model's answer to a request of a task, which may be repeated."""
        return _Relayed(self.forwarders[False], body, is_repeatable=True)

    def relay(self, body: bytes) -> Response:
        """Return the model's answer, in parts, to a request of another kind."""
        return _Relayed(self.forwarders[True], body, is_repeatable=False)


class _Relayed(Response):
    """An answer that a model gives to the request of the route that returns it."""

    def __init__(self, forwarder: Forwarder, body: bytes, *, is_repeatable: bool) -> None:
        super().__init__()
        self._forwarder, self._asked, self._is_repeatable = forwarder, body, is_repeatable

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask the model; raises RequestError if no replica answers in time."""
        cleaned, exchange = begin(scope, routes=frozenset(), now=self._forwarder.clock())
        exchange.is_repeatable |= self._is_repeatable
        limit = self._forwarder.retries.within_s + MARGIN_S if self._is_repeatable else None
        try:
            async with asyncio.timeout(limit):
                await self._forwarder.forward(cleaned, Replay(self._asked, receive), send, exchange=exchange)
        except TimeoutError as error:
            raise RequestError(
                f"No answer within {self._forwarder.retries.within_s:g} s: no replica of the model was free.",
                remedy="Try again later.",
                code="deadline_exceeded",
            ) from error


class RemoteTable:
    """The models of a tiered service; the first one answers requests that name none."""

    def __init__(self, models: Sequence[RemoteModel]) -> None:
        self.models = tuple(models)
        self._looked = 0.0

    @property
    def default(self) -> RemoteModel:
        """The model that answers requests that name none."""
        return self.models[0]

    async def find(self, asked: str | None, *, allowed: Sequence[str]) -> RemoteModel:
        """Return the model called ``asked``; raises as ``names.find_model``."""
        if asked is not None and not any(model.name == asked for model in self.models):
            await self._refresh()
        return find_model(self.models, asked, allowed=allowed)

    async def describe(self) -> list[dict[str, Any]]:
        """Describe all models; raises ServingError for one without a replica."""
        return list(await asyncio.gather(*(model.describe() for model in self.models)))

    async def _refresh(self) -> None:
        """Ask all models for their versions, unless that was done a moment ago."""
        now = time.monotonic()
        if now - self._looked > LOOK_AGAIN_S:
            self._looked = now
            await asyncio.gather(*(model.describe() for model in self.models), return_exceptions=True)
