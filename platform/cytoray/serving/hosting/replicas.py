"""The replicas of a model, asked by the handle of their deployment."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from cytoray.errors import ServingError
from cytoray.serving.edge.exchange import App, Receive, Scope, Send
from cytoray.serving.hosting.relay import portable

ASK_TIMEOUT_S = 5.0  # for what a model is
# Serve may know no replica for a moment, while those that died or were replaced are made up for.
UNAVAILABLE_TIMES, UNAVAILABLE_PAUSE_S = 50, 0.2


@dataclass(frozen=True)
class Replicas:
    """The replicas of the model ``name``."""

    name: str
    handle: DeploymentHandle[Any]

    def app(self, *, streams: bool) -> App:
        """Return them as an ASGI application; ``streams`` as in ``HandleApp``."""
        return HandleApp(self.handle, streams)

    async def describe(self) -> dict[str, Any]:
        """Return what the model is; raises ServingError, which names the model, if no replica answers."""
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                about: dict[str, Any] = await self.handle.describe.remote()
        except (RayError, RayServeException, TimeoutError) as error:
            raise ServingError(
                f"Model {self.name}: no replica answers ({type(error).__name__}).",
                remedy="Wait until one has started; `serve status` has the reason if none does.",
                model=self.name,
            ) from error
        return about


@dataclass(frozen=True)
class HandleApp:
    """The replicas of a model as an ASGI application; it answers nothing if the replica that it asked has died.

    ``streams`` is whether answers come in parts, as large files should; an answer in one message takes less time.
    """

    handle: DeploymentHandle[Any]
    streams: bool = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask a replica and send its answer."""
        body = (await receive())["body"]
        asked = portable(scope)
        # By reference: Serve's gRPC between deployments, if it is on, refuses messages over 4 MiB.
        handle: Any = self.handle.options(stream=self.streams, _by_reference=True)
        for _ in range(UNAVAILABLE_TIMES):
            try:
                if self.streams:
                    async for message in handle.stream.remote(asked, body):
                        await send(message)
                    return
                messages = await handle.answer.remote(asked, body)
            except (ActorDiedError, ActorUnavailableError):
                return
            except BackPressureError:
                break
            except DeploymentUnavailableError:  # raised before a replica has the request
                await asyncio.sleep(UNAVAILABLE_PAUSE_S)
                continue
            for message in messages:
                await send(message)
            return
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
