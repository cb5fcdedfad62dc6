"""Receive the body of a request whole, within a size and a time, before a replica is occupied by it."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect

from cytoray.errors import RequestError
from cytoray.serving.edge.exchange import Message, Receive, Scope, header

HELD_BODIES = 16  # bodies of the maximum size that a process holds at most


class Bodies:
    """The bodies that this process holds; their sum is bounded."""

    def __init__(self, *, max_bytes: int, timeout_s: float) -> None:
        self.held = 0
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def read(self, scope: Scope, receive: Receive) -> bytes:
        """Receive a body; the caller calls ``release`` with its length when it is answered.

        Raises RequestError (too_large, body_timeout or overloaded) as early as that is known, ClientDisconnect.
        """
        declared = header(scope, b"content-length")
        if declared.isdecimal():
            self._check(int(declared), expected=int(declared))
        chunks: list[bytes] = []
        seen = 0
        try:
            async with asyncio.timeout(self._timeout_s):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    chunk = message.get("body", b"")
                    chunks.append(chunk)
                    seen += len(chunk)
                    self.held += len(chunk)
                    self._check(seen, expected=0)
                    more = message.get("more_body", False)
        except TimeoutError as error:
            self.held -= seen
            raise RequestError(
                f"The body did not arrive within {self._timeout_s:g} s; {seen} bytes did.",
                remedy="Send fewer cells in one request, or use a faster connection.",
                code="body_timeout",
            ) from error
        except (RequestError, ClientDisconnect, asyncio.CancelledError):
            self.held -= seen
            raise
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def release(self, body: bytes) -> None:
        """Count a body as answered."""
        self.held -= len(body)

    def _check(self, size: int, *, expected: int) -> None:
        """Raise RequestError if a body, or all of them with one that is expected, are too large."""
        if size > self._max_bytes:
            raise RequestError(
                f"The body has {size} bytes or more; the limit is {self._max_bytes}.",
                remedy="Send fewer cells in one request.",
                code="too_large",
                pointer="",
                what="bytes",
                seen=size,
                limit=self._max_bytes,
            )
        if self.held + expected > HELD_BODIES * self._max_bytes:
            raise RequestError(
                "The service holds as many request bodies as it may.", remedy="Try again later.", code="overloaded"
            )


class Replay:
    """``receive`` that gives the whole body, and then what the client does; again after ``rewind``."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self.is_abandoned = False  # the client has disconnected
        self._body = body
        self._receive = receive
        self._given = False

    def rewind(self) -> None:
        """Give the body once more."""
        self._given = False

    async def __call__(self) -> Message:
        """Return the next message."""
        if self._given:
            message = await self._receive()
            self.is_abandoned |= message["type"] == "http.disconnect"
            return message
        self._given = True
        return {"type": "http.request", "body": self._body, "more_body": False}
