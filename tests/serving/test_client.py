"""The Python client against the real application over a real socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from cytoray.errors import RequestError, ServingError
from cytoray.model.predictor import CellPredictor
from cytoray.serving.client import Client
from cytoray.serving.edge.config import EdgeConfig
from cytoray.serving.edge.keys import Allowance, create_key

GENES = [f"GENE{number:02d}" for number in range(40)]


@pytest.fixture
def url(bundle: Any, build_service: Any, listen: Any) -> str:
    """The application behind uvicorn, in a thread."""
    return str(listen(build_service(bundle)))


@pytest.fixture
def foreign_url() -> Iterator[str]:
    """A server that answers every POST in plain text, as servers in front of the service do: /STATUS/v1/…"""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(int(self.path.split("/")[1]))
            self.end_headers()
            self.wfile.write(b"their words")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(20)


def test_many_cells_in_several_requests_equal_offline(url: str, bundle: Any, make_counts: Any, as_cells: Any) -> None:
    counts = make_counts(37)
    offline = CellPredictor(bundle).predict(as_cells(counts))
    with Client(url, timeout=20.0, cells_per_request=8) as client:
        answer = client.annotate(GENES, counts)
        np.testing.assert_allclose(client.embed(GENES, counts), offline.embeddings, atol=1e-6)
    np.testing.assert_allclose(answer.embeddings, offline.embeddings, atol=1e-6)
    np.testing.assert_allclose(answer.probabilities, offline.probabilities, atol=1e-6)
    assert answer.label_names == offline.labels
    assert answer.labels == tuple(offline.labels[column] for column in offline.probabilities.argmax(axis=1))
    assert answer.model_version == "7"
    assert answer.embeddings.dtype == answer.probabilities.dtype == np.float32


def test_the_matrix_may_be_of_any_kind_and_is_left_alone(url: str, make_counts: Any) -> None:
    data, columns = make_counts(3).data[:6], np.array([5, 5, 0, 0, 9, 9])  # every entry in two halves
    doubled = sp.csr_matrix((data, columns, np.array([0, 2, 4, 6])), shape=(3, 40))
    before = doubled.data.copy()
    with Client(url, timeout=20.0) as client:
        wanted = client.embed(GENES, sp.csr_matrix(doubled.toarray()))
        np.testing.assert_array_equal(client.embed(GENES, doubled), wanted)
        np.testing.assert_array_equal(client.embed(GENES, doubled.tocsc()), wanted)
        np.testing.assert_array_equal(client.embed(np.array(GENES), doubled.astype(np.float64)), wanted)
    np.testing.assert_array_equal(doubled.data, before)


def test_no_cells_need_no_answer(url: str) -> None:
    with Client(url) as client:
        assert client.embed(GENES, sp.csr_matrix((0, 40))).shape == (0, 0)
        assert client.annotate(GENES, sp.csr_matrix((0, 40))).labels == ()


def test_numbers_that_disagree_are_refused_before_anything_is_sent(make_counts: Any) -> None:
    with Client("http://127.0.0.1:9") as client:  # nobody listens there
        with pytest.raises(RequestError, match=r"genes has 39 entries, but the matrix has 40 columns.*cells as rows"):
            client.annotate(GENES[1:], make_counts(2))
        with pytest.raises(RequestError, match="ensembl_ids has 1 entries, but the matrix has 40 columns"):
            client.embed(GENES, make_counts(2), ensembl_ids=["ENSG00000167286"])
        with pytest.raises(RequestError, match="ids has 1 entries, but the matrix has 2 rows"):
            client.embed(GENES, make_counts(2), ids=["one"])
    with pytest.raises(RequestError, match="cells_per_request is 0"):
        Client("http://127.0.0.1:9", cells_per_request=0)


def test_names_alone_that_the_model_does_not_know_cause_a_warning(url: str, make_counts: Any) -> None:
    genes = ["ALIAS00", *GENES[1:]]
    with Client(url) as client:
        with pytest.warns(UserWarning, match=r"knows 39 of the 40 genes by name.*ALIAS00.*annotate_adata") as seen:
            client.annotate(genes, make_counts(2))
        assert seen[0].filename == __file__
        answer = client.annotate(genes, make_counts(2), ensembl_ids=[""] * 40)
    assert (answer.num_matched_genes, answer.num_genes) == (39, 40)


def test_a_refusal_carries_its_code_and_offenders(url: str, make_counts: Any) -> None:
    with Client(url) as client:
        with pytest.raises(RequestError, match="knows 0 of the 40 genes") as caught:
            client.embed([f"NOPE{number}" for number in range(40)], make_counts(1))
        assert caught.value.code == "unknown_genes"
        assert caught.value.details["unknown"][:2] == ["NOPE0", "NOPE1"]
        with pytest.raises(RequestError) as caught:
            client.annotate(GENES, -make_counts(1), ids=["cell"])
        assert (caught.value.code, caught.value.details["gene"]) == ("bad_values", "GENE00")


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (200, r"not an answer of the service.*URL is a cytoray service"),
        (404, r"No service is deployed.*Check the URL"),
        (408, r"time of the server in front.*Lower cells_per_request"),
        (500, r"process that worked on this request has ended.*Send it again"),
        (503, r"too many requests.*again later"),
        (418, r"not an answer of the service.*URL is a cytoray service"),
    ],
)
def test_servers_in_front_are_not_mistaken_for_a_wrong_url(
    foreign_url: str, make_counts: Any, status: int, message: str
) -> None:
    with Client(f"{foreign_url}/{status}", deadline=0) as client, pytest.raises(ServingError, match=message) as caught:
        client.embed(GENES, make_counts(1))
    assert "their words" in str(caught.value)
    assert (status in (200, 404, 418)) == ("URL" in str(caught.value))


def test_the_key_is_sent(bundle: Any, build_service: Any, listen: Any, make_counts: Any, tmp_path: Path) -> None:
    key, _ = create_key(tmp_path / "keys.json", owner="lab", allowance=Allowance(scopes=("embed",)), days=None)
    config = EdgeConfig(keys_file=str(tmp_path / "keys.json"))
    url = listen(build_service(bundle), config=config)
    with Client(url, key=key) as client:
        assert len(client.embed(GENES, make_counts(1))) == 1
        with pytest.raises(RequestError, match="not valid for /v1/annotate"):
            client.annotate(GENES, make_counts(1))
    with Client(url) as client, pytest.raises(RequestError, match="no valid API key"):
        client.embed(GENES, make_counts(1))


def test_nobody_there(make_counts: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with (
        Client(f"http://127.0.0.1:{port}", deadline=0) as client,
        pytest.raises(ServingError, match="Check that the service is running"),
    ):
        client.embed(GENES, make_counts(1))
