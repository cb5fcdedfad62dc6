"""Bombs and malformed bodies: each is refused by the catalogue, at once and within little memory."""

# The sandbox of h5ad files limits its own memory; what the service itself allocates is traced here.

from __future__ import annotations

import ast
import gzip
import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp
from refusals import MIB, refusal_of
from request_bodies import arrays_of, arrow_body, arrow_stream, json_body, npz_body

from cytoray.serving.payloads import h5ad_cells
from cytoray.serving.payloads.media import ARROW, JSON, NPZ, Form

GENES = [f"GENE{number:02d}" for number in range(40)]
COUNTS = sp.csr_matrix(np.random.default_rng(0).poisson(1.0, (5, 40)).astype(np.float32))
ZEROS = bytes(64 * MIB)


def _zstd(body: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(body, asbytes=True))


ENCODED: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "gzip of zeros": ("gzip", lambda: gzip.compress(ZEROS), "too_large"),
    "zstd of zeros": ("zstd", lambda: _zstd(ZEROS), "too_large"),
    "many frames of zstd": ("zstd", lambda: _zstd(ZEROS[: 4 * MIB]) * 40, "too_large"),
    "gzip of gzip of zeros": ("gzip", lambda: gzip.compress(gzip.compress(ZEROS, 1)), "malformed_payload"),
    "gzip cut short": ("gzip", lambda: gzip.compress(json_body(GENES, COUNTS))[:-9], "malformed_payload"),
    "zstd cut short": ("zstd", lambda: _zstd(json_body(GENES, COUNTS))[:-9], "malformed_payload"),
    "gzip with a tail": ("gzip", lambda: gzip.compress(json_body(GENES, COUNTS)) + b"tail", "malformed_payload"),
    "zstd of a window of 2 GiB": ("zstd", lambda: b"\x28\xb5\x2f\xfd\x00\xa8" + b"\x00" * 20, "malformed_payload"),
    "no gzip": ("gzip", lambda: json_body(GENES, COUNTS), "malformed_payload"),
    "no zstd": ("zstd", lambda: json_body(GENES, COUNTS), "malformed_payload"),
    "nothing": ("gzip", lambda: b"", "malformed_payload"),
}


@pytest.mark.parametrize("case", ENCODED)
def test_compressed_bombs(case: str) -> None:
    encoding, build, code = ENCODED[case]
    assert refusal_of(build(), Form(JSON, encoding)).code == code


JSONS: dict[str, tuple[Callable[[], bytes], str]] = {
    "brackets": (lambda: b"[" * MIB, "malformed_payload"),
    "objects in objects": (lambda: b'{"genes":' * 100_000, "malformed_payload"),
    "a million cells": (lambda: b'{"genes":["A"],"cells":[' + b'{"i":[],"v":[]},' * MIB + b"{}]}", "use_jobs"),
    "a million genes": (lambda: b'{"genes":["A"' + b',"A"' * MIB + b'],"cells":[]}', "too_large"),
    "numbers elsewhere": (lambda: b'{"genes":[' + b"1.5," * 2 * MIB + b"1]}", "too_large"),
    "numbers under an escaped key": (
        lambda: b'{"genes":["A"],"cells":[{"i":[0],"\\u0076":[' + b"1.5," * 2 * MIB + b"1]}]}",
        "too_large",
    ),
    "numbers in a cell": (lambda: b'{"genes":["A"],"cells":[{"v":[' + b"1.5," * 5 * MIB + b"1]}]}", "too_large"),
    "a number of a million digits": (
        lambda: b'{"genes":["A"],"cells":[{"i":[' + b"1" * MIB + b'],"v":[1]}]}',
        "malformed_payload",
    ),
    "a value of a million digits": (
        lambda: b'{"genes":["A"],"cells":[{"i":[0],"v":[' + b"1" * MIB + b"]}]}",
        "bad_values",
    ),
    "an endless text": (lambda: b'{"genes":["' + b"A" * 4 * MIB, "malformed_payload"),
    "a long key": (lambda: b'{"' + b"A" * 4 * MIB + b'":1}', "malformed_payload"),
    "a backslash at the end": (lambda: b'{"genes":["\\', "malformed_payload"),
}


