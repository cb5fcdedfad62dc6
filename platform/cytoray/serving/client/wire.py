"""Requests and answers on the wire: Arrow, compressed with zstd, or JSON; both are read as a table per answer."""

# C cells

from __future__ import annotations

from typing import Any

import httpx
import pyarrow as pa
import pydantic_core

from cytoray.serving.client.chunks import Chunk
from cytoray.serving.client.settings import Wire
from cytoray.serving.payloads.answering import table_of_cells
from cytoray.serving.payloads.media import ARROW, JSON
from cytoray.serving.sending import Cells, encode_cells, encode_stream
from cytoray.tasks.endpoint import Endpoint
from cytoray.tasks.tables import ANSWER

_COMPRESS_FROM = 64 * 1024  # bytes; below this a compressed body is not sent faster
_MOST_RATIO = 16  # services refuse bodies that grow more than 20 times when they are decompressed


def write_request(block: Cells, members: dict[str, Any], wire: Wire) -> tuple[bytes, dict[str, str]]:
    """Return the body of a request about cells, and the headers that describe it."""
    if wire == "json":
        return encode_cells(block, range(block.num_cells), **members), {"Content-Type": JSON}
    stream = encode_stream(block, range(block.num_cells), **members)
    headers = {"Content-Type": ARROW}
    if len(stream) < _COMPRESS_FROM:
        return stream, headers
    packed = _compress(stream)
    if not len(stream) / _MOST_RATIO < len(packed) < len(stream):
        return stream, headers
    return packed, {**headers, "Content-Encoding": "zstd"}


def read_reply(endpoint: Endpoint[Any, Any], rows: range, response: httpx.Response) -> Chunk:
    """Return the answer to the cells ``rows``."""
    if response.headers.get("content-type", "").startswith(ARROW):
        with pa.ipc.open_stream(response.content) as stream:
            table = stream.read_all()
        return Chunk(rows, pydantic_core.from_json(table.schema.metadata[ANSWER]), table)
    answer: dict[str, Any] = pydantic_core.from_json(response.content)
    table = table_of_cells(endpoint, answer)
    return Chunk(rows, {name: value for name, value in answer.items() if name != "cells"}, table)


def _compress(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())
