"""A model whose version changes while it serves: each request runs on one version, and swapping is moving a pointer.

with slot.hold() as service:  # the version of this moment, which lasts as long as the block
    ...
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cytoray.errors import ServingError
from cytoray.serving.cell_work import Caller
from cytoray.serving.payloads.media import JSON_FORM, Form
from cytoray.serving.service import CellService, Reply
from cytoray.tasks.endpoint import Endpoint, Question, ServedModel
from cytoray.tasks.messages import ModelInfo

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Version:
    """A version that is loaded, and the number of its users."""

    service: CellService
    users: int = 0
    is_retired: bool = False
    keep_until: float = 0.0  # of the previous one


class SlotStats:
    """Sums of the counters and gauges of all versions of a slot, also of those that are gone."""

    def __init__(self, services: Callable[[], list[CellService]]) -> None:
        self._services = services
        self._gone: dict[str, float] = {}

    def gauges(self) -> dict[str, float]:
        """Return the gauges: sums, and the age of the oldest cell that waits."""
        found = [service.stats.gauges() for service in self._services()]
        return {name: (max if name == "queue_age_s" else sum)(one[name] for one in found) for name in found[0]}

    def snapshot(self) -> dict[str, float]:
        """Return all counters, and the gauges."""
        gauges = self.gauges()
        counters = dict(self._gone)
        for service in self._services():
            for name, value in service.stats.snapshot().items():
                if name not in gauges:
                    counters[name] = counters.get(name, 0.0) + value
        return counters | gauges

    def add_gone(self, service: CellService) -> None:
        """Keep the counters of a version that is freed."""
        gauges = service.stats.gauges()
        for name, value in service.stats.snapshot().items():
            if name not in gauges:
                self._gone[name] = self._gone.get(name, 0.0) + value


class ModelSlot:
    """A model of the service, by its version of the moment; it can be asked like the CellService of one version.

    The version that served before is kept loaded for a while, so that going back takes no time. A version that is
    neither is freed as soon as the last request that it answers has ended.
    """

    def __init__(self, service: CellService, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = service.limits
        self._clock = clock
        self._lock = threading.Lock()
        self._serving = _Version(service)
        self._previous: _Version | None = None
        self._leaving: set[_Version] = set()
        self._is_stopped = False
        self._at_close: list[Callable[[], None]] = []
        self.stats = SlotStats(self._services)

    @property
    def model(self) -> ModelInfo:
        """Identity of the version that serves now."""
        return self._serving.service.model

    @property
    def served(self) -> ServedModel:
        """The model that answers now; use ``hold`` to ask the same one several times."""
        return self._serving.service.served

    @property
    def labels(self) -> tuple[str, ...]:
        """Cell types that the model predicts; empty if it only embeds."""
        return self._serving.service.labels

    @property
    def width(self) -> int:
        """Length of an embedding."""
        return self._serving.service.width

    @property
    def previous(self) -> ModelInfo | None:
        """The version that served before, if it is still loaded."""
        previous = self._previous
        return None if previous is None else previous.service.model

    @contextlib.contextmanager
    def hold(self) -> Iterator[CellService]:
        """Give the version that serves now; it stays loaded until the block ends, also if another one takes over."""
        with self._lock:
            version = self._serving
            version.users += 1
        try:
            yield version.service
        finally:
            with self._lock:
                version.users -= 1
                is_last = version.is_retired and version.users == 0
            if is_last:
                self._free(version)

    async def answer(
        self,
        endpoint: Endpoint[Any, Any],
        body: bytes,
        form: Form = JSON_FORM,
        caller: Caller = Caller(),  # noqa: B008 - frozen
    ) -> Reply:
        """Answer one request body; raises as ``CellService.answer``."""
        with self.hold() as service:
            return await service.answer(endpoint, body, form, caller)

    async def ask(self, endpoint: Endpoint[Any, Any], question: Question[Any], caller: Caller = Caller()) -> Any:  # noqa: B008
        """Answer a question about cells over the model's vocabulary, which all versions share."""
        with self.hold() as service:
            return await service.ask(endpoint, question, caller)

    async def check(self, *, timeout_s: float) -> None:
        """Check the version that serves; raises as ``CellService.check``."""
        with self.hold() as service:
            await service.check(timeout_s=timeout_s)

    def check_ready(self) -> None:
        """Raise ServingError if requests would not be answered."""
        self._serving.service.check_ready()

    def swap(self, service: CellService, *, keep_s: float) -> None:
        """Have ``service`` answer from the next request on; the version before stays loaded for ``keep_s`` seconds.

        Raises ServingError if the slot is being stopped.
        """
        with self._lock:
            if self._is_stopped:
                raise ServingError("The service is shutting down.", remedy="Start it again.")
            before, self._serving = self._serving, _Version(service)
            before.keep_until = self._clock() + keep_s
            gone, self._previous = self._previous, before
        if gone is not None:
            self._retire(gone)
        self.expire()

    def go_back(self, model: ModelInfo, *, keep_s: float) -> bool:
        """Have the previous version answer again, if it is loaded and is ``model``; returns whether it does."""
        with self._lock:
            previous = self._previous
            if previous is None or previous.service.model != model or self._is_stopped:
                return False
            self._serving, self._previous = previous, self._serving
            self._previous.keep_until = self._clock() + keep_s
        self.expire()
        return True

    def expire(self) -> None:
        """Free the previous version if its time is over."""
        with self._lock:
            previous = self._previous
            if previous is None or self._clock() < previous.keep_until:
                return
            self._previous = None
        self._retire(previous)

    def drop_previous(self) -> None:
        """Free the previous version, for its memory."""
        with self._lock:
            previous, self._previous = self._previous, None
        if previous is not None:
            self._retire(previous)

    def at_close(self, call: Callable[[], None]) -> None:
        """Have ``call`` called when the slot is closed."""
        self._at_close.append(call)

    async def drain(self) -> None:
        """Accept no further requests, and wait until those in the queues are computed."""
        self._stop()
        await asyncio.gather(*(service.drain() for service in self._services()))

    async def close(self) -> None:
        """Stop answering."""
        self._stop()
        for call in self._at_close:
            await asyncio.to_thread(call)
        await asyncio.gather(*(service.close() for service in self._services()))

    def _stop(self) -> None:
        with self._lock:
            self._is_stopped = True

    def _services(self) -> list[CellService]:
        """Return all versions that are loaded."""
        with self._lock:
            previous = [] if self._previous is None else [self._previous]
            return [version.service for version in (self._serving, *previous, *self._leaving)]

    def _retire(self, version: _Version) -> None:
        """Free a version once it has no users."""
        with self._lock:
            version.is_retired = True
            self._leaving.add(version)
            is_used = version.users > 0
        if not is_used:
            self._free(version)

    def _free(self, version: _Version) -> None:
        with self._lock:
            self.stats.add_gone(version.service)
            self._leaving.discard(version)
        closing = threading.Thread(target=_close, args=(version.service,), name="cytoray-free")
        closing.start()


def _close(service: CellService) -> None:
    """Close a version without users, and give its memory back; in a thread, as this takes a while."""
    logger.info("%s version %s is no longer loaded", service.model.name, service.model.version)
    asyncio.run(service.close())
    service = None  # type: ignore[assignment]
    free_memory()


def free_memory() -> None:
    """Free what is no longer used, of the device as well."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
