"""Decompress bodies step by step, within limits on their size and on how much they grow."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import pyarrow as pa

from cytoray.errors import RequestError
from cytoray.serving.config import Limits
from cytoray.serving.payloads.stopping import NEVER, Stop

STEP = 256 * 1024
FREE_BYTES = 2**20  # a body of zeros may be small: the ratio counts only beyond this size
_MAX_WINDOW_LOG = 23  # 8 MiB, what RFC 8878 asks decoders to support
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def decode(body: bytes, encoding: str, *, limits: Limits, stop: Stop = NEVER) -> bytes:
    """Return the decompressed body; RequestError ``too_large`` as soon as it exceeds a limit."""
    if encoding == "identity":
        return body
    most = min(limits.max_decoded_bytes, max(FREE_BYTES, int(limits.max_decoded_ratio * len(body))))
    parts: list[bytes] = []
    seen = 0
    try:
        for part in _gunzip(body) if encoding == "gzip" else _unzstd(body):
            stop.check()
            seen += len(part)
            if seen > most:
                raise too_large_decoded(seen, limit=most)
            parts.append(part)
    except (zlib.error, EOFError, OSError, pa.ArrowInvalid) as error:
        raise RequestError(
            f"The body is not valid {encoding}, or its end is missing.",
            remedy=f"Compress the whole body with {encoding}, or send it without Content-Encoding.",
            code="malformed_payload",
            pointer="",
        ) from error
    return b"".join(parts)


def too_large_decoded(seen: int, *, limit: int) -> RequestError:
    """Build the error for a body that is too large once decompressed."""
    return RequestError(
        f"The decompressed body has {seen} bytes or more; the limit for this body is {limit}.",
        remedy="Send fewer cells in one request.",
        code="too_large",
        pointer="",
        what="decompressed bytes",
        seen=seen,
        limit=limit,
    )


def _gunzip(body: bytes) -> Iterator[bytes]:
    """Yield the content of all members of a gzip stream, ``STEP`` bytes at a time."""
    view, start = memoryview(body), 0
    while start < len(body) or not body:
        unpacker = zlib.decompressobj(wbits=31)
        while not unpacker.eof:
            chunk = view[start : start + STEP]
            part = unpacker.decompress(chunk, STEP)
            rest = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
            used = len(chunk) - len(rest)
            if not part and not used:
                raise EOFError
            start += used
            yield part


def _unzstd(body: bytes) -> Iterator[bytes]:
    """Yield the content of a zstd stream, ``STEP`` bytes at a time."""
    if _window_log(body) > _MAX_WINDOW_LOG:
        raise OSError("window too large")
    step = bytearray(STEP)  # not ``read``: pyarrow 25 keeps its memory for ever if the stream is damaged
    try:
        with pa.CompressedInputStream(pa.BufferReader(body), "zstd") as stream:
            while num_bytes := stream.readinto(step):
                yield bytes(memoryview(step)[:num_bytes])
    finally:  # else the process keeps 0.6 KiB more of it for each damaged stream; this takes a microsecond
        pa.default_memory_pool().release_unused()


def _window_log(body: bytes) -> int:
    """Return the base-2 logarithm of the window of the first frame; EOFError if it is not a frame."""
    if body[:4] != _ZSTD_MAGIC or len(body) < 6:
        raise EOFError
    is_single_segment = bool(body[4] & 0x20)  # its window is its content, whose size counts anyway
    return 0 if is_single_segment else 10 + (body[5] >> 3)
