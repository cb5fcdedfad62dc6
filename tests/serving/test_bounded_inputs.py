"""Clients cannot make the service remember, repeat or work on more than the limits allow; doubtful values are named."""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np
import pytest

from cytoray.errors import RequestError
from cytoray.serving.config import Limits
from cytoray.serving.payloads.media import JSON_FORM
from cytoray.serving.payloads.parsing import parse
from cytoray.serving.payloads.selecting import GeneCache
from cytoray.tasks.embedding.answers import EmbedRequest
from cytoray.tokens import gene_table
from cytoray.tokens.vocabulary import GeneVocabulary

GENES = [f"GENE{number:02d}" for number in range(40)]


def _post(http: Any, genes: list[str], *cells: dict[str, Any], route: str = "/v1/embed") -> Any:
    return http.post(route, json={"genes": genes, "cells": list(cells)})


def test_the_number_of_genes_is_limited(bundle: Any, build_service: Any, connect: Any) -> None:
    http = connect(build_service(bundle, max_genes=40))
    assert _post(http, GENES, {"i": [0], "v": [1]}).status_code == 200
    problem = _post(http, [*GENES, "ONE"], {"i": [0], "v": [1]}).json()
    assert (problem["code"], problem["pointer"], problem["seen"], problem["limit"]) == ("too_large", "/genes", 41, 40)


@pytest.mark.parametrize("route", ["/v1/genes", "/v1/networks", "/v1/perturb"])
def test_names_of_other_requests_are_limited(http: Any, route: str) -> None:
    member = "perturbations" if route == "/v1/perturb" else "genes"
    response = http.post(route, json={member: ["x" * 300]})
    assert response.status_code in (400, 409)
    assert len(response.content) < 2_000


def test_problems_do_not_repeat_long_input(post: Any) -> None:
    long = "x" * 50_000
    for body in ({long: 1}, {"genes": ["A"], "cells": [{"i": [0], "v": [1], long: 2}]}):
        response = post("/v1/embed", body)
        assert response.status_code == 400
        assert len(response.content) < 3_000
    names = [f"{number}{'y' * 240}" for number in range(150)]
    response = post("/v1/embed", {"genes": names, "cells": [{"i": [0], "v": [1]}]})
    assert response.status_code == 422
    assert len(response.content) < 10_000
    assert response.json()["detail"].endswith("Send human HGNC symbols or Ensembl gene ids (ENSG…) in `genes`.")


def test_the_cache_of_mappings_is_bounded_in_bytes() -> None:
    vocabulary = GeneVocabulary(["CD3D", "LYZ"])
    cache = GeneCache(vocabulary.map_genes, max_bytes=100_000)
    for number in range(50):
        names = ["CD3D", *(f"NOPE{number}-{other}" for other in range(100))]
        body = json.dumps({"genes": names, "cells": [{"i": [0], "v": [1]}]}).encode()
        request = parse(body, JSON_FORM, kind=EmbedRequest, limits=Limits())
        mapping = cache.map(request)
        assert mapping.unknown == tuple(names[1:])
        assert cache.map(request) is mapping
        assert 0 < cache.num_bytes <= 100_000


def test_equal_texts_in_other_places_are_other_genes() -> None:
    cache = GeneCache(GeneVocabulary(["CD3D", "LYZ"]).map_genes)
    for genes, ids, known in (
        (["CD3D", "x"], ["", "ENSG00000090382"], [0, 1]),
        (["CD3D", "xE"], ["", "NSG00000090382"], [0, -1]),
        (["CD3Dx", ""], ["", "ENSG00000090382"], [-1, 1]),
    ):
        body = json.dumps({"genes": genes, "ensembl_ids": ids, "cells": [{"i": [0], "v": [1]}]}).encode()
        request = parse(body, JSON_FORM, kind=EmbedRequest, limits=Limits())
        assert cache.map(request).ids.tolist() == known


def test_long_names_are_not_remembered() -> None:
    caches = [gene_table._unversioned, gene_table._is_symbol, gene_table._name_species, gene_table._genome_species]
    before = [cache.cache_info().currsize for cache in caches]
    names = [f"{'n' * 70}{number}" for number in range(20)]
    gene_table.judge_species(names, genomes=names)
    gene_table.guess_id_type(names)
    assert [cache.cache_info().currsize for cache in caches] == before


def test_work_ends_with_its_request(
    bundle: Any, build_service: Any, runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = build_service(bundle, deadline_s=0.2)
    parsing, later = threading.Event(), threading.Event()
    ran: list[str] = []

    def slow_parse(*args: Any, **kwargs: Any) -> Any:
        parsing.wait(20)
        later.set()
        return parse(*args, **kwargs)

    monkeypatch.setattr("cytoray.serving.service.parse", slow_parse)
    monkeypatch.setattr(service._genes, "map", lambda request: ran.append("map"))
    from cytoray.tasks import find_endpoint

    body = json.dumps({"genes": GENES, "cells": [{"i": [0], "v": [1]}]}).encode()
    with pytest.raises(RequestError, match=r"No answer within 0.2 s"):
        runner.run(service.answer(find_endpoint("embed"), body))
    parsing.set()
    assert later.wait(20)
    runner.run(service.close())
    runner.run(runner.get_loop().shutdown_default_executor())
    assert ran == []


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1.5, 2.0, 7.0, 1.0], "fractional"),
        ([0.5, 2.25, 1.75, 3.3], "normalised"),
        ([1e30, 2.0, 3.0, 4.0], "implausibly large"),
        ([812.4, 33.25, 70.5, 3.3], "fractional"),
    ],
)
def test_values_that_are_no_counts_are_answered_with_a_warning(post: Any, values: list[float], kind: str) -> None:
    good, doubtful = {"i": [0, 1], "v": [1, 3]}, {"i": [0, 1, 2, 3], "v": values}
    answer = post("/v1/embed", {"genes": GENES, "cells": [good, doubtful, doubtful]}).json()
    (warning,) = answer["warnings"]
    assert (warning["code"], warning["kind"]) == ("not_counts", kind)
    assert (warning["num_cells"], warning["first"]) == (2, 1)
    assert "/cells/1" in warning["detail"]
    assert all(np.isfinite(cell["embedding"]).all() for cell in answer["cells"])
    assert post("/v1/embed", {"genes": GENES, "cells": [good]}).json()["warnings"] == []
