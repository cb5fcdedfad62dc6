"""Read cells from an Arrow IPC stream: one record batch of one row, whose columns are lists, used without a copy.

Only an exact set of columns and types is read; every length and offset is checked before a value is used.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cytoray.errors import RequestError
from cytoray.serving.config import Limits
from cytoray.serving.payloads.json_cells import malformed
from cytoray.serving.payloads.matrices import NUMBERS, REQUIRED, TEXTS, Matrix, check_sizes

MEMBERS_KEY = b"request"  # of the schema's metadata: further members of the request, as JSON
MAX_SCHEMA_BYTES = 256 * 1024
_SCHEMA, _BATCH = "schema", "record batch"
_REMEDY = (
    "Send one record batch of one row with the columns genes, indptr, indices and data, and if you like ensembl_ids, "
    "genomes and ids, each a list: pyarrow.record_batch({'genes': [genes], 'indptr': [matrix.indptr], …})."
)
_INTEGERS = (pa.int32(), pa.int64(), pa.uint16(), pa.uint32())
_KINDS: dict[str, tuple[pa.DataType, ...]] = {
    **{name: (pa.string(), pa.large_string()) for name in TEXTS},
    **dict.fromkeys(("indptr", "indices"), _INTEGERS),
    "data": (pa.float32(), pa.float64(), *_INTEGERS, pa.uint8(), pa.int16()),
}


def read_matrix(body: bytes, *, limits: Limits) -> tuple[Matrix, bytes]:
    """Return the arrays of a stream, and the further members of the request."""
    try:
        batch = _read_batch(body)
        batch.validate(full=True)
        columns = {name: batch.column(name).flatten() for name in batch.schema.names}
        check_sizes({name: len(column) for name, column in columns.items()}, limits=limits)
        arrays: dict[str, Any] = {name: _texts(name, columns[name]) for name in TEXTS if name in columns}
        arrays |= {name: _numbers(name, columns[name]) for name in NUMBERS}
    except (pa.ArrowException, EOFError, OSError, ValueError, MemoryError, struct.error) as error:
        raise _refusal(f"The body cannot be read as an Arrow stream ({type(error).__name__})") from error
    return Matrix(**arrays), (batch.schema.metadata or {}).get(MEMBERS_KEY, b"")


def peek_metadata(body: bytes) -> dict[bytes, bytes]:
    """Return the metadata of the schema of a stream; empty if it cannot be read, which ``read_matrix`` reports."""
    try:
        message = pa.ipc.read_message(pa.BufferReader(body))
        if message is None or message.type != _SCHEMA or _is_unsafe(message):
            return {}
        return dict(pa.ipc.read_schema(message).metadata or {})
    except (pa.ArrowException, EOFError, OSError, ValueError, MemoryError):
        return {}


def peek_num_cells(body: bytes) -> int | None:
    """Return the number of cells by the header of a stream; None if it has a mistake, which ``read_matrix`` reports."""
    try:
        return max(len(_read_batch(body).column("indptr").values) - 1, 0)
    except (RequestError, pa.ArrowException, EOFError, OSError, ValueError, MemoryError, struct.error):
        return None


def _read_batch(body: bytes) -> pa.RecordBatch:
    """Return the only record batch of a stream, after its schema is known to be one that is read."""
    reader = pa.BufferReader(body)
    message = _next_message(reader, _SCHEMA)
    if _is_unsafe(message):
        raise _refusal("The schema is too large or has extension types")
    schema = pa.ipc.read_schema(message)
    _check_schema(schema)
    message = _next_message(reader, _BATCH)
    if _is_compressed(message.metadata.to_pybytes()):
        raise _refusal("The buffers are compressed: compress the whole body with Content-Encoding instead")
    batch = pa.ipc.read_record_batch(message, schema)
    if batch.num_rows != 1:
        raise _refusal(f"The batch has {batch.num_rows} rows")
    rest = body[reader.tell() :]
    if rest.strip(b"\x00\xff"):  # the end of a stream is marked by these
        raise _refusal("Something follows the record batch")
    return batch


def _is_unsafe(schema: Any) -> bool:
    """Return whether the message of a schema is not to be read: it is too large or has extension types."""
    return schema.metadata.size > MAX_SCHEMA_BYTES or b"ARROW:extension" in schema.metadata.to_pybytes()


def _next_message(reader: pa.BufferReader, kind: str) -> Any:
    message = pa.ipc.read_message(reader)
    if message is None or message.type != kind:
        raise _refusal(f"The stream has no {kind} where one is expected")
    return message


def _check_schema(schema: pa.Schema) -> None:
    """Raise RequestError for columns that are missing, unknown, repeated or of another type."""
    names = schema.names
    unknown = [name for name in names if name not in _KINDS]
    missing = [name for name in REQUIRED if name not in names]
    if unknown or missing or len(set(names)) < len(names):
        problem = f"Columns are missing ({', '.join(missing)})" if missing else "Columns are unknown or repeated"
        raise _refusal(problem, pointer=f"/{(missing or unknown or names)[0]}")
    for field in schema:
        is_list = pa.types.is_list(field.type) or pa.types.is_large_list(field.type)
        if not is_list or field.type.value_type not in _KINDS[field.name]:
            wanted = ", ".join(str(kind) for kind in _KINDS[field.name])
            raise _refusal(f"Column {field.name} has another type than a list of {wanted}", pointer=f"/{field.name}")


def _texts(name: str, column: pa.Array) -> list[str | None]:
    texts: list[str | None] = column.to_pylist()
    if name != "ids" and column.null_count:
        raise malformed(f"/{name}/{texts.index(None)} is null.", f"/{name}/{texts.index(None)}")
    return texts


def _numbers(name: str, column: pa.Array) -> npt.NDArray[Any]:
    if column.null_count:
        place = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise malformed(f"/{name}/{place} is null.", f"/{name}/{place}")
    array: npt.NDArray[Any] = column.to_numpy(zero_copy_only=True)
    return array


def _is_compressed(metadata: bytes) -> bool:
    """Return whether the header of a record batch says that its buffers are compressed.

    Their size would be known only from themselves. pyarrow does not tell, so this reads the flatbuffer: the fourth
    field of the table RecordBatch, which is the third of Message.
    """
    message = struct.unpack_from("<i", metadata, 0)[0]
    header = _field(metadata, message, 2)
    if header is None:
        raise ValueError("no header")
    return _field(metadata, header + struct.unpack_from("<i", metadata, header)[0], 3) is not None


def _field(metadata: bytes, table: int, number: int) -> int | None:
    """Return the place of a field of a flatbuffer's table, None if it is absent."""
    entries = table - struct.unpack_from("<i", metadata, table)[0]
    if entries < 0:
        raise ValueError("offset")
    place = 4 + 2 * number
    if place >= struct.unpack_from("<H", metadata, entries)[0]:
        return None
    offset = struct.unpack_from("<H", metadata, entries + place)[0]
    return table + offset if offset else None


def _refusal(problem: str, pointer: str = "") -> RequestError:
    return RequestError(f"{problem}.", remedy=_REMEDY, code="malformed_payload", pointer=pointer)
