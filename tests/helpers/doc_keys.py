"""Which keys configurations have, to check the YAML that the documentation shows."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from functools import cache
from typing import Any

from pydantic import BaseModel

from cytoray.cli.defaults import Defaults
from cytoray.serving.deploy_file import DeployFile
from cytoray.stages.config import ModelShapeConfig, stage_configs


@cache
def sections() -> frozenset[type[BaseModel]]:
    """Every class of configuration: of whole files and of their sections."""
    found: set[type[BaseModel]] = set()
    for model in (*stage_configs().values(), ModelShapeConfig, DeployFile, Defaults):
        _collect(model, found)
    return frozenset(found)


def _collect(model: type[BaseModel], found: set[type[BaseModel]]) -> None:
    if model in found:
        return
    found.add(model)
    for field in model.model_fields.values():
        for inner in models_in(field.annotation):
            _collect(inner, found)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The classes of configuration inside a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from models_in(inner)


def unknown_key(tree: Any, model: type[BaseModel], path: str = "") -> str | None:
    """The first key of ``tree`` that a class does not have; None if it has all of them."""
    if isinstance(tree, list):
        return next((bad for one in tree if (bad := unknown_key(one, model, path)) is not None), None)
    if not isinstance(tree, dict):
        return None
    for name, value in tree.items():
        field = model.model_fields.get(name)
        if field is None:
            return f"{path}{name}"
        inner = list(models_in(field.annotation))
        bad = [unknown_key(value, each, f"{path}{name}.") for each in inner]
        if bad and None not in bad:
            return bad[0]
    return None


def is_foreign(tree: Any) -> bool:
    """Whether a file is not of cytoray's: no class of configuration has any of its first keys."""
    if not isinstance(tree, dict) or "apiVersion" in tree:
        return True
    return not any(tree.keys() & model.model_fields.keys() for model in sections())


def mistake(tree: Any) -> str | None:
    """The unknown key of the class that fits best; None if one has all keys."""
    bad = [unknown_key(tree, model) for model in sections()]
    return None if None in bad else max((key for key in bad if key is not None), key=lambda key: key.count("."))
