"""Uploads: files that are sent in parts to a local store, or at once to S3 by a pre-signed URL."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from cytoray import storage
from cytoray.errors import RequestError
from cytoray.presigned import presign
from cytoray.serving.jobs.config import JobsConfig
from cytoray.serving.jobs.files import ID, load, new_id
from cytoray.serving.jobs.messages import UploadRequest, UploadState
from cytoray.tasks.messages import Message

PART_BYTES = 4 * 2**20  # below the limits of servers in front, also of time
URL_S = 6 * 3600
HOUR_S = 3600.0
MOST_NAME = 120  # characters of the name of a file: file systems take 255 bytes, and some are added while it is written
_UNUSUAL = re.compile(r"[^A-Za-z0-9._-]+")


class UploadRecord(Message):
    """An announced upload."""

    id: str
    owner: str
    created: float
    asked: UploadRequest


@dataclass(frozen=True)
class Uploads:
    """The uploads of a store."""

    root: str
    config: JobsConfig
    part_bytes: int

    def open(self, owner: str, asked: UploadRequest) -> UploadRecord:
        """Announce a file; RequestError if it, or all of them, would be too large."""
        _check_size("file", asked.num_bytes, self.config.max_upload_bytes)
        stored = sum(record.asked.num_bytes for record in self._all())
        _check_size("sum of all uploads", stored + asked.num_bytes, self.config.max_stored_bytes)
        record = UploadRecord(id=new_id("u"), owner=owner, created=time.time(), asked=asked)
        storage.write_bytes(self._about(record.id), record.model_dump_json().encode())
        return record

    def find(self, owner: str, upload_id: str) -> UploadRecord:
        """Find an upload of an owner; raises RequestError if it does not exist."""
        record = load(self._about(upload_id), UploadRecord) if ID.fullmatch(upload_id) else None
        if record is None or record.owner != owner:
            raise RequestError("There is no such upload.", remedy="Upload the file again.", code="not_found")
        return record

    def state(self, record: UploadRecord) -> UploadState:
        """Return how much has arrived."""
        received = self._received(record)
        asked = record.asked
        expires = datetime.fromtimestamp(record.created + self.config.keep_h * HOUR_S, UTC)
        return UploadState(
            id=record.id,
            name=asked.name,
            num_bytes=asked.num_bytes,
            received=received,
            complete=received == asked.num_bytes,
            part_bytes=self.part_bytes,
            put_url=self._put_url(record) if received < asked.num_bytes else None,
            expires=expires,
        )

    def uri(self, record: UploadRecord) -> str:
        """The file, under its name as far as that is plain: some formats are known by it."""
        name = _UNUSUAL.sub("_", record.asked.name).lstrip(".")[-MOST_NAME:] or "cells"
        return storage.join(self.root, "uploads", record.id, "file", name)

    async def append(self, record: UploadRecord, parts: AsyncIterator[bytes], *, offset: int) -> None:
        """Append a part that begins at ``offset``; what arrives broken is cut off.

        Raises RequestError unless the file has that many bytes, or if it would have more than announced.
        """
        if storage.is_remote(self.root):
            raise RequestError(
                "Parts are not accepted: the files of this service are on S3.",
                remedy="Send the whole file to `put_url` by PUT.",
                code="use_put_url",
            )
        with self._locked(record) as file:
            received, whole = file.seek(0, os.SEEK_END), False
            if received != offset:
                raise _wrong_offset(received, offset)
            try:
                async for piece in parts:
                    if file.tell() + len(piece) > record.asked.num_bytes:
                        raise _more_than_announced(record)
                    file.write(piece)
                whole = True
            finally:
                if not whole:
                    file.truncate(offset)
            file.flush()
            os.fsync(file.fileno())
            self._verify(record, file)

    def put(self, record: UploadRecord, content: bytes) -> None:
        """Write a file whose bytes are at hand."""
        storage.write_bytes(self.uri(record), content)

    def delete(self, record: UploadRecord) -> None:
        """Delete an upload."""
        storage.delete_prefix(storage.join(self.root, "uploads", record.id))

    def sweep(self, *, keep: set[str]) -> None:
        """Delete what is too old, except the uploads whose ids are in ``keep``."""
        before = time.time() - self.config.keep_h * HOUR_S
        for record in self._all():
            if record.created < before and record.id not in keep:
                self.delete(record)

    def _all(self) -> Iterator[UploadRecord]:
        for uri in storage.list_files(storage.join(self.root, "uploads")):
            if uri.endswith("/about.json") and (record := load(uri, UploadRecord)) is not None:
                yield record

    def _about(self, upload_id: str) -> str:
        return storage.join(self.root, "uploads", upload_id, "about.json")

    def _received(self, record: UploadRecord) -> int:
        uri = self.uri(record)
        return storage.info(uri).num_bytes if storage.exists(uri) else 0

    def _put_url(self, record: UploadRecord) -> str | None:
        if not storage.is_remote(self.root):
            return None
        return presign(self.uri(record), write=True, expires_s=URL_S)

    @contextlib.contextmanager
    def _locked(self, record: UploadRecord) -> Iterator[IO[bytes]]:
        """Open the file of an upload, which one request at a time appends to."""
        path = Path(self.uri(record))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise _wrong_offset(path.stat().st_size, None) from error
            yield file

    def _verify(self, record: UploadRecord, file: IO[bytes]) -> None:
        """Raise RequestError for a complete file that is not the announced one, and drop it."""
        if record.asked.sha256 is None or file.tell() < record.asked.num_bytes:
            return
        with Path(self.uri(record)).open("rb") as whole:
            digest = hashlib.file_digest(whole, "sha256").hexdigest()
        if digest != record.asked.sha256:
            file.truncate(0)
            raise RequestError(
                "The file differs from the one announced by `sha256`.", remedy="Send it again, from offset 0.",
                code="wrong_digest", sha256=digest,
            )  # fmt: skip


def read_announcement(name: str, num_bytes: int) -> UploadRequest:
    """Return the announcement of a file that is the body of a request."""
    text = json.dumps({"name": name[:255] or "cells.h5ad", "num_bytes": num_bytes})
    return UploadRequest.model_validate_json(text)


def _check_size(what: str, seen: int, limit: int) -> None:
    if seen > limit:
        raise RequestError(
            f"The {what} has {seen:,} bytes; the limit is {limit:,}.",
            remedy="Divide the file, or ask the operator to put it into a place that jobs may read.",
            code="too_large", what="bytes", seen=seen, limit=limit,
        )  # fmt: skip


def _wrong_offset(received: int, offset: int | None) -> RequestError:
    problem = "Another request is sending a part of this file."
    if offset is not None:
        problem = f"The file has {received:,} bytes so far, so a part cannot begin at {offset:,}."
    return RequestError(
        problem, remedy="Send the part that begins at `received`.", code="wrong_offset", pointer="/offset",
        received=received,
    )  # fmt: skip


def _more_than_announced(record: UploadRecord) -> RequestError:
    limit = record.asked.num_bytes
    return RequestError(
        f"The file has more than the {limit:,} bytes announced.", remedy="Announce its size.", code="too_large",
        what="bytes", limit=limit,
    )  # fmt: skip
