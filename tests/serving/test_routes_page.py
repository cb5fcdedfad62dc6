"""docs/serving-routes.md calls every route of the OpenAPI document; `make test-routes` runs it against a service."""

from __future__ import annotations

from pathlib import Path

from documented import operations, template_of
from routes_page import named_calls


def test_no_route_is_missing_from_the_page(tmp_path: Path) -> None:
    (tmp_path / "cells.h5ad").touch()
    called = {(method, template_of(path)) for method, path in named_calls(tmp_path)}
    assert {one for one in called if one[1] is not None} == set(operations())
