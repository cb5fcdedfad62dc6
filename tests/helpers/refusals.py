"""Refusals of bodies by the parsers, within bounds of memory."""

from __future__ import annotations

import tracemalloc

import pytest

import cytoray.corpus.readers.genes  # noqa: F401 - here, so that no test pays for it
from cytoray.errors import RequestError
from cytoray.serving.config import Limits
from cytoray.serving.payloads.media import Form
from cytoray.serving.payloads.parsing import parse
from cytoray.serving.problems import CASES
from cytoray.tasks.embedding.answers import EmbedRequest
from cytoray.tokens.gene_table import human_symbols

MIB = 2**20
human_symbols()  # loaded once per process


def refusal_of(body: bytes, form: Form, *, peak_mib: float = 24) -> RequestError:
    """Parse a body, which must be refused without taking more memory than ``peak_mib`` beside the body."""
    tracemalloc.start()
    try:
        with pytest.raises(RequestError) as caught:
            parse(body, form, kind=EmbedRequest, limits=Limits())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < peak_mib * MIB
    assert 400 <= CASES[caught.value.code].status < 500
    assert len(str(caught.value)) < 2_000
    return caught.value