@pytest.mark.parametrize("case", JSONS)
def test_json_bombs(case: str) -> None:
    build, code = JSONS[case]
    body = build()
    assert refusal_of(body, Form(JSON), peak_mib=24 + 3 * len(body) / MIB).code == code


class _Anything(pa.ExtensionType):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(pa.list_(pa.float32()), "test.anything")

    def __arrow_ext_serialize__(self) -> bytes:
        return b"code"


def _columns(**more: Any) -> dict[str, Any]:
    return {name: [array] for name, array in arrays_of(GENES, COUNTS).items()} | more


def _two_batches() -> bytes:
    batch = pa.record_batch(_columns())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def _bad_offsets() -> bytes:
    body = bytearray(arrow_body(GENES, COUNTS))
    place = body.index(struct.pack("<2i", 0, 40))  # of the list of genes
    body[place : place + 8] = struct.pack("<2i", 0, 2**30)
    return bytes(body)


def _bad_texts() -> bytes:
    return arrow_body(GENES, COUNTS).replace(b"GENE00", b"GENE\xff\xfe")


def _long_body() -> bytes:
    body = arrow_body(GENES, COUNTS)
    place = body.rindex(b"\xff\xff\xff\xff", 0, len(body) - 8)
    return body[: place + 4] + struct.pack("<i", 2**31 - 16) + body[place + 8 :]


ARROWS: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "zeros": lambda: ZEROS[:MIB],
    "cut short": lambda: arrow_body(GENES, COUNTS)[:-200],
    "two batches": _two_batches,
    "something behind": lambda: arrow_body(GENES, COUNTS) + b"more",
    "two rows": lambda: arrow_stream({name: array * 2 for name, array in _columns().items()}),
    "no rows": lambda: arrow_stream({name: pa.array(array)[:0] for name, array in _columns().items()}),
    "a bomb in compressed buffers": lambda: arrow_stream(
        _columns(data=[np.zeros(8 * MIB, np.float32)]), compression="zstd"
    ),
    "a dictionary": lambda: arrow_stream(
        _columns(genes=pa.ListArray.from_arrays([0, 40], pa.array(GENES).dictionary_encode()))
    ),
    "an extension type": lambda: arrow_stream(
        _columns(data=pa.ExtensionArray.from_storage(_Anything(), pa.array([COUNTS.data])))
    ),
    "lists of lists": lambda: arrow_stream(_columns(data=[[[1.0], [2.0]]])),
    "plain columns": lambda: arrow_stream({"genes": GENES, "indptr": list(range(40))}),
    "numbers for genes": lambda: arrow_stream(_columns(genes=[list(range(40))])),
    "a null among the indices": lambda: arrow_stream(_columns(indices=pa.array([[0, None, 2]], pa.list_(pa.int32())))),
    "a null among the genes": lambda: arrow_stream(_columns(genes=[[*GENES[:-1], None]])),
    "no list of genes": lambda: arrow_stream(_columns(genes=pa.array([None], pa.list_(pa.string())))),
    "a column too many": lambda: arrow_stream(_columns(labels=[["a"]])),
    "ten thousand columns": lambda: arrow_stream({f"c{number}": [1] for number in range(10_000)}),
    "offsets beyond the body": _bad_offsets,
    "texts that are not UTF-8": _bad_texts,
    "a length beyond the body": _long_body,
    "members that are no object": lambda: arrow_stream(_columns(), metadata={"request": "[1]"}),
    "a member twice": lambda: arrow_stream(_columns(), metadata={"request": '{"a": 1, "a": 2}'}),
    "cells among the members": lambda: arrow_stream(_columns(), metadata={"request": '{"cells": []}'}),
    "deep members": lambda: arrow_stream(_columns(), metadata={"request": "[" * 100_000}),
}


@pytest.mark.parametrize("case", ARROWS)
def test_arrow_bombs(case: str) -> None:
    before = pa.total_allocated_bytes()
    assert refusal_of(ARROWS[case](), Form(ARROW)).code == "malformed_payload"
    assert pa.total_allocated_bytes() - before < MIB


def _zip(members: dict[str, bytes], **options: Any) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", **options) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return stream.getvalue()


