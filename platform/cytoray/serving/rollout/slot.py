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
from typing import TYPE_CHECKING, Any

from cytoray.errors import ServingError
from cytoray.serving.cell_work import Caller
from cytoray.serving.payloads.media import JSON_FORM, Form
from cytoray.serving.rollout.challenger import Challenger
from cytoray.serving.rollout.config import ChallengerConfig
from cytoray.serving.rollout.status import ChallengerStatus, RolloutStatus
from cytoray.serving.service import CellService, Reply
from cytoray.tasks.endpoint import Endpoint, Question, ServedModel
from cytoray.tasks.messages import ModelInfo

if TYPE_CHECKING:
    from cytoray.serving.rollout.follower import Follower

logger = logging.getLogger(__name__)
FREE_TIMEOUT_S = 30.0


@dataclass(eq=False)
class _Version:
    """A version that is loaded, and the number of its users."""

    service: CellService
    users: int = 0
    is_retired: bool = False
    keep_until: float = 0.0  # of the previous one
    challenger: Challenger | None = None  # its comparison, if it is a challenger


class SlotStats:
    """Sums of the counters and gauges of all versions of a slot, also of those that are gone."""

    def __init__(self, services: Callable[[], list[CellService]]) -> None:
        self._services = services
        self._gone: dict[str, float] = {}
        self._num_gone = 0

    def gauges(self) -> dict[str, float]:
        """Return the gauges: sums, and the age of the oldest cell that waits."""
        found = [service.stats.gauges() for service in self._services()]
        return {name: (max if name == "queue_age_s" else sum)(one[name] for one in found) for name in found[0]}

    def snapshot(self) -> dict[str, float]:
        """Return all counters, and the gauges."""
        gauges = self.gauges()
        while True:
            seen, counters = self._num_gone, dict(self._gone)
            for service in self._services():
                _add(counters, service)
            if seen == self._num_gone:  # otherwise one was freed meanwhile, and would be missing or counted twice
                return counters | gauges

    def add_gone(self, service: CellService) -> None:
        """Keep the counters of a version that is freed."""
        _add(self._gone, service)
        self._num_gone += 1


def _add(counters: dict[str, float], service: CellService) -> None:
    """Add the counters of a version."""
    gauges = service.stats.gauges()
    for name, value in service.stats.snapshot().items():
        if name not in gauges:
            counters[name] = counters.get(name, 0.0) + value


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
        self._challenger: _Version | None = None
        self._leaving: set[_Version] = set()
        self._is_stopped = False
        self.follower: Follower | None = None  # changes the version; stopped with the slot
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

    @property
    def challenger(self) -> ModelInfo | None:
        """The challenger, if there is one."""
        challenger = self._challenger
        return None if challenger is None else challenger.service.model

    def status(self) -> RolloutStatus:
        """Return which version serves, and why."""
        return RolloutStatus(model=self.model) if self.follower is None else self.follower.status()

    def challenger_status(self) -> ChallengerStatus | None:
        """Return the comparison with the challenger."""
        version = self._challenger
        return None if version is None or version.challenger is None else version.challenger.status()

    @contextlib.contextmanager
    def hold(self) -> Iterator[CellService]:
        """Give the version that serves now; it stays loaded until the block ends, also if another one takes over."""
        with self._using(lambda: self._serving) as version:
            assert version is not None, "a version always serves"
            yield version.service

    @contextlib.contextmanager
    def _using(self, choose: Callable[[], _Version | None]) -> Iterator[_Version | None]:
        """Keep a version loaded for as long as the block lasts."""
        with self._lock:
            version = choose()
            if version is not None:
                version.users += 1
        try:
            yield version
        finally:
            self._leave(version)

    def _leave(self, version: _Version | None) -> None:
        if version is not None:
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
        with self._using(lambda: self._serving) as own, self._using(lambda: self._challenger) as other:
            assert own is not None, "a version always serves"
            rival = None if other is None else other.challenger
            if other is None or rival is None or not rival.is_chosen(body):
                return await own.service.answer(endpoint, body, form, caller)
            reply, computes = None, own
            if not rival.config.shadow:
                reply = await rival.try_answer(other.service.answer(endpoint, body, form, caller))
            if reply is None:
                reply, computes = await own.service.answer(endpoint, body, form, caller), other
            copying = contextlib.ExitStack()
            copying.enter_context(self._using(lambda: computes))
            rival.compare(reply, computes.service, release=copying.close)
            return reply

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

    def take_loaded(self, model: ModelInfo, *, keep_s: float) -> bool:
        """Have ``model`` answer, if it is the version before and still loaded; returns whether it does."""
        with self._lock:
            previous = self._previous
            if previous is None or previous.service.model != model or self._is_stopped:
                return False
            self._serving, self._previous = previous, self._serving
            self._previous.keep_until = self._clock() + keep_s
        self.expire()
        return True

    def set_challenger(self, service: CellService | None, config: ChallengerConfig) -> None:
        """Compare the version that serves with another one from now on, or with none."""
        with self._lock:
            before, self._challenger = self._challenger, None
            if service is not None:
                self._challenger = _Version(service, challenger=Challenger(service, config))
        if before is not None:
            self._retire(before)

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
        if previous is not None and (freeing := self._retire(previous)) is not None:
            freeing.join(FREE_TIMEOUT_S)

    async def drain(self) -> None:
        """Accept no further requests, and wait until those in the queues are computed."""
        self._stop()
        await asyncio.gather(*(service.drain() for service in self._services()))

    async def close(self) -> None:
        """Stop answering."""
        self._stop()
        if self.follower is not None:
            await asyncio.to_thread(self.follower.stop)
        await asyncio.gather(*(service.close() for service in self._services()))

    def _stop(self) -> None:
        with self._lock:
            self._is_stopped = True

    def _services(self) -> list[CellService]:
        """Return all versions that are loaded."""
        with self._lock:
            loaded = (self._serving, self._previous, self._challenger, *self._leaving)
            return [version.service for version in loaded if version is not None]

    def _retire(self, version: _Version) -> threading.Thread | None:
        """Free a version once it has no users; returns the thread that does, if that is now."""
        with self._lock:
            version.is_retired = True
            self._leaving.add(version)
            is_used = version.users > 0
        return None if is_used else self._free(version)

    def _free(self, version: _Version) -> threading.Thread:
        with self._lock:
            self.stats.add_gone(version.service)
            self._leaving.discard(version)
        freeing = threading.Thread(target=_free, args=([version],), name="cytoray-free")
        freeing.start()
        return freeing


def _free(versions: list[_Version]) -> None:
    """Close a version without users, and give its memory back; in a thread, as this takes a while."""
    version = versions.pop()
    logger.info("%s version %s is no longer loaded", version.service.model.name, version.service.model.version)
    asyncio.run(version.service.close())
    del version
    free_memory()


def free_memory() -> None:
    """Free what is no longer used, of the device as well."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
