"""Every way to send a wrong request gets its status, its stable code and a pointer to the offender, and no more."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import cytoray
from cytoray.serving.problems import CASES

Post = Callable[..., httpx.Response]
LIMIT = 64 * 1024  # bytes, see conftest.py
GENES = [f"GENE{number:02d}" for number in range(40)]


def _cells(*cells: dict[str, Any], genes: Any = GENES, **members: Any) -> dict[str, Any]:
    return {"genes": genes, "cells": list(cells), **members}


GOOD = {"i": [0, 1], "v": [1, 2]}

MALFORMED = {
    "not JSON": (b"{", ""),
    "empty body": (b"", ""),
    "not UTF-8": (b"\xff\xfe", ""),
    "too deep": (b"[" * 5000, ""),
    "not an object": (b"[]", ""),
    "no cells member": ({"genes": GENES}, "/cells"),
    "no cells": (_cells(), "/cells"),
    "no genes": (_cells(GOOD, genes=[]), "/genes"),
    "unknown member": (_cells(GOOD, celss=1), "/celss"),
    "unknown member of a cell": (_cells({**GOOD, "w": []}), "/cells/0/w"),
    "gene is a number": (_cells(GOOD, genes=["GENE00", 7]), "/genes/1"),
    "value is null": (_cells(GOOD, {"i": [0], "v": [None]}), "/cells/1/v/0"),
    "value is a string": (_cells({"i": [0], "v": ["1"]}), "/cells/0/v/0"),
    "index is a fraction": (_cells({"i": [0.5], "v": [1]}), "/cells/0/i/0"),
    "index is a boolean": (_cells({"i": [True], "v": [1]}), "/cells/0/i/0"),
    "index beyond 64 bits": (_cells({"i": [2**70], "v": [1]}), "/cells/0/i/0"),
    "id is a number": (_cells({**GOOD, "id": 3}), "/cells/0/id"),
    "a key twice": (b'{"genes": ["GENE00"], "genes": ["GENE01"], "cells": [{"i": [0], "v": [1]}]}', "/genes"),
    "a key of a cell twice": (b'{"genes": ["GENE00"], "cells": [{"i": [0], "v": [1], "v": [2]}]}', "/cells/0/v"),
    "a key of a cell twice, once escaped": (
        b'{"genes": ["GENE00"], "cells": [{"i": [0], "v": [1], "\\u0076": [2]}]}',
        "/cells/0/v",
    ),
    "gene name of 257 characters": (_cells(GOOD, genes=["GENE00", "G" * 257]), "/genes/1"),
    "Ensembl id of 257 characters": (_cells(GOOD, ensembl_ids=["E" * 257]), "/ensembl_ids/0"),
    "genome of 257 characters": (_cells(GOOD, genomes=["E" * 257]), "/genomes/0"),
    "cell id of 257 characters": (_cells({**GOOD, "id": "c" * 257}), "/cells/0/id"),
    "number that JSON does not have": (b'{"genes": ["GENE00"], "cells": [{"i": [0], "v": [01]}]}', ""),
    "flag of another route": (_cells(GOOD, include_embedding=True), "/include_embedding"),
}

UNFIT = {
    "value beyond float32": (_cells({"i": [0], "v": [1e39]}), "bad_values", "/cells/0/v/0"),
    "sum of a cell beyond float32": (_cells(GOOD, {"i": [1, 5], "v": [3e38, 2e38]}), "bad_values", "/cells/1/v/0"),
    "index past the genes": (_cells(GOOD, {"i": [0, 40], "v": [1, 1]}), "bad_matrix", "/cells/1/i/1"),
    "negative index": (_cells({"i": [-1], "v": [1]}), "bad_matrix", "/cells/0/i/0"),
    "more indices than values": (_cells(GOOD, {"i": [0, 1], "v": [1]}), "bad_matrix", "/cells/1"),
    "gene twice in a cell": (_cells({"i": [3, 1, 3], "v": [1, 1, 1]}), "bad_matrix", "/cells/0/i/2"),
    "cell id twice": (_cells({**GOOD, "id": "a"}, {**GOOD, "id": "a"}), "bad_matrix", "/cells/1/id"),
    "negative value": (_cells(GOOD, {"i": [0, 5], "v": [1, -2]}), "bad_values", "/cells/1/v/1"),
    "NaN": (_cells({"i": [0, 5], "v": [1, math.nan]}), "bad_values", "/cells/0/v/1"),
    "infinity": (_cells({"i": [0], "v": [math.inf]}), "bad_values", "/cells/0/v/0"),
    "beyond float32": (_cells({"i": [0], "v": [1e39]}), "bad_values", "/cells/0/v/0"),
    "beyond float64": (b'{"genes":["GENE00"],"cells":[{"i":[0],"v":[1e999]}]}', "bad_values", "/cells/0/v/0"),
    "only unknown genes": (_cells({"i": [0], "v": [1]}, genes=["Cd3d", "Lyz2"]), "unknown_genes", "/genes"),
    "too few known genes": (
        _cells({"i": [0], "v": [1]}, genes=["GENE00", "NOPE1", "NOPE2"]),
        "unknown_genes",
        "/genes",
    ),
    "special tokens are no genes": (_cells({"i": [0], "v": [1]}, genes=["<cls>"]), "unknown_genes", "/genes"),
    "genomes of other genes": (_cells(GOOD, genomes=["GRCh38"]), "bad_matrix", "/genomes"),
}


def _assert_problem(response: Any, *, status: int, code: str, pointer: str | None = None) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert {"type", "title", "status", "detail", "instance", "code", "request_id"} <= problem.keys()
    assert problem["status"] == status == CASES[code].status
    assert problem["code"] == code
    assert problem["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text
    assert 'File "' not in response.text
    if pointer is not None:
        assert problem["pointer"] == pointer
    return problem


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_payload(post: Post, case: str) -> None:
    body, pointer = MALFORMED[case]
    problem = _assert_problem(post("/v1/embed", body), status=400, code="malformed_payload", pointer=pointer)
    assert problem["instance"] == "/v1/embed"


@pytest.mark.parametrize("route", ["/v1/embed", "/v1/annotate"])
@pytest.mark.parametrize("case", UNFIT)
def test_cells_that_do_not_fit(post: Post, case: str, route: str) -> None:
    body, code, pointer = UNFIT[case]
    _assert_problem(post(route, body), status=422, code=code, pointer=pointer)


def test_bad_values_name_cell_gene_and_kind_but_no_value(post: Post) -> None:
    problem = post("/v1/embed", _cells(GOOD, {"i": [0, 5], "v": [1, -271828.5]})).json()
    assert (problem["cell"], problem["gene"], problem["kind"], problem["count"]) == (1, "GENE05", "negative", 1)
    assert "271828" not in json.dumps(problem)


def test_malformed_payload_does_not_repeat_values(post: Post) -> None:
    assert "secret" not in post("/v1/embed", _cells({"i": [0], "v": ["secret"]})).text


def test_unknown_genes_say_what_was_seen(post: Post) -> None:
    names = ["GENE00", *(f"Abcd{number}" for number in range(30))]
    problem = post("/v1/embed", _cells({"i": [0], "v": [1]}, genes=names)).json()
    assert (problem["matched"], problem["total"]) == (1, 31)
    assert problem["unknown"] == names[1:21]
    assert problem["id_type"] == "symbol"
    assert "Ensembl" in problem["detail"]


def test_mouse_genes_are_called_mouse(post: Post) -> None:
    problem = post("/v1/embed", _cells({"i": [0], "v": [1]}, genes=["ENSMUSG00000032094", "ENSMUSG00000069516"])).json()
    assert (problem["id_type"], problem["species"]) == ("ensembl", "mouse")


def test_empty_cells_have_null_for_an_answer_and_the_others_theirs(post: Post) -> None:
    empty, zeros = {"i": [], "v": [], "id": "e"}, {"i": [2], "v": [0.0]}
    for route in ("/v1/embed", "/v1/annotate"):
        alone = post(route, _cells(GOOD)).json()
        answer = post(route, _cells(GOOD, empty, GOOD, zeros)).json()
        first, second, third, last = answer["cells"]
        assert first == third
        np.testing.assert_allclose(first["embedding"], alone["cells"][0]["embedding"], atol=1e-5)
        assert second == {**dict.fromkeys(first), "id": "e"}
        assert last == dict.fromkeys(first)
        assert alone["warnings"] == []
        (warning,) = answer["warnings"]
        assert (warning["code"], warning["indices"]) == ("empty_cells", [1, 3])
        assert "2 of 4 cells" in warning["detail"]
        (only,) = post(route, _cells(zeros)).json()["cells"]
        assert only == last


def test_wrong_media_type(http: Any) -> None:
    for headers in ({"Content-Type": "text/plain"}, {}, {"Content-Type": "application/json", "Content-Encoding": "br"}):
        response = http.post("/v1/embed", content=b"{}", headers=headers)
        problem = _assert_problem(response, status=415, code="unsupported_media_type")
        assert problem["accepted"][0] == "application/json"


def test_declared_length_over_the_limit(post: Post) -> None:
    response = post("/v1/embed", b" " * (LIMIT + 1))
    problem = _assert_problem(response, status=413, code="too_large")
    assert (problem["what"], problem["limit"]) == ("bytes", LIMIT)


def test_length_is_also_counted_while_reading(http: Any) -> None:
    sent = 0

    async def chunks() -> Any:  # without a Content-Length
        nonlocal sent
        for _ in range(100):
            sent += 8192
            yield b" " * 8192

    response = http.post("/v1/embed", content=chunks(), headers={"Content-Type": "application/json"})
    _assert_problem(response, status=413, code="too_large")
    assert sent == LIMIT + 8192  # and not one chunk more is read


def test_too_many_cells(post: Post) -> None:
    problem = _assert_problem(post("/v1/embed", _cells(*[GOOD] * 17)), status=413, code="use_jobs", pointer="/cells")
    assert (problem["seen"], problem["limit"]) == (17, 16)
    assert "jobs.answer" in problem["detail"]


def test_too_many_values(post: Post) -> None:
    full = {"i": list(range(40)), "v": [1.0] * 40}
    problem = _assert_problem(post("/v1/embed", _cells(*[full] * 11)), status=413, code="too_large")
    assert (problem["what"], problem["seen"], problem["limit"]) == ("non-zero values", 440, 400)


def test_unknown_route_and_method(http: Any) -> None:
    _assert_problem(http.get("/v1/nothing"), status=404, code="not_found")
    response = http.get("/v1/embed")
    _assert_problem(response, status=405, code="method_not_allowed")
    assert response.headers["allow"] == "POST"


def test_annotate_needs_labels(build_bundle: Any, build_service: Any, connect: Any) -> None:
    http = connect(build_service(build_bundle(labels=())))
    _assert_problem(http.post("/v1/annotate", json=_cells(GOOD)), status=409, code="no_labels")
    assert http.post("/v1/embed", json=_cells(GOOD)).status_code == 200


def test_a_bad_request_id_is_not_repeated(post: Post) -> None:
    given = post("/v1/embed", b"{", **{"X-Request-Id": "run-7.cell_3"})
    assert given.json()["request_id"] == "run-7.cell_3"
    for bad in ("x" * 200, "a b", "<script>"):
        made_up = post("/v1/embed", b"{", **{"X-Request-Id": bad}).json()["request_id"]
        assert made_up != bad
        assert len(made_up) == 32


def test_every_code_that_is_raised_is_in_the_catalogue() -> None:
    folder = Path(cytoray.__file__).parent
    raised = {code: path for path in folder.rglob("*.py") for code in _raised_codes(ast.parse(path.read_text()))}
    assert "unknown_perturbations" in raised
    assert {code: path for code, path in raised.items() if code not in CASES} == {}


def _raised_codes(tree: ast.AST) -> Iterator[str]:
    """Yield the literal codes of all RequestErrors that a file builds."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("RequestError"):
            for given in node.keywords:
                branches = (
                    [given.value.body, given.value.orelse] if isinstance(given.value, ast.IfExp) else [given.value]
                )
                if given.arg == "code":
                    yield from (branch.value for branch in branches if isinstance(branch, ast.Constant))
