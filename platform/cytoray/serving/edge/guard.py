"""Decide who may ask: the key of a request, its scope and its quota."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from cytoray.errors import CytorayError, RequestError
from cytoray.serving.edge.addresses import is_loopback
from cytoray.serving.edge.config import EdgeConfig
from cytoray.serving.edge.exchange import Exchange, Scope
from cytoray.serving.edge.keys import Allowance, KeyRecord, KeyRing, read_keys
from cytoray.serving.edge.quotas import Quotas

logger = logging.getLogger(__name__)
#: Answered to everybody: probes, which carry no key, documents without data, and webhooks, which are signed.
OPEN = frozenset(("/healthz", "/readyz", "/docs", "/openapi.json", "/", "/assets", "/v1/webhooks"))
#: Answered to every valid key: what the service is.
DESCRIPTIONS = frozenset(("/version", "/v1/model", "/v1/models"))
JOBS, UPLOADS = "/v1/jobs", "/v1/uploads"  # what is uploaded is for jobs: one scope for both
LOOK_AGAIN_S = 1.0  # a revoked key is refused after this time at most
UNLIMITED = Allowance()


@dataclass(frozen=True)
class Caller:
    """Who asks: the id of the key and its owner, empty without keys, and what it may do."""

    key_id: str = ""
    owner: str = ""
    allowance: Allowance = UNLIMITED


class Guard:
    """Checks requests against a file of keys, which is read again when it changes, and counts quotas."""

    def __init__(self, config: EdgeConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the keys; raises NotFoundError or ConfigError if they cannot be read."""
        self._config = config
        self._clock = clock
        self._quotas = Quotas(clock)
        self._ring = KeyRing({})
        self._seen: tuple[int, ...] = ()
        self._looked = clock()
        if config.needs_key:
            self._seen = self._stamp()
            self._ring = read_keys(str(config.keys_file))

    def admit(self, scope: Scope, exchange: Exchange) -> Caller:
        """Return who asks, whose quota the request counts against until ``leave``.

        Raises RequestError: unauthenticated, forbidden or rate_limited.
        """
        if exchange.route in OPEN:
            return Caller()
        caller = self._identify(scope)
        exchange.key_id, exchange.kind = caller.key_id, caller.allowance.kind
        route = JOBS if exchange.route == UPLOADS else exchange.route
        needed, scopes = route.rpartition("/")[2], caller.allowance.scopes
        if needed not in scopes and "*" not in scopes and exchange.route not in DESCRIPTIONS:
            raise RequestError(
                f"This key is not valid for {exchange.route}; it is for {', '.join(scopes)}.",
                remedy="Ask the operator for a key with this scope.",
                code="forbidden",
            )
        try:
            self._quotas.enter(caller.owner, caller.allowance, asks_cells=exchange.method == "POST")
        except RequestError:
            exchange.headers |= self._quotas.headers(caller.owner, caller.allowance)
            raise
        return caller

    def leave(self, caller: Caller, *, cells: int) -> None:
        """Charge the cells of an admitted request that has been answered."""
        if caller.owner:
            self._quotas.leave(caller.owner, caller.allowance, cells=cells)

    def quota_headers(self, caller: Caller, *, cells: int) -> dict[str, str]:
        """Return the headers about the quota of ``caller``, with ``cells`` that will be charged."""
        return self._quotas.headers(caller.owner, caller.allowance, cells=cells) if caller.owner else {}

    def _identify(self, scope: Scope) -> Caller:
        """Return the owner of the key of a request; raises RequestError without a valid one."""
        if not self._config.needs_key:
            self._check_exposure(scope)
            return Caller()
        self._refresh()
        given = {value for name, value in scope["headers"] if name.lower() == b"authorization"}
        text = given.pop().decode("latin-1") if len(given) == 1 else ""  # of several it is not clear which counts
        kind, _, token = text.partition(" ")
        record = self._ring.find(token.strip(), now=datetime.now(UTC)) if kind.lower() == "bearer" else None
        if record is None:
            raise RequestError(
                "The request has no valid API key.",
                remedy="Send `Authorization: Bearer KEY`; the operator of the service issues keys.",
                code="unauthenticated",
            )
        return _caller(record)

    def _check_exposure(self, scope: Scope) -> None:
        """Raise RequestError if the request came to an address beyond loopback and nobody decided who may ask."""
        host = str((scope.get("server") or ("",))[0])
        is_address = host.replace(".", "").isdigit() or ":" in host
        if self._config.is_decided or not is_address or is_loopback(host):
            return
        raise RequestError(
            "This service can be reached from other machines, and its operator has not decided who may ask.",
            remedy=f"Operator: {self._config.undecided(host)}.",
            code="forbidden",
        )

    def _refresh(self) -> None:
        """Read the file again if it has changed; if that fails, this is logged and the last keys stay valid."""
        now = self._clock()
        if now - self._looked < LOOK_AGAIN_S:
            return
        self._looked = now
        stamp = self._stamp()
        if stamp == self._seen:
            return
        try:
            self._ring = read_keys(str(self._config.keys_file))
        except CytorayError as error:
            logger.error("the keys read last stay valid: %s", error)
        self._seen = stamp

    def _stamp(self) -> tuple[int, ...]:
        """Return what changes when the file is replaced; empty if it is missing."""
        try:
            found = os.stat(str(self._config.keys_file))
        except OSError:
            return ()
        return found.st_ino, found.st_mtime_ns, found.st_size


def _caller(record: KeyRecord) -> Caller:
    return Caller(record.id, record.owner, record.allowance)
