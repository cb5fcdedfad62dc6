"""MLflow's webhook, which reports that an alias was moved, signed with a secret that both sides know.

The signature is HMAC-SHA256 of `DELIVERY.TIMESTAMP.BODY` in base64, as `v1,SIGNATURE` (mlflow.webhooks.delivery).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from cytoray.errors import RequestError, ServingError

SIGNATURE, TIMESTAMP, DELIVERY = "x-mlflow-signature", "x-mlflow-timestamp", "x-mlflow-delivery-id"
VERSION = "v1"
WINDOW_S = 300.0  # in which a message is accepted; MLflow repeats one that fails for about a minute
MOST_BYTES = 64 * 1024
ALIAS_MOVED = "model_version_alias"


class _Data(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str = ""
    alias: str = ""


class _Event(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    entity: str
    action: str
    data: _Data = _Data()


def sign(secret: str, body: bytes, *, delivery: str, stamp: str) -> str:
    """Return the signature that MLflow's webhook would give a message (delivery id, time in seconds since 1970)."""
    return _signature(secret, f"{delivery}.{stamp}.".encode() + body)


def _signature(secret: str, signed: bytes) -> str:
    digest = hmac.new(secret.encode(), signed, hashlib.sha256).digest()
    return f"{VERSION},{base64.b64encode(digest).decode()}"


class Webhook:
    """Checks messages of MLflow's webhook; the file of the secret is read for each, so that it can be replaced."""

    def __init__(self, secret_file: str, *, clock: Callable[[], float] = time.time) -> None:
        self._secret_file, self._clock = secret_file, clock
        self._seen: dict[str, float] = {}

    def read(self, body: bytes, headers: Mapping[str, str]) -> str | None:
        """Return the registered model whose alias was moved; None for a message about something else or a repetition.

        Raises RequestError for a message that is too large, not signed with the secret, or outside of the window.
        """
        if len(body) > MOST_BYTES:
            raise RequestError("The message is too large.", remedy="Send MLflow's.", code="too_large", limit=MOST_BYTES)
        delivery, stamp = headers.get(DELIVERY, ""), headers.get(TIMESTAMP, "")
        self._check_signature(f"{delivery}.{stamp}.".encode() + body, headers.get(SIGNATURE, ""))
        self._check_time(stamp)
        if delivery in self._seen:
            return None
        try:
            event = _Event.model_validate_json(body)
        except ValidationError as error:
            raise RequestError("The message is not an event of MLflow.", remedy="Check the sender.") from error
        self._seen[delivery] = self._clock()
        return event.data.name if event.entity == ALIAS_MOVED else None

    def _check_signature(self, signed: bytes, given: str) -> None:
        """Raise RequestError unless one of the secrets in the file gives the signature."""
        try:
            secrets = Path(self._secret_file).read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise ServingError(
                "The file with the secret of the webhook cannot be read.",
                remedy="Operator: check rollout.webhook_secret_file.",
            ) from error
        found = False
        for secret in secrets:
            found |= hmac.compare_digest(_signature(secret, signed).encode(), given.encode())
        if not found:
            raise RequestError(
                "The message has no valid signature.",
                remedy="Register the webhook in MLflow with the secret of this service.",
                code="unauthenticated",
            )

    def _check_time(self, stamp: str) -> None:
        """Raise RequestError for an old message, and forget those seen before the window."""
        now = self._clock()
        age_s = now - int(stamp) if stamp.isascii() and stamp.isdecimal() and len(stamp) < 16 else None
        if age_s is None or abs(age_s) > WINDOW_S:
            raise RequestError(
                f"The message was not signed within the last {WINDOW_S:g} s.",
                remedy="Check the clocks of MLflow and of this service.",
                code="unauthenticated",
            )
        self._seen = {delivery: seen for delivery, seen in self._seen.items() if now - seen <= 2 * WINDOW_S}
