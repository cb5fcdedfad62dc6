"""Parsing gives the matrix that was sent, and nothing but RequestError for whatever else is sent."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from cytoray.errors import RequestError
from cytoray.serving.config import Limits
from cytoray.serving.payloads.media import JSON_FORM
from cytoray.serving.payloads.parsed import ParsedRequest
from cytoray.serving.payloads.parsing import parse
from cytoray.serving.payloads.selecting import select_cells
from cytoray.serving.problems import CASES
from cytoray.tasks.annotation.answers import AnnotateRequest
from cytoray.tasks.embedding.answers import EmbedRequest
from cytoray.tokens.vocabulary import GeneVocabulary

LIMITS = Limits(max_cells=8, max_nonzeros=64)
VOCABULARY = GeneVocabulary(["A", "B", "C"])


def _select(request: ParsedRequest) -> Any:
    return select_cells(request, VOCABULARY.map_genes(request.genes), min_gene_overlap=0.0)


def test_the_matrix_arrives_as_it_was_sent(make_counts: Any, as_request: Any) -> None:
    counts = make_counts(20, fractional=True)
    body = json.dumps(as_request(counts)).encode()
    request = parse(body, JSON_FORM, kind=EmbedRequest, limits=Limits())
    seen = sp.csr_matrix((request.values, request.columns, request.indptr), shape=counts.shape)
    assert request.values.dtype == np.float32
    np.testing.assert_array_equal(seen.toarray(), counts.toarray())


def test_genes_may_come_in_any_order_within_a_cell() -> None:
    body = b'{"genes": ["C", "X", "A"], "cells": [{"i": [2, 0, 1], "v": [5, 7.5, 9]}, {"i": [0], "v": [1]}]}'
    cells = _select(parse(body, JSON_FORM, kind=EmbedRequest, limits=LIMITS))
    np.testing.assert_array_equal(cells.gene_ids, [0, 2, 2])
    np.testing.assert_array_equal(cells.values, np.float32([5, 7.5, 1]))
    np.testing.assert_array_equal(cells.indptr, [0, 2, 3])


def test_the_first_offender_is_named_wherever_it_is() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        lengths = rng.integers(1, 6, size=6)
        columns = [rng.choice(8, length, replace=False) for length in lengths]
        values = [rng.random(length) for length in lengths]
        cell = int(rng.integers(6))
        place = int(rng.integers(lengths[cell]))
        values[cell][place] = -1.0
        cells = [{"i": i.tolist(), "v": v.tolist()} for i, v in zip(columns, values, strict=True)]
        with pytest.raises(RequestError) as caught:
            parse(
                json.dumps({"genes": list("ABCDEFGH"), "cells": cells}).encode(),
                JSON_FORM,
                kind=EmbedRequest,
                limits=LIMITS,
            )
        assert caught.value.details["pointer"] == f"/cells/{cell}/v/{place}"
        assert caught.value.details["gene"] == "ABCDEFGH"[columns[cell][place]]


def test_a_flood_of_numbers_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(RequestError) as caught:
        parse(b"[" + b"0," * 3_000_000, JSON_FORM, kind=EmbedRequest, limits=LIMITS)
    assert caught.value.code == "too_large"


def test_a_million_mistakes_are_one_answer() -> None:
    body = b'{"genes": ["A"], "cells": [{"i": [0], "v": [' + b"null," * 100_000 + b"0]}]}"
    with pytest.raises(RequestError) as caught:
        parse(body, JSON_FORM, kind=EmbedRequest, limits=LIMITS)
    assert len(caught.value.details["errors"]) == 1


_numbers = st.one_of(st.integers(-2, 4), st.floats(), st.integers(), st.none(), st.booleans(), st.text(max_size=2))
_cell = st.one_of(
    st.fixed_dictionaries(
        {
            "i": st.one_of(st.lists(st.integers(-1, 4), max_size=4), st.lists(_numbers, max_size=3)),
            "v": st.one_of(st.lists(st.integers(-1, 4), max_size=4), st.lists(_numbers, max_size=3)),
        },
        optional={"id": st.one_of(st.text(max_size=2), _numbers), "x": _numbers},
    ),
    _numbers,
)
_body = st.fixed_dictionaries(
    {
        "genes": st.lists(
            st.one_of(st.sampled_from(["A", "B", "C", "<cls>"]), st.text(max_size=3), _numbers), max_size=5
        ),
        "cells": st.one_of(st.lists(_cell, max_size=10), _numbers),
    },
    optional={"include_embedding": st.one_of(st.booleans(), _numbers)},
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=40), _body.map(lambda body: json.dumps(body).encode())), st.booleans())
def test_whatever_is_sent_is_answered_or_refused_by_the_catalogue(body: bytes, annotate: bool) -> None:
    outcome = _outcome(body, kind=AnnotateRequest if annotate else EmbedRequest)
    if isinstance(outcome, RequestError):
        assert CASES[outcome.code].status in (400, 413, 422)
        json.dumps(outcome.details, allow_nan=False)
    else:
        assert outcome.num_cells == len(json.loads(body)["cells"])
        assert (outcome.values > 0).all()


def _outcome(body: bytes, kind: Any) -> Any:
    try:
        return _select(parse(body, JSON_FORM, kind=kind, limits=LIMITS))
    except RequestError as error:
        return error


def test_parsing_needs_neither_a_web_framework_nor_ray_nor_torch() -> None:
    code = "import sys, cytoray.serving.payloads.parsing; print({'fastapi', 'ray', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
