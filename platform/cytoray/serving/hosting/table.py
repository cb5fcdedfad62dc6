"""The models of a service by name, and the choice of the one that a request asks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cytoray.errors import CytorayError
from cytoray.serving.cell_work import Caller
from cytoray.serving.config import Limits
from cytoray.serving.edge.metrics import Figures
from cytoray.serving.hosting.names import EVERY, find_model
from cytoray.serving.payloads.media import Form
from cytoray.tasks.endpoint import Endpoint, Question, ServedModel
from cytoray.tasks.messages import ModelInfo


class Slot(Protocol):
    """A model that answers; CellService implements it."""

    limits: Limits

    @property
    def model(self) -> ModelInfo:
        """Identity of the version that answers at this moment."""

    @property
    def served(self) -> ServedModel:
        """The version that answers at this moment."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Cell types that it predicts."""

    @property
    def width(self) -> int:
        """Length of an embedding."""

    @property
    def stats(self) -> Figures:
        """Counters for metrics."""

    async def answer(self, endpoint: Endpoint[Any, Any], body: bytes, form: Form, caller: Caller) -> Any:
        """Answer a request with a service.Reply."""

    async def ask(self, endpoint: Endpoint[Any, Any], question: Question[Any], caller: Caller = ...) -> Any:
        """Answer a question about cells over the model's vocabulary."""

    async def check(self, *, timeout_s: float) -> None:
        """Raise ServingError if the model does not answer as it did when it was loaded."""

    def check_ready(self) -> None:
        """Raise ServingError if requests would not be answered."""

    async def drain(self) -> None:
        """Accept no further requests, and wait for those in the queue."""

    async def close(self) -> None:
        """Stop answering."""


@dataclass(frozen=True)
class HostedModel:
    """A model under the name by which requests ask it.

    Attributes:
        name: Name in the service.
        slot: The model.
        alias: Alias in the registry by which the model was looked up, if it was.
        precision: Precision of the forward pass.
    """

    name: str
    slot: Slot
    alias: str = ""
    precision: str = "float32"

    @property
    def model(self) -> ModelInfo:
        """Identity of the version that answers at this moment."""
        return self.slot.model


class ModelTable:
    """The models of a service; the first one answers requests that name none."""

    def __init__(self, models: Sequence[HostedModel]) -> None:
        assert models, "a service has at least one model"
        assert len({model.name for model in models}) == len(models), "names are distinct"
        self._models = tuple(models)

    @classmethod
    def of(cls, slot: Slot) -> ModelTable:
        """Return a table of one model, under its own name."""
        return cls([HostedModel(slot.model.name, slot)])

    def __iter__(self) -> Iterator[HostedModel]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    @property
    def default(self) -> HostedModel:
        """The model that answers requests that name none."""
        return self._models[0]

    @property
    def limits(self) -> Limits:
        """Limits of one request; all models have the same."""
        return self.default.slot.limits

    def find(self, asked: str | None, *, allowed: Sequence[str] = EVERY) -> HostedModel:
        """Return the model called ``asked``, the default for None; raises as ``names.find_model``."""
        return find_model(self._models, asked, allowed=allowed)

    def check_ready(self) -> None:
        """Raise ServingError, which names the model, if one of them would not answer."""
        for model in self._models:
            with _named(model):
                model.slot.check_ready()

    async def check(self, *, timeout_s: float) -> None:
        """Check the answers of all models at the same time; raises as ``Slot.check``, and names the model."""

        async def check(model: HostedModel) -> None:
            """Check one model."""
            with _named(model):
                await model.slot.check(timeout_s=timeout_s)

        found = await asyncio.gather(*(check(model) for model in self._models), return_exceptions=True)
        for error in found:
            if error is not None:
                raise error

    async def close(self) -> None:
        """Stop answering."""
        await asyncio.gather(*(model.slot.close() for model in self._models))


@contextlib.contextmanager
def _named(model: HostedModel) -> Iterator[None]:
    """Name the model that an error of the block is about."""
    try:
        yield
    except CytorayError as error:
        problem = f"Model {model.name}: {error.problem}"
        raise type(error)(problem, remedy=error.remedy, **error.details | {"model": model.name}) from error
