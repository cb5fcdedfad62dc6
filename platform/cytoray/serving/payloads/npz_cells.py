"""Read cells from an npz file (``numpy.savez``), after the sizes of its members are known; nothing is unpickled."""

# B bytes of a member

from __future__ import annotations

import io
import struct
import sys
import tokenize
import zipfile
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from cytoray.errors import RequestError
from cytoray.serving.config import Limits
from cytoray.serving.payloads.encodings import FREE_BYTES, STEP, too_large_decoded
from cytoray.serving.payloads.json_cells import malformed
from cytoray.serving.payloads.matrices import NUMBERS, REQUIRED, TEXTS, Matrix, check_sizes
from cytoray.serving.payloads.parsed import bad_matrix
from cytoray.serving.payloads.stopping import NEVER, Stop

_SCIPY = ("format", "shape")  # written beside the matrix by scipy.sparse.save_npz
_MEMBERS = (*REQUIRED, *TEXTS[1:], *_SCIPY)
_END = b"PK\x05\x06"
_END_BYTES, _MAX_DIRECTORY_BYTES, _MAX_HEADER_BYTES = 22, 64 * 1024, 4096
_REMEDY = (
    "Write it with numpy.savez(file, genes=genes, indptr=matrix.indptr, indices=matrix.indices, data=matrix.data)."
)
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, ValueError, EOFError, OSError, NotImplementedError, KeyError)
_BAD_CONTENT = (SyntaxError, TypeError, tokenize.TokenError, RuntimeError, MemoryError, SystemError)
_KINDS = {**dict.fromkeys(TEXTS, "US"), "indptr": "iu", "indices": "iu", "data": "iuf", "format": "US", "shape": "iu"}


def read_matrix(body: bytes, *, limits: Limits, stop: Stop = NEVER) -> Matrix:
    """Return the arrays of a file; RequestError if it is too large once unpacked, or not such a file."""
    try:
        arrays = _read_arrays(body, limits=limits, stop=stop)
        check_sizes({name: array.size for name, array in arrays.items()}, limits=limits)
        texts: dict[str, Any] = {name: _texts(name, arrays[name]) for name in (*TEXTS, "format") if name in arrays}
    except RequestError:
        raise
    except (*_DAMAGE, *_BAD_CONTENT) as error:
        raise _refusal(f"The body cannot be read as an npz file ({type(error).__name__})") from error
    for name in REQUIRED:
        if name not in arrays:
            raise _refusal(f"The array {name} is missing", pointer=f"/{name}")
    if texts.pop("format", ["csr"]) != ["csr"]:
        raise _refusal("The matrix is not in the format csr", pointer="/format")
    numbers: dict[str, Any] = {name: arrays[name] for name in NUMBERS}
    matrix = Matrix(**numbers, **texts)
    if "shape" in arrays and arrays["shape"].tolist() != [len(matrix.indptr) - 1, len(matrix.genes)]:
        problem = f"The shape is not ({len(matrix.indptr) - 1}, {len(matrix.genes)}), as of `indptr` and `genes`."
        raise bad_matrix(problem, pointer="/shape")
    return matrix


def _read_arrays(body: bytes, *, limits: Limits, stop: Stop) -> dict[str, npt.NDArray[Any]]:
    _check_directory(body)
    with zipfile.ZipFile(io.BytesIO(body)) as file:
        members = file.infolist()
        names = [member.filename.removesuffix(".npy") for member in members]
        for name in names:
            if name not in _MEMBERS or names.count(name) > 1:
                raise _refusal("An array is unknown or repeated", pointer=f"/{name}")
        total = sum(member.file_size for member in members)
        most = min(limits.max_decoded_bytes, max(FREE_BYTES, int(limits.max_decoded_ratio * len(body))))
        if total > most:
            raise too_large_decoded(total, limit=most)
        return {name: _array(name, _unpack(file, member, stop)) for name, member in zip(names, members, strict=True)}


def _check_directory(body: bytes) -> None:
    """Raise RequestError unless a short list of members ends the body: its length decides how much is parsed."""
    end = body[-_END_BYTES:]
    if len(end) < _END_BYTES or end[:4] != _END:
        raise _refusal("The body does not end like an npz file")
    count, size = struct.unpack("<10xHI6x", end)
    if count > len(_MEMBERS) or size > _MAX_DIRECTORY_BYTES:
        raise _refusal("The file has too many members")


def _unpack(file: zipfile.ZipFile, member: zipfile.ZipInfo, stop: Stop) -> bytes:
    """Return the content of a member, which is never longer than it says."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
        raise _refusal("A member is encrypted, or compressed in another way than by deflate")
    parts, seen = [], 0
    with file.open(member) as stream:
        while part := stream.read(STEP):
            stop.check()
            parts.append(part)
            seen += len(part)
            if seen > member.file_size:
                raise ValueError("more than it says")
    if seen != member.file_size:
        raise EOFError
    return b"".join(parts)


def _array(name: str, content: bytes) -> npt.NDArray[Any]:
    """Return an array of one axis of a kind that is expected; the values are not copied."""
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, _, dtype = read_header(stream, max_header_size=_MAX_HEADER_BYTES)
    start = stream.tell()
    is_scalar = name == "format" and shape == ()
    if dtype.kind not in _KINDS[name] or dtype.hasobject or not (is_scalar or len(shape) == 1):
        raise _refusal(f"The array {name} has another type than expected, or several axes", pointer=f"/{name}")
    count = 1 if is_scalar else int(shape[0])
    if count < 0 or count * dtype.itemsize != len(content) - start:
        raise ValueError("another size than its header says")
    return np.frombuffer(content, dtype, count, start) if count and dtype.itemsize else np.empty(count, dtype)


def _texts(name: str, array: npt.NDArray[Any]) -> list[str]:
    if array.dtype.kind == "U" and array.size and array.itemsize:
        # NumPy makes texts of any 32 bits, and Python fails later on those that are not characters.
        points = np.ascontiguousarray(array).view(array.dtype.byteorder.replace("|", "=") + "u4")
        if points.max() > sys.maxunicode:
            raise malformed(f"/{name}: a text has an invalid character.", f"/{name}")
    try:
        return [text.decode() if isinstance(text, bytes) else text for text in array.ravel().tolist()]
    except UnicodeDecodeError as error:
        raise malformed(f"/{name}: a text is not UTF-8.", f"/{name}") from error


def _refusal(problem: str, pointer: str = "") -> RequestError:
    return RequestError(f"{problem}.", remedy=_REMEDY, code="malformed_payload", pointer=pointer)
