"""Answers in Arrow, parquet and h5ad have the numbers of those in JSON; the client gets the same by both wires."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import anndata
import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from request_bodies import json_body

from cytoray.serving.client import Client
from cytoray.serving.payloads.answering import read_answer
from cytoray.serving.payloads.media import ARROW, H5AD, JSON, PARQUET

GENES = [f"GENE{number:02d}" for number in range(40)]


def _body(counts: sp.csr_matrix, **members: Any) -> bytes:
    """Cells with ids, of which the second has no gene."""
    request = json.loads(json_body(GENES, counts, **members))
    request["cells"][1] = {"i": [], "v": []}
    for number, cell in enumerate(request["cells"]):
        cell["id"] = f"cell {number}"
    return json.dumps(request).encode()


def _ask(http: Any, route: str, body: bytes, accept: str) -> httpx.Response:
    response = http.post(route, content=body, headers={"Content-Type": JSON, "Accept": accept})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == accept
    return response


@pytest.mark.parametrize("members", [{}, {"include_embedding": False}])
def test_arrow_and_parquet_are_equal_to_json(http: Any, make_counts: Any, members: dict[str, Any]) -> None:
    body = _body(make_counts(6, fractional=True), **members)
    wanted = _ask(http, "/v1/annotate", body, JSON).json()
    assert [warning["code"] for warning in wanted["warnings"]] == ["empty_cells", "not_counts"]
    assert read_answer(_ask(http, "/v1/annotate", body, ARROW).content) == wanted
    table = pq.read_table(io.BytesIO(_ask(http, "/v1/annotate", body, PARQUET).content))
    assert table.to_pylist(maps_as_pydicts="strict") == wanted["cells"]
    if not members:
        assert str(table.schema.field("embedding").type.value_type) == "float"


def test_h5ad_has_the_cells_in_obs_and_obsm(http: Any, make_counts: Any, tmp_path: Path) -> None:
    body = _body(make_counts(6))
    wanted = _ask(http, "/v1/annotate", body, JSON).json()
    (tmp_path / "answer.h5ad").write_bytes(_ask(http, "/v1/annotate", body, H5AD).content)
    adata = anndata.read_h5ad(tmp_path / "answer.h5ad")
    assert list(adata.obs_names) == [cell["id"] for cell in wanted["cells"]]
    labels = [label if isinstance(label, str) else None for label in adata.obs["label"]]
    assert labels == [cell["label"] for cell in wanted["cells"]]
    width = len(wanted["cells"][0]["embedding"])
    embeddings = [cell["embedding"] or [np.nan] * width for cell in wanted["cells"]]
    np.testing.assert_array_equal(adata.obsm["X_scGPT"], np.array(embeddings, np.float32))
    assert adata.uns["cytoray_model"]["version"] == "7"
    answer = json.loads(adata.uns["cytoray_answer"])
    assert answer == {name: wanted[name] for name in ("model", "genes", "warnings")}
    without_ids = json_body(GENES, make_counts(2))
    (tmp_path / "answer.h5ad").write_bytes(_ask(http, "/v1/embed", without_ids, H5AD).content)
    assert list(anndata.read_h5ad(tmp_path / "answer.h5ad").obs_names) == ["0", "1"]


def test_the_client_gets_the_same_by_arrow_and_by_json(
    bundle: Any, build_service: Any, listen: Any, make_counts: Any
) -> None:
    url = listen(build_service(bundle))
    counts = make_counts(11, fractional=True)
    found = {}
    for wire in ("arrow", "json"):
        with (
            Client(url, cells_per_request=4, wire=wire) as client,
            pytest.warns(UserWarning, match=r"of 11 cells do not look like raw counts \(fractional\)"),
        ):
            found[wire] = client.annotate(GENES, counts, ids=[f"c{row}" for row in range(11)])
    one, other = found["arrow"], found["json"]
    # The same bits in one batch; other companions in a batch change the order of sums.
    np.testing.assert_allclose(one.embeddings, other.embeddings, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(one.probabilities, other.probabilities, rtol=1e-5, atol=1e-6)
    assert (one.labels, one.label_names) == (other.labels, other.label_names)


def test_the_client_sends_what_the_service_reads_from_json(make_counts: Any) -> None:
    from cytoray.serving.config import Limits
    from cytoray.serving.payloads.media import Form
    from cytoray.serving.payloads.parsing import parse
    from cytoray.serving.sending import check_cells, encode_cells, encode_stream
    from cytoray.tasks.annotation.answers import AnnotateRequest

    rng = np.random.default_rng(3)
    for values in (rng.poisson(2, 200), rng.random(200), rng.random(200).astype(np.float32), np.arange(200) * 400.0):
        matrix = sp.csr_matrix(values.reshape(5, 40))
        cells = check_cells(GENES, matrix, ensembl_ids=[""] * 40, ids=list("abcde"))
        stream, text = (write(cells, range(1, 4), include_embedding=False) for write in (encode_stream, encode_cells))
        one, other = (
            parse(body, Form(kind), kind=AnnotateRequest, limits=Limits())
            for body, kind in ((stream, ARROW), (text, JSON))
        )
        np.testing.assert_array_equal(one.values, other.values)
        np.testing.assert_array_equal(one.columns, other.columns)
        np.testing.assert_array_equal(one.indptr, other.indptr)
        assert (one.genes, one.ensembl_ids, one.cell_ids) == (other.genes, other.ensembl_ids, other.cell_ids)
        assert one.asked.include_embedding is other.asked.include_embedding is False


def test_a_service_that_reads_no_arrow_is_sent_json(
    bundle: Any, build_service: Any, listen: Any, make_counts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cytoray.serving.payloads.media.BODIES", (JSON,))  # an older service, or a proxy in front
    monkeypatch.setattr("cytoray.serving.payloads.media.ANSWERS", (JSON,))
    counts = make_counts(5)
    with Client(listen(build_service(bundle)), cells_per_request=2) as client:
        found = client.embed(GENES, counts)
    assert found.shape == (5, 16)
    assert np.isfinite(found).all()
