"""Relay requests from the ingress to the replicas of a model: bytes cross in one direction, ASGI messages in the other.

The application of a model is the same in both layouts; here it gets its requests by a handle instead of from Serve's
HTTP server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from cytoray.serving.edge.exchange import App, Message, Scope

_KEPT = (
    "type",
    "http_version",
    "method",
    "scheme",
    "path",
    "raw_path",
    "query_string",
    "root_path",
    "headers",
    "client",
)
_PLAIN = (str, bytes, bool, int, float, tuple, type(None))  # of the state of a request


def portable(scope: Scope) -> dict[str, Any]:
    """Return what of a request can be sent to another process."""
    state = {key: value for key, value in scope.get("state", {}).items() if isinstance(value, _PLAIN)}
    return {key: scope[key] for key in _KEPT if key in scope} | {"state": state}


async def answer_whole(app: App, scope: Scope, body: bytes) -> list[Message]:
    """Return the messages of an application's answer."""
    return [message async for message in answer_in_parts(app, scope, body)]


async def answer_in_parts(app: App, scope: Scope, body: bytes) -> AsyncIterator[Message]:
    """Yield the messages of an application's answer; the work on it ends with the iteration.

    An error that the application raises after a complete answer has been logged by it, and is not raised again.
    """
    messages: asyncio.Queue[Message | None] = asyncio.Queue(maxsize=2)
    is_read = True

    async def answer() -> None:
        """Answer, and mark the end."""
        try:
            await app({**scope, "asgi": {"version": "3.0"}}, _Body(body), messages.put)
        finally:
            if is_read:
                await messages.put(None)

    task = asyncio.create_task(answer())
    is_complete = False
    try:
        while (message := await messages.get()) is not None:
            yield message
            is_complete = message["type"] == "http.response.body" and not message.get("more_body", False)
        if not is_complete:
            await task
    finally:
        is_read = False
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # has been logged


class _Body:
    """``receive`` that gives a body, and then waits: a client that leaves ends the call instead."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body

    async def __call__(self) -> Message:
        """Return the body, once."""
        if self._body is None:
            await asyncio.Event().wait()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}
