"""Valid bodies for each parser of the service, and what it does with one until the model is asked."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from request_bodies import arrays_of, arrow_body, arrow_stream, h5ad_body, json_body, npz_body

from cytoray.serving.config import Limits
from cytoray.serving.payloads import h5ad_cells
from cytoray.serving.payloads.media import ARROW, H5AD, JSON, NPZ, Form
from cytoray.serving.payloads.parsing import parse, parse_message
from cytoray.serving.payloads.selecting import GeneCache, find_warnings, select_cells
from cytoray.tasks.annotation.answers import AnnotateRequest
from cytoray.tasks.genes.answers import GenesRequest
from cytoray.tokens.vocabulary import GeneVocabulary

GENES = [f"GENE{number:02d}" for number in range(12)]
LIMITS = Limits(max_cells=16, max_genes=64, max_nonzeros=200, max_decoded_bytes=2**20)
CACHE = GeneCache(GeneVocabulary(GENES).map_genes, max_bytes=2**20)
PARSERS = ("json", "arrow", "npz", "npz members", "gzip", "zstd", "message", "handed over")
Run = Callable[[bytes], object]


def bodies_of(parser: str) -> tuple[list[bytes], Run]:
    """Return valid bodies of a parser of PARSERS, and the parser."""
    return _MAKERS[parser]()


def h5ad_files(folder: Path) -> list[bytes]:
    """Return small h5ad files: by rows, by columns and dense."""
    return [h5ad_body(GENES, matrix, folder) for matrix in (_counts(0), _counts(1).tocsc(), _counts(2).toarray())]


def ask(form: Form) -> Run:
    """Return what the service does with a body of a form until the model is asked."""

    def run(body: bytes) -> None:
        check(parse(body, form, kind=AnnotateRequest, limits=LIMITS))

    return run


def check(request: Any) -> None:
    """Do what the service does with a parsed request until the model is asked."""
    mapping = CACHE.map(request)
    find_warnings(request, mapping, select_cells(request, mapping, min_gene_overlap=0.1))


ask_h5ad = ask(Form(H5AD))


def read_handed_over(written: bytes) -> None:
    """Read what the sandbox for h5ad files wrote, as the service does."""
    matrix = h5ad_cells.matrix_of(0, written, gene_names="index")
    matrix.as_request(AnnotateRequest.model_construct())


def _counts(seed: int, kind: Any = np.float32) -> sp.csr_matrix:
    return sp.csr_matrix(np.random.default_rng(seed).poisson(1.0, (4, 12)).astype(kind))


_TEXTS = {"ids": list("abcd"), "ensembl_ids": [""] * 12, "genomes": ["GRCh38"] * 12}


def _jsons() -> list[bytes]:
    return [
        json_body(GENES, _counts(0)),
        json_body(GENES, _counts(1), include_embedding=False, ensembl_ids=["ENSG00000167286", *[""] * 11]),
        b'{"genes": ["GENE01", "GENE02"], "cells": [{"id": "a", "v": [1.5, 2e3], "i": [1, 0]}, {"i": [], "v": []}]}',
    ]


def _arrows() -> list[bytes]:
    columns = {name: [array] for name, array in arrays_of(GENES, _counts(2)).items()}
    return [
        arrow_body(GENES, _counts(0)),
        arrow_body(GENES, _counts(1, np.uint16), **_TEXTS),
        arrow_stream(columns, metadata={"request": '{"include_embedding": false}'}),
    ]


def _archives() -> list[bytes]:
    return [
        npz_body(GENES, _counts(0)),
        npz_body(GENES, _counts(1, np.int64), save=np.savez_compressed, **_TEXTS),
    ]


def _members() -> tuple[list[bytes], Run]:
    """Return members of a npz file, each behind its name; they are mutated before the archive is written."""
    with zipfile.ZipFile(io.BytesIO(npz_body(GENES, _counts(0), **_TEXTS))) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}

    def run(named: bytes) -> None:
        name, _, content = named.partition(b"\0")
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for member, whole in members.items():
                archive.writestr(member, content if member == name.decode("latin-1") else whole)
        ask(Form(NPZ))(stream.getvalue())

    return [name.encode() + b"\0" + content for name, content in members.items()], run


def _messages() -> tuple[list[bytes], Run]:
    bodies = [b'{"genes": ["GENE01", "x"], "neighbours": 3}', b'{"genes": ["GENE01"], "include_embedding": false}']
    return bodies, partial(parse_message, form=Form(), kind=GenesRequest, limits=LIMITS)


def _handed_over() -> bytes:
    """Return what the sandbox writes for a small file."""
    counts = _counts(0)
    kinds = [[array.dtype.str, len(array)] for array in (counts.indptr, counts.indices, counts.data)]
    names = f'"cells":["a","b","c","d"],"genes":{GENES},"columns":{{"s":{GENES}}},"arrays":{kinds}'.replace("'", '"')
    head = f"{{{names}}}".encode()
    arrays = b"".join(array.tobytes() for array in (counts.indptr, counts.indices, counts.data))
    return len(head).to_bytes(8, "little") + head + arrays


def _zstd(body: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(body, asbytes=True))


_MAKERS: dict[str, Callable[[], tuple[list[bytes], Run]]] = {
    "json": lambda: (_jsons(), ask(Form(JSON))),
    "arrow": lambda: (_arrows(), ask(Form(ARROW))),
    "npz": lambda: (_archives(), ask(Form(NPZ))),
    "npz members": _members,
    "gzip": lambda: ([gzip.compress(body) for body in _jsons()], ask(Form(JSON, "gzip"))),
    "zstd": lambda: ([_zstd(body) for body in _arrows()], ask(Form(ARROW, "zstd"))),
    "message": _messages,
    "handed over": lambda: ([_handed_over()], read_handed_over),
}
