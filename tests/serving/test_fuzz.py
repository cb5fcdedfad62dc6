"""Whatever is sent in any format is answered or refused by the catalogue, and takes no memory for good.

The default is a sample; ``make fuzz`` runs FUZZ_REQUESTS mutations per parser and prints the outcomes. Each h5ad file
takes a process: of these a thousandth is run, and the whole number on what the process hands over.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp
from payload_fuzzer import fuzz, mutated, resident_bytes
from request_bodies import arrays_of, arrow_body, arrow_stream, h5ad_body, json_body, npz_body

from cytoray.serving.config import Limits
from cytoray.serving.payloads import h5ad_cells
from cytoray.serving.payloads.media import ARROW, H5AD, JSON, NPZ, Form
from cytoray.serving.payloads.parsing import parse, parse_message
from cytoray.serving.payloads.selecting import GeneCache, find_warnings, select_cells
from cytoray.tasks.annotation.answers import AnnotateRequest
from cytoray.tasks.genes.answers import GenesRequest
from cytoray.tokens.vocabulary import GeneVocabulary

NUM_REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "400"))
FLAT_BYTES = 64 * 2**20
GENES = [f"GENE{number:02d}" for number in range(12)]
LIMITS = Limits(max_cells=16, max_genes=64, max_nonzeros=200, max_decoded_bytes=2**20)
CACHE = GeneCache(GeneVocabulary(GENES).map_genes, max_bytes=2**20)


def _counts(seed: int, kind: Any = np.float32) -> sp.csr_matrix:
    return sp.csr_matrix(np.random.default_rng(seed).poisson(1.0, (4, 12)).astype(kind))


def _ask(form: Form) -> Callable[[bytes], None]:
    """Return what the service does with a body until the model is asked."""

    def run(body: bytes) -> None:
        request = parse(body, form, kind=AnnotateRequest, limits=LIMITS)
        mapping = CACHE.map(request)
        find_warnings(request, mapping, select_cells(request, mapping, min_gene_overlap=0.1))

    return run


def _zstd(body: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(body, asbytes=True))


def _seeds() -> dict[str, tuple[list[bytes], Callable[[bytes], object]]]:
    """Return valid bodies for each parser."""
    texts = {"ids": list("abcd"), "ensembl_ids": [""] * 12, "genomes": ["GRCh38"] * 12}
    jsons = [
        json_body(GENES, _counts(0)),
        json_body(GENES, _counts(1), include_embedding=False, ensembl_ids=["ENSG00000167286", *[""] * 11]),
        b'{"genes": ["GENE01", "GENE02"], "cells": [{"id": "a", "v": [1.5, 2e3], "i": [1, 0]}, {"i": [], "v": []}]}',
    ]
    columns = {name: [array] for name, array in arrays_of(GENES, _counts(2)).items()}
    arrows = [
        arrow_body(GENES, _counts(0)),
        arrow_body(GENES, _counts(1, np.uint16), **texts),
        arrow_stream(columns, metadata={"request": '{"include_embedding": false}'}),
    ]
    archives = [
        npz_body(GENES, _counts(0)),
        npz_body(GENES, _counts(1, np.int64), save=np.savez_compressed, **texts),
    ]
    messages = [b'{"genes": ["GENE01", "x"], "neighbours": 3}', b'{"genes": ["GENE01"], "include_embedding": false}']
    return {
        "json": (jsons, _ask(Form(JSON))),
        "arrow": (arrows, _ask(Form(ARROW))),
        "npz": (archives, _ask(Form(NPZ))),
        "gzip": ([gzip.compress(body) for body in jsons], _ask(Form(JSON, "gzip"))),
        "zstd": ([_zstd(body) for body in arrows], _ask(Form(ARROW, "zstd"))),
        "message": (messages, lambda body: parse_message(body, Form(), kind=GenesRequest, limits=LIMITS)),
        "handed over": ([_handed_over()], _read_handed_over),
    }


def _handed_over() -> bytes:
    """Return what the sandbox writes for a small file."""
    counts = _counts(0)
    kinds = [[array.dtype.str, len(array)] for array in (counts.indptr, counts.indices, counts.data)]
    names = f'"cells":["a","b","c","d"],"genes":{GENES},"columns":{{"s":{GENES}}},"arrays":{kinds}'.replace("'", '"')
    head = f"{{{names}}}".encode()
    arrays = b"".join(array.tobytes() for array in (counts.indptr, counts.indices, counts.data))
    return len(head).to_bytes(8, "little") + head + arrays


def _read_handed_over(written: bytes) -> None:
    head, arrays = h5ad_cells._unpack(written)
    matrix = h5ad_cells._named(head, arrays, gene_names="index")
    matrix.as_request(AnnotateRequest.model_construct())


@pytest.mark.parametrize("parser", ["json", "arrow", "npz", "gzip", "zstd", "message", "handed over"])
def test_mutations_are_answered_or_refused(parser: str) -> None:
    seeds, run = _seeds()[parser]
    warm = max(NUM_REQUESTS // 10, 50)
    outcomes = fuzz(seeds, run, num=warm, seed=1)
    before = resident_bytes()
    outcomes.by_code += fuzz(seeds, run, num=NUM_REQUESTS).by_code
    grown = resident_bytes() - before
    print(f"\n{parser}: {outcomes}; memory grew by {grown / 2**20:.1f} MiB")
    assert outcomes.by_code["answered"] > 0
    assert outcomes.by_code.total() > outcomes.by_code["answered"]
    assert grown < FLAT_BYTES


def test_mutated_h5ad_files_are_answered_or_refused(tmp_path: Path) -> None:
    seeds = [h5ad_body(GENES, matrix, tmp_path) for matrix in (_counts(0), _counts(1).tocsc(), _counts(2).toarray())]
    outcomes = fuzz(seeds, _ask(Form(H5AD)), num=max(NUM_REQUESTS // 1_000, 6))
    print(f"\nh5ad: {outcomes}")


def test_no_mutation_is_a_500(http: Any) -> None:
    import random

    seeds = _seeds()
    for number in range(max(NUM_REQUESTS // 1_000, 30)):
        rng = random.Random(number)
        kind = rng.choice((JSON, ARROW, NPZ))
        name = {JSON: "json", ARROW: "arrow", NPZ: "npz"}[kind]
        response = http.post("/v1/embed", content=mutated(seeds[name][0], rng), headers={"Content-Type": kind})
        assert response.status_code < 500, (number, response.text)
        assert response.status_code == 200 or response.json()["code"]