def _npy(header: str, content: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def _with_member(name: str, content: bytes) -> bytes:
    arrays = {}
    for key, array in arrays_of(GENES, COUNTS).items():
        stream = io.BytesIO()
        np.save(stream, np.asarray(array))
        arrays[f"{key}.npy"] = stream.getvalue()
    return _zip(arrays | {name: content})


def _encrypted() -> bytes:
    body = bytearray(npz_body(GENES, COUNTS))
    body[body.index(b"PK\x01\x02") + 8] |= 1
    return bytes(body)


def _small_size_in_header() -> bytes:
    body = bytearray(npz_body(GENES, COUNTS, save=np.savez_compressed))
    place = body.index(b"PK\x01\x02")
    body[place + 24 : place + 28] = struct.pack("<I", 100)
    return bytes(body)


NPZS: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "malformed_payload"),
    "zeros": (lambda: ZEROS[:MIB], "malformed_payload"),
    "cut short": (lambda: npz_body(GENES, COUNTS)[:-30], "malformed_payload"),
    "a pickle": (lambda: npz_body(GENES, COUNTS, ids=np.array(["a", None] + [1] * 3, object)), "malformed_payload"),
    "deflated zeros": (lambda: _zip({"data.npy": ZEROS}, compression=zipfile.ZIP_DEFLATED), "too_large"),
    "more than the directory says": (_small_size_in_header, "malformed_payload"),
    "bzip2": (lambda: _zip({"data.npy": ZEROS[:MIB]}, compression=zipfile.ZIP_BZIP2), "malformed_payload"),
    "encrypted": (_encrypted, "malformed_payload"),
    "ten thousand members": (lambda: _zip({f"m{n}": b"" for n in range(10_000)}), "malformed_payload"),
    "an unknown member": (lambda: _with_member("labels.npy", b""), "malformed_payload"),
    "a path": (lambda: _with_member("../data.npy", b""), "malformed_payload"),
    "a shape beyond the member": (
        lambda: _with_member("ids.npy", _npy("{'descr':'<f8','fortran_order':False,'shape':(1099511627776,)}")),
        "malformed_payload",
    ),
    "code in a header": (lambda: _with_member("ids.npy", _npy("__import__('os').abort()")), "malformed_payload"),
    "a deep header": (lambda: _with_member("ids.npy", _npy("(" * 3_000)), "malformed_payload"),
    "a dtype with fields": (
        lambda: _with_member("ids.npy", _npy("{'descr':[('a','<f8')],'fortran_order':False,'shape':(0,)}")),
        "malformed_payload",
    ),
    "texts that are not Unicode": (
        lambda: npz_body(GENES, COUNTS, ids=np.full(5, 0xFFFFFFFF, np.uint32).view("<U1")),
        "malformed_payload",
    ),
    "half a character": (
        lambda: npz_body(GENES, COUNTS, ids=np.arange(0xD800, 0xD805, dtype=np.uint32).view("<U1")),
        "malformed_payload",
    ),
    "two axes": (lambda: npz_body(GENES, COUNTS, data=COUNTS.toarray()), "malformed_payload"),
    "csc": (lambda: npz_body(GENES, COUNTS, format="csc"), "malformed_payload"),
    "another shape": (lambda: npz_body(GENES, COUNTS, shape=(6, 40)), "bad_matrix"),
    "huge indices": (
        lambda: npz_body(GENES, COUNTS, indices=COUNTS.indices.astype(np.uint64) + np.uint64(2**64 - 2**7)),
        "bad_matrix",
    ),
    "complex numbers": (lambda: npz_body(GENES, COUNTS, data=COUNTS.data + 1j), "malformed_payload"),
}


@pytest.mark.parametrize("case", NPZS)
def test_npz_bombs(case: str) -> None:
    build, code = NPZS[case]
    assert refusal_of(build(), Form(NPZ)).code == code


def test_no_code_of_the_service_unpickles() -> None:
    folder = Path(h5ad_cells.__file__).parents[1]
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [name.name for name in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            assert not {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"} & set(names), path
            if isinstance(node, ast.keyword):
                given = node.value.value if isinstance(node.value, ast.Constant) else None
                assert (node.arg, given) not in (("allow_pickle", True), ("weights_only", False)), path
