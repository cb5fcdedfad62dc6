"""Follow an alias: look where it points, load that version beside the one that serves, check it, and swap.

Whatever fails, the version that serves keeps serving; the reason is logged once, counted and reported.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Protocol, TypeVar

from cytoray.errors import CytorayError, ServingError
from cytoray.failpoints import failpoint
from cytoray.registry.pinning import PinnedModel
from cytoray.serving.rollout.config import RolloutConfig
from cytoray.serving.rollout.notice import LISTENERS
from cytoray.serving.rollout.slot import ModelSlot
from cytoray.serving.rollout.status import Refusal, RolloutStatus
from cytoray.serving.service import CellService
from cytoray.tasks.messages import ModelInfo

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
SWAPPED, WENT_BACK = "swapped", "rolled_back"
LOOK_TIMEOUT_S = 60.0
MOST_PAUSE_S = 600.0  # between two attempts to load a version that was refused
SLICE_S = 0.1  # in which a wait notices that it is to stop
JITTER = 0.25  # so that replicas do not ask MLflow at the same time


class Versions(Protocol):
    """The source of versions."""

    def look_up(self, uri: str) -> PinnedModel:
        """Find the version that ``uri`` names now."""

    def load(self, pinned: PinnedModel, slot: ModelSlot) -> CellService:
        """Load and check a version beside those of ``slot``."""

    def succeed(self, new: CellService, old: CellService, *, is_rollback: bool) -> None:
        """Raise CytorayError unless ``new`` can take the place of ``old``."""

    def remember(self, uri: str, pinned: PinnedModel) -> None:
        """Record that a version serves."""


@dataclass
class _Refused:
    """A version that was not taken."""

    pinned: PinnedModel
    reason: str
    result: str
    since: str
    next_try: float
    attempts: int = 1


class Follower:
    """Keeps a slot at the version that ``uri``, models:/NAME@ALIAS, names."""

    def __init__(
        self, slot: ModelSlot, uri: str, pinned: PinnedModel, *, versions: Versions, config: RolloutConfig
    ) -> None:
        """``pinned`` is the version that the slot serves."""
        self.uri = uri
        self.swaps: Counter[str] = Counter()
        self._slot, self._pinned, self._versions, self._config = slot, pinned, versions, config
        self._since = _now()
        self._loading: ModelInfo | None = None
        self._refused: dict[str, _Refused] = {}  # by URI: of the alias, and of the challenger's
        self._trouble: str | None = None  # why the alias cannot be seen
        self._checked: str | None = None
        self._stopped, self._wake = threading.Event(), threading.Event()
        self._turn = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Look at the alias again and again, in a thread."""
        LISTENERS.add(self)
        if self._config.challenger is not None:
            self._wake.set()  # it is not loaded yet
        self._thread = threading.Thread(target=self._run, name="cytoray-follow", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop following; a version that is being loaded is discarded."""
        LISTENERS.discard(self)
        self._stopped.set()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(10.0)

    def poke(self) -> None:
        """Look at once, also if the version was refused."""
        for refused in list(self._refused.values()):
            refused.next_try = 0.0
        self._wake.set()

    def refuse(self, pinned: PinnedModel, error: BaseException) -> None:
        """Record that a version could not be served when the replica started."""
        self._refuse(self.uri, pinned, error)

    def check(self) -> None:
        """Look at the alias once, and serve the version that it names."""
        with self._turn:
            self._slot.expire()
            wanted = self._look_up()
            if wanted is not None and not self._stopped.is_set():
                self._follow(wanted)
            if self._config.challenger is not None and not self._stopped.is_set():
                self._follow_challenger()

    def status(self) -> RolloutStatus:
        """Return what this replica serves, and why."""
        refused = self._refused.get(self.uri)
        shown = None
        reasons = [] if self._trouble is None else [self._trouble]
        if refused is not None:
            version = refused.pinned.version
            shown = Refusal(
                version=version,
                reason=refused.reason,
                result=refused.result,
                since=refused.since,
                attempts=refused.attempts,
            )
            reasons.append(f"{self.uri} names version {version}, which is not served: {refused.reason}")
        return RolloutStatus(
            model=self._slot.model,
            follows=self.uri,
            since=self._since,
            previous=self._slot.previous,
            loading=self._loading,
            degraded=" ".join(reasons) or None,
            refused=shown,
            checked=self._checked,
            swaps=dict(self.swaps),
            challenger=self._slot.challenger_status(),
        )

    def _run(self) -> None:
        while not self._stopped.is_set():
            pause_s = self._config.poll_s * random.uniform(1 - JITTER, 1 + JITTER)
            self._wake.wait(pause_s)
            self._wake.clear()
            if not self._stopped.is_set():
                self.check()

    def _look_up(self) -> PinnedModel | None:
        """Return the version that the alias names; None if it cannot be seen, which is logged once."""
        found = self._call(partial(self._versions.look_up, self.uri), timeout_s=LOOK_TIMEOUT_S)
        if self._stopped.is_set():
            return None
        error = _error_of(found, f"MLflow did not answer within {LOOK_TIMEOUT_S:g} s.")
        if error is None:
            if self._trouble is not None:
                logger.info("%s can be seen again", self.uri)
            self._trouble, self._checked = None, _now()
            return found.result()
        if str(error) != self._trouble:
            logger.warning("%s: version %s keeps serving: %s", self.uri, self._pinned.version, error)
        self._trouble = str(error)
        return None

    def _follow(self, wanted: PinnedModel) -> None:
        """Serve ``wanted``, unless it serves already or was refused a short while ago."""
        if model_of(wanted) == self._slot.model:
            self._refused.pop(self.uri, None)
            self._pinned = wanted
            return
        if self._waits(self.uri, wanted):
            return
        if self._slot.take_loaded(model_of(wanted), keep_s=self._config.keep_previous_s):
            self._moved(wanted, WENT_BACK)
            return
        is_rollback = self._pinned.replaced == wanted.version
        service = self._load(self.uri, wanted, is_rollback=is_rollback)
        if service is None:
            return
        failpoint("swap.before_pointer")
        try:
            self._slot.swap(service, keep_s=self._config.keep_previous_s)
        except ServingError:  # the slot is being stopped
            _close(service)
            return
        failpoint("swap.after_pointer")
        self._moved(wanted, SWAPPED)

    def _moved(self, pinned: PinnedModel, result: str) -> None:
        logger.info("%s: version %s serves instead of %s (%s)", self.uri, pinned.version, self._pinned.version, result)
        self.swaps[result] += 1
        self._refused.pop(self.uri, None)
        self._pinned, self._since = pinned, _now()
        self._versions.remember(self.uri, pinned)
        failpoint("swap.after_remember")

    def _follow_challenger(self) -> None:
        """Load the challenger, or drop it if its alias is missing or names the version that serves."""
        assert self._config.challenger is not None, "only with a challenger"
        uri = f"{self.uri.rpartition('@')[0]}@{self._config.challenger.alias}"
        found = self._call(partial(self._versions.look_up, uri), timeout_s=LOOK_TIMEOUT_S)
        error = _error_of(found, "MLflow did not answer.")
        if self._stopped.is_set() or (error is not None and self._trouble is not None):
            return  # MLflow is away: the challenger stays
        wanted = None if error is not None else found.result()
        if wanted is None or model_of(wanted) == self._slot.model:
            self._slot.set_challenger(None, self._config.challenger)
            self._refused.pop(uri, None)
        elif model_of(wanted) != self._slot.challenger and not self._waits(uri, wanted):
            service = self._load(uri, wanted, is_rollback=True)
            if service is not None:
                self._slot.set_challenger(service, self._config.challenger)
                self._refused.pop(uri, None)

    def _load(self, uri: str, wanted: PinnedModel, *, is_rollback: bool) -> CellService | None:
        """Load and check a version beside the one that serves; None if it is refused."""
        self._loading = model_of(wanted)
        logger.info("%s: version %s is being loaded", uri, wanted.version)
        try:
            loading = self._call(
                partial(self._load_there, wanted, is_rollback=is_rollback), timeout_s=self._config.load_timeout_s
            )
        finally:
            self._loading = None
        limit = f"Loading version {wanted.version} took more than {self._config.load_timeout_s:g} s."
        error = _error_of(loading, limit)
        if error is None:
            return loading.result()
        loading.add_done_callback(_discard)  # at once, or when it has ended after all
        if not self._stopped.is_set():
            self._refuse(uri, wanted, error)
        return None

    def _load_there(self, wanted: PinnedModel, *, is_rollback: bool) -> CellService:
        """Load and check a version, in a thread."""
        service = self._versions.load(wanted, self._slot)
        failpoint("swap.after_load")
        try:
            with self._slot.hold() as old:
                self._versions.succeed(service, old, is_rollback=is_rollback)
        except CytorayError:
            _close(service)
            raise
        return service

    def _waits(self, uri: str, wanted: PinnedModel) -> bool:
        """Return whether a version was refused, and is not to be tried again yet."""
        refused = self._refused.get(uri)
        same = refused is not None and model_of(refused.pinned) == model_of(wanted)
        return same and refused is not None and time.monotonic() < refused.next_try

    def _refuse(self, uri: str, wanted: PinnedModel, error: BaseException) -> None:
        """Keep the version that serves: log a new reason, count, and set the time of the next attempt."""
        reason, result = _described(error)
        self.swaps[result] += 1
        before = self._refused.get(uri)
        if before is None or model_of(before.pinned) != model_of(wanted):
            before = None
        attempts = 1 if before is None else before.attempts + 1
        if before is None or before.reason != reason:
            logger.error(
                "%s: version %s is not served, %s stays: %s", uri, wanted.version, self._pinned.version, reason
            )
        pause_s = min(self._config.poll_s * 2 ** min(attempts, 16), MOST_PAUSE_S)
        since = _now() if before is None else before.since
        self._refused[uri] = _Refused(wanted, reason, result, since, time.monotonic() + pause_s, attempts)

    def _call(self, function: Callable[[], Result], *, timeout_s: float) -> Future[Result]:
        """Run ``function`` in a thread and wait until it has ended, the time is over or the follower is stopped."""
        threads = ThreadPoolExecutor(1, thread_name_prefix="cytoray-version")
        future = threads.submit(function)
        threads.shutdown(wait=False)
        deadline = time.monotonic() + timeout_s
        while not future.done() and not self._stopped.is_set() and time.monotonic() < deadline:
            wait([future], min(SLICE_S, timeout_s))
        return future


def model_of(pinned: PinnedModel) -> ModelInfo:
    """Return the identity of a pinned model as answers give it."""
    return ModelInfo(name=pinned.name, version=pinned.version, digest=pinned.digest)


def _error_of(future: Future[Result], late: str) -> BaseException | None:
    """Return why there is no result, ``late`` if the time is over; None if there is one."""
    if not future.done():
        return ServingError(late, remedy="See the log of the replica.", refused="timeout")
    return future.exception()


def _described(error: BaseException) -> tuple[str, str]:
    """Return the reason as a text, and a stable name of its kind."""
    if isinstance(error, CytorayError):
        kind = re.sub(r"(?<=.)([A-Z])", r"_\1", type(error).__name__.removesuffix("Error")).lower()
        return str(error), str(error.details.get("refused", kind))
    return f"{type(error).__name__}: {error}"[:500], "failed"


def _discard(loading: Future[CellService]) -> None:
    """Close a version that was loaded too late."""
    if not loading.cancelled() and loading.exception() is None:
        _close(loading.result())


def _close(service: CellService) -> None:
    asyncio.run(service.close())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
