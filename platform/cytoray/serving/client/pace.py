"""Bound the requests in flight: fewer while the service is busy, more again while it answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Pace:
    """Requests of one call: at most ``most`` at once, half as many after a refusal, one more after a round of answers.

    Nothing is sent before the time that a refusal asked to wait for is over.
    """

    def __init__(self, most: int) -> None:
        self.limit = float(most)
        self.in_flight = 0
        self._most = most
        self._resume_at = 0.0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn, and take it while the block runs."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.in_flight < int(self.limit))
            self.in_flight += 1
        try:
            while (left := self._resume_at - asyncio.get_running_loop().time()) > 0:
                await asyncio.sleep(left)
            yield
        finally:
            async with self._changed:
                self.in_flight -= 1
                self._changed.notify_all()

    def answered(self) -> None:
        """Note an answer."""
        self.limit = min(self.limit + 1 / self.limit, self._most)

    def refused(self, wait_s: float) -> None:
        """Note a refusal by a busy service, which asks to wait for ``wait_s``."""
        self.limit = max(self.limit / 2, 1.0)
        self._resume_at = max(self._resume_at, asyncio.get_running_loop().time() + wait_s)
