"""API keys: a file of their hashes, with what each key may do; the keys themselves are shown once and never stored.

A key is ``cyt_ID_SECRET``; the file has ID and the SHA-256 of the whole key. The secret has 256 random bits, so a slow
hash would protect nothing. An owner has at most two valid keys, so that one can be replaced without an outage.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from cytoray.config import Config
from cytoray.drafts import draft_of
from cytoray.errors import ConfigError, ConflictError, NotFoundError

Kind = Literal["interactive", "bulk"]
PREFIX = "cyt"
OWNER = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$"
SCOPE = r"^(\*|[a-z][a-z0-9_-]*)$"
MAX_VALID = 2  # keys of an owner: the old one and the new one, while one replaces the other
SECRET_BYTES = 32


class Allowance(Config):
    """Permissions of the keys of an owner; quotas are shared by the keys of an owner."""

    scopes: tuple[Annotated[str, Field(pattern=SCOPE)], ...] = Field(
        ("*",), min_length=1, description="Routes: embed, annotate, metrics, …; * for all."
    )
    models: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        ("*",), min_length=1, description="Models of the service, by name; * for all."
    )
    kind: Kind | None = Field(
        None, description="interactive, or bulk: waits for interactive ones; null: by the size of each request."
    )
    cells_per_minute: float | None = Field(None, ge=1, description="Cells per minute, also the burst; null: no limit.")
    concurrency: int | None = Field(None, ge=1, description="Maximum number of requests in flight; null: no limit.")


class KeyRecord(Config):
    """One key in the file."""

    id: str = Field(pattern=r"^[0-9a-f]{12}$", description="Public name of the key, in logs.")
    owner: str = Field(pattern=OWNER, description="Person or program that uses it.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Hash of the key.")
    allowance: Allowance = Field(Allowance(), description="What it may do.")
    created: datetime = Field(description="When it was made.")
    expires: datetime | None = Field(None, description="When it ends; null: never.")

    def is_valid(self, now: datetime) -> bool:
        """Return whether the key has not expired."""
        return self.expires is None or now < self.expires


class _File(Config):
    """Content of a file of keys."""

    format: Literal[1] = Field(1, description="Version of the format.")
    keys: tuple[KeyRecord, ...] = Field((), description="All keys.")


@dataclass(frozen=True)
class KeyRing:
    """The keys of a file, to check the key of a request."""

    records: dict[str, KeyRecord]

    def find(self, token: str, *, now: datetime) -> KeyRecord | None:
        """Return the record of a valid key, else None; the time does not depend on how much of it is right."""
        prefix, _, rest = token.partition("_")
        record = self.records.get(rest.partition("_")[0])
        expected = record.sha256 if record is not None else "0" * 64
        same = hmac.compare_digest(_hash(token), expected)
        return record if record is not None and same and prefix == PREFIX and record.is_valid(now) else None


def read_keys(path: str | Path) -> KeyRing:
    """Read a file of keys; raises NotFoundError if it is missing, ConfigError if it is not one."""
    try:
        text = Path(path).read_bytes()
    except FileNotFoundError as error:
        remedy = "Write one with `cytoray keys new NAME --file FILE`."
        raise NotFoundError(f"{path}: this file of API keys does not exist.", remedy=remedy) from error
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot read this file of API keys ({error.strerror}).", remedy="Check its owner."
        ) from error
    try:
        found = _File.model_validate_json(text, strict=True)
    except ValidationError as error:  # its text would show values
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "top level"
        raise ConfigError(
            f"{path}: not a file of API keys: {where}: {first['msg']}.", remedy="Restore it, or write a new one."
        ) from error
    return KeyRing({record.id: record for record in found.keys})


def check_owner(owner: str) -> str:
    """Return the name of an owner; raises ConfigError if it is not one."""
    if not re.fullmatch(OWNER, owner):
        remedy = "Use up to 64 letters, digits, dots, dashes, underscores and @."
        raise ConfigError(f"{owner!r} is not a name of an owner of keys.", remedy=remedy)
    return owner


def create_key(path: str | Path, *, owner: str, allowance: Allowance, days: int | None) -> tuple[str, KeyRecord]:
    """Add a key to the file, which is created if it is missing; returns the key, which is not stored, and its record.

    Raises ConflictError if the owner has two valid keys already, ConfigError for a file that is not one of keys.
    """
    now = datetime.now(UTC)
    identity = secrets.token_hex(6)
    token = f"{PREFIX}_{identity}_{secrets.token_urlsafe(SECRET_BYTES)}"
    expires = None if days is None else now + timedelta(days=days)
    record = KeyRecord(id=identity, owner=owner, sha256=_hash(token), allowance=allowance, created=now, expires=expires)
    with _edited(Path(path)) as keys:
        valid = [known.id for known in keys.values() if known.owner == owner and known.is_valid(now)]
        if len(valid) >= MAX_VALID:
            raise ConflictError(
                f"{owner} has {len(valid)} valid keys already: {', '.join(valid)}.",
                remedy="Revoke the one that is not used any more: `cytoray keys revoke ID`.",
            )
        keys[identity] = record
    return token, record


def revoke_key(path: str | Path, identity: str) -> KeyRecord:
    """Remove a key from the file; raises NotFoundError that lists the keys if it is not there."""
    read_keys(path)
    with _edited(Path(path)) as keys:
        if identity not in keys:
            known = ", ".join(f"{key} ({record.owner})" for key, record in keys.items()) or "none"
            raise NotFoundError(f"{path}: unknown key {identity!r}.", remedy=f"Keys: {known}.")
        return keys.pop(identity)


@contextlib.contextmanager
def _edited(path: Path) -> Iterator[dict[str, KeyRecord]]:
    """Give the keys of a file to change; the file is replaced whole if the block does not raise, one editor at a time.

    Only the user who writes it may read it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        keys = dict(read_keys(path).records) if path.exists() else {}
        yield keys
        content = _File(keys=tuple(keys.values())).model_dump(mode="json")
        with draft_of(path) as draft:
            draft.touch(mode=0o600)
            draft.write_text(json.dumps(content, indent=1) + "\n")
            with open(draft) as written:
                os.fsync(written.fileno())


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
