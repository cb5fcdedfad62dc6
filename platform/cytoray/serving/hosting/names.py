"""Find the model that a request names: NAME, NAME@ALIAS or NAME/VERSION, if the key of the request is for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from cytoray.errors import RequestError
from cytoray.tasks.messages import ModelInfo

EVERY = ("*",)  # of the models that a key may ask


class Named(Protocol):
    """A model of a service."""

    @property
    def name(self) -> str:
        """Name in the service."""

    @property
    def alias(self) -> str:
        """Alias in the registry by which it was looked up; empty if it was not."""

    @property
    def model(self) -> ModelInfo:
        """Identity of the version that answers at this moment."""


Model = TypeVar("Model", bound=Named)


def is_called(model: Named, asked: str) -> bool:
    """Return whether ``asked`` is a name of a model; NAME is that in the service or that in the registry."""
    info = model.model
    return any(
        asked in (name, f"{name}/{info.version}") or (model.alias != "" and asked == f"{name}@{model.alias}")
        for name in (model.name, info.name)
    )


def is_allowed(model: Named, allowed: Sequence[str]) -> bool:
    """Return whether a key for the models ``allowed`` may ask this one."""
    return "*" in allowed or model.name in allowed


def find_model(models: Sequence[Model], asked: str | None, *, allowed: Sequence[str] = EVERY) -> Model:
    """Return the model called ``asked``, the first one for None.

    Raises RequestError: ``unknown_model``, which lists the known ones, or ``forbidden`` for a key of other models.
    """
    found: Model | None = models[0]
    if asked is not None:
        same = (model for model in models if model.name == asked)
        found = next(same, None) or next((model for model in models if is_called(model, asked)), None)
    if found is None:
        known = [model.name for model in models if is_allowed(model, allowed)]
        raise RequestError(
            f"This service has no model {asked!r}.",
            remedy=f"It has {', '.join(known)}; GET /v1/models describes them.",
            code="unknown_model",
            known=known,
        )
    if not is_allowed(found, allowed):
        raise RequestError(
            f"This key is not valid for the model {found.name}; it is for {', '.join(allowed)}.",
            remedy="Name one of these models, or ask the operator for a key for this one.",
            code="forbidden",
        )
    return found
