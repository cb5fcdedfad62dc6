"""The OpenAPI document is the one that is checked in, and names every form of requests and answers.

After a change of the API: ``WRITE_OPENAPI=1 python -m pytest tests/serving/test_openapi.py``, and look at the diff.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from cytoray.serving.payloads.media import ANSWERS, BODIES, JSON

CHECKED_IN = Path(__file__).parents[2] / "docs" / "openapi.json"


def test_the_document_is_the_one_checked_in(http: Any) -> None:
    published = http.get("/openapi.json").json()
    text = json.dumps(published, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    if os.environ.get("WRITE_OPENAPI"):
        CHECKED_IN.write_text(text)
    assert text == CHECKED_IN.read_text(), "WRITE_OPENAPI=1 writes docs/openapi.json again"


def test_every_reference_is_defined(http: Any) -> None:
    published = http.get("/openapi.json").json()
    used = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(published)))
    assert used <= published["components"]["schemas"].keys()


def test_media_types_are_listed(http: Any) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    for route, bodies, answers in (("/v1/embed", BODIES, ANSWERS), ("/v1/genes", (JSON,), (JSON,))):
        operation = paths[route]["post"]
        assert tuple(operation["requestBody"]["content"]) == bodies
        assert tuple(operation["responses"]["200"]["content"]) == answers
