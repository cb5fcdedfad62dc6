"""The same cells in every format, compressed or not, are the same request and get the same answer."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp
from request_bodies import arrow_body, arrow_stream, bodies_of, h5ad_body, json_body, npz_body

from cytoray.errors import RequestError
from cytoray.serving.config import Limits
from cytoray.serving.payloads.media import ARROW, H5AD, JSON, NPZ, Form
from cytoray.serving.payloads.parsed import ParsedRequest
from cytoray.serving.payloads.parsing import parse
from cytoray.tasks.annotation.answers import AnnotateRequest
from cytoray.tasks.integration.answers import IntegrateRequest

GENES = [f"GENE{number:02d}" for number in range(40)]
COMPRESS = {
    "identity": lambda body: body,
    "gzip": lambda body: gzip.compress(body[:100]) + gzip.compress(body[100:]),
    "zstd": lambda body: pa.Codec("zstd").compress(body, asbytes=True),
}


def _parse(body: bytes, media_type: str, **options: str) -> ParsedRequest:
    return parse(body, Form(media_type, options=options), kind=AnnotateRequest, limits=Limits())


def _matrix(request: ParsedRequest) -> np.ndarray:
    shape = (len(request.cell_ids), len(request.genes))
    return sp.csr_matrix((request.values, request.columns, request.indptr), shape=shape).toarray()


def test_every_format_gets_the_same_answer(http: Any, make_counts: Any, tmp_path: Path) -> None:
    counts = make_counts(5, fractional=True)
    answers = []
    for media_type, body in bodies_of(GENES, counts, tmp_path).items():
        for encoding, compress in COMPRESS.items():
            headers = {"Content-Type": media_type, "Content-Encoding": encoding}
            response = http.post("/v1/annotate", content=compress(body), headers=headers)
            assert response.status_code == 200, (media_type, encoding, response.text)
            answers.append(response.json())
    for answer in answers:
        for cell in answer["cells"]:
            del cell["id"]  # an h5ad file has names of cells
        (warning,) = answer["warnings"]
        del warning["detail"]  # which points into the body
    assert all(answer == answers[0] for answer in answers)
    assert len({cell["label"] for cell in answers[0]["cells"]}) > 1


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16, np.int32, np.uint32, np.int64, np.float32, np.float64])
def test_numbers_of_any_width(make_counts: Any, kind: Any) -> None:
    counts = make_counts(4)
    for body, media_type in (
        (arrow_body(GENES, counts, data=counts.data.astype(kind)), ARROW),
        (npz_body(GENES, counts, data=counts.data.astype(kind)), NPZ),
        (npz_body(GENES, counts, data=counts.data.astype(np.dtype(kind).newbyteorder(">"))), NPZ),
    ):
        request = _parse(body, media_type)
        assert request.values.dtype == np.float32
        np.testing.assert_array_equal(_matrix(request), counts.toarray())


def test_indices_of_any_width(make_counts: Any) -> None:
    counts = make_counts(4)
    for kind in (np.uint16, np.uint32, np.int32, np.int64):
        indices = counts.indices.astype(kind)
        np.testing.assert_array_equal(
            _matrix(_parse(arrow_body(GENES, counts, indices=indices), ARROW)), counts.toarray()
        )
    for kind in (np.uint64, ">i4", np.uint8):
        indices = counts.indices.astype(kind)
        np.testing.assert_array_equal(_matrix(_parse(npz_body(GENES, counts, indices=indices), NPZ)), counts.toarray())


def test_arrow_arrays_are_views_of_the_body(make_counts: Any) -> None:
    body = arrow_body(GENES, make_counts(4))
    request = _parse(body, ARROW)
    whole = np.frombuffer(body, np.uint8)
    assert np.shares_memory(request.columns, whole)
    assert np.shares_memory(request.values, whole)


def test_ids_genomes_and_members_come_along(make_counts: Any) -> None:
    counts = make_counts(2)
    more = {"ids": ["a", "b"], "ensembl_ids": [""] * 40, "genomes": ["GRCh38"] * 40}
    columns = {"genes": [GENES], "indptr": [counts.indptr], "indices": [counts.indices], "data": [counts.data]}
    columns |= {name: [texts] for name, texts in more.items()}
    stream = arrow_stream(columns, metadata={"request": '{"include_embedding": false}'})
    for body, media_type, options in (
        (stream, ARROW, {}),
        (arrow_body(GENES, counts, **more), ARROW, {"include_embedding": "false"}),
        (npz_body(GENES, counts, **more), NPZ, {"include_embedding": "false"}),
    ):
        request = _parse(body, media_type, **options)
        assert request.cell_ids == ("a", "b")
        assert (request.ensembl_ids, request.genomes) == (("",) * 40, ("GRCh38",) * 40)
        assert not request.asked.include_embedding
    without = parse(npz_body(GENES, counts), Form(NPZ, options={"batch": "7"}), kind=IntegrateRequest, limits=Limits())
    assert without.asked.batch == "7"
    assert without.cell_ids == (None, None)


def test_scipy_s_own_file_with_genes_is_read(make_counts: Any) -> None:
    counts = make_counts(3)
    request = _parse(npz_body(GENES, counts, format=np.array(b"csr"), shape=counts.shape), NPZ)
    np.testing.assert_array_equal(_matrix(request), counts.toarray())


def test_h5ad_is_read_by_the_rules_for_files(make_counts: Any, tmp_path: Path) -> None:
    counts = make_counts(4)
    ids = [f"ENSG{number:011d}" for number in range(40)]
    var = pd.DataFrame({"feature_name": pd.Categorical(GENES), "gene_ids": ids, "mean": 1.0}, index=ids)
    adata = anndata.AnnData(sp.csc_matrix(counts) * 2, var=var, obs=pd.DataFrame(index=["a", "b", "c", "d"]))
    adata.raw = anndata.AnnData(counts.toarray(), var=var)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    body = (tmp_path / "cells.h5ad").read_bytes()
    request = _parse(body, H5AD)
    np.testing.assert_array_equal(_matrix(request), 2 * counts.toarray())
    assert request.cell_ids == ("a", "b", "c", "d")
    assert request.genes == tuple(GENES)  # the index has ids, so the column of symbols names them
    assert request.ensembl_ids == tuple(ids)
    np.testing.assert_array_equal(_matrix(_parse(body, H5AD, matrix="raw.X")), counts.toarray())
    assert _parse(body, H5AD, gene_names="gene_ids").genes == tuple(ids)
    for options, pointer in (({"matrix": "layers/a"}, "/matrix"), ({"gene_names": "symbol"}, "/gene_names")):
        with pytest.raises(RequestError) as caught:
            _parse(body, H5AD, **options)
        assert caught.value.details["pointer"] == pointer


@pytest.mark.parametrize("media_type", [ARROW, NPZ])
def test_mistakes_have_pointers_into_the_arrays(make_counts: Any, media_type: str) -> None:
    write = {ARROW: arrow_body, NPZ: npz_body}[media_type]
    counts = make_counts(3)
    data, indices, indptr = counts.data.copy(), counts.indices.copy(), counts.indptr.copy()
    data[7], indices[5], indptr[1] = np.nan, 40, 60_000
    twice = counts.indices.copy()
    twice[1] = twice[0]
    for more, code, pointer in (
        ({"data": data}, "bad_values", "/data/7"),
        ({"indices": indices}, "bad_matrix", "/indices/5"),
        ({"indices": twice}, "bad_matrix", "/indices/1"),
        ({"indptr": indptr}, "bad_matrix", "/indptr/2"),
        ({"indptr": counts.indptr[:-1]}, "bad_matrix", "/indptr/2"),
        ({"indptr": counts.indptr[:1]}, "malformed_payload", "/indptr"),
        ({"data": counts.data[:-1]}, "bad_matrix", "/indices"),
        ({"ids": ["a", "a", "b"]}, "bad_matrix", "/ids/1"),
        ({"ids": ["a"]}, "bad_matrix", "/ids"),
        ({"genomes": ["hg38"]}, "bad_matrix", "/genomes"),
        ({"genes": [*GENES[:-1], "G" * 257]}, "malformed_payload", "/genes/39"),
    ):
        with pytest.raises(RequestError) as caught:
            _parse(write(GENES, counts, **more), media_type)
        assert (caught.value.code, caught.value.details["pointer"]) == (code, pointer)
    for options in ({"include_embeding": "false"}, {"include_embedding": "1.5"}, {"cells": "[]"}):
        with pytest.raises(RequestError) as caught:
            _parse(write(GENES, counts), media_type, **options)
        assert caught.value.details["pointer"] == f"/{next(iter(options))}"


def test_limits_hold_in_every_format(make_counts: Any, tmp_path: Path) -> None:
    counts = make_counts(6)
    for media_type, body in bodies_of(GENES, counts, tmp_path).items():
        for limits, code in (
            (Limits(max_cells=5), "use_jobs"),
            (Limits(max_genes=39), "too_large"),
            (Limits(max_nonzeros=20), "too_large"),
        ):
            with pytest.raises(RequestError) as caught:
                parse(body, Form(media_type), kind=AnnotateRequest, limits=limits)
            assert caught.value.code == code, (media_type, limits)


def test_other_media_types_and_forms_are_refused(http: Any, make_counts: Any) -> None:
    body = json_body(GENES, make_counts(2))
    for headers, status, code in (
        ({"Content-Type": "text/csv"}, 415, "unsupported_media_type"),
        ({"Content-Type": JSON, "Content-Encoding": "br"}, 415, "unsupported_media_type"),
        ({"Content-Type": JSON, "Accept": "text/csv"}, 406, "not_acceptable"),
        ({"Content-Type": JSON, "Accept": f"{JSON};q=0"}, 406, "not_acceptable"),
        ({"Content-Type": JSON, "Accept": "text/csv, */*;q=0.1"}, 200, None),
        ({"Content-Type": "Application/JSON; charset=utf-8", "Accept": "application/*"}, 200, None),
    ):
        response = http.post("/v1/embed", content=body, headers=headers)
        assert (response.status_code, response.json().get("code")) == (status, code), headers
    response = http.post("/v1/genes", content=b"", headers={"Content-Type": ARROW})
    assert (response.status_code, response.json()["accepted"]) == (415, [JSON])
    response = http.post("/v1/embed?a=1&a=2", content=b"", headers={"Content-Type": NPZ})
    assert (response.status_code, response.json()["pointer"]) == (400, "/a")


def test_an_h5ad_without_unique_names_of_cells(make_counts: Any, tmp_path: Path) -> None:
    def rename(file: Any) -> None:
        file["obs/_index"][...] = "same"

    assert _parse(h5ad_body(GENES, make_counts(3), tmp_path, change=rename), H5AD).cell_ids == (None,) * 3
