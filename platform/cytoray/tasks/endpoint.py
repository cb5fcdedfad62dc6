"""A kind of request that a served model answers: what is asked, how it is answered, and how a client reads it."""

# C cells

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from cytoray.errors import ModelError
from cytoray.tasks.messages import ModelInfo, Request, Response
from cytoray.tasks.spec import Lazy
from cytoray.tokens.cells import SparseCells

if TYPE_CHECKING:  # a client has no torch
    from cytoray.model.bundle import ModelBundle
    from cytoray.model.predictor import Predictions

Asked = TypeVar("Asked", bound=Request)
Result = TypeVar("Result")
Part = TypeVar("Part")
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
CELLS_EXAMPLE: Mapping[str, Any] = {
    "genes": ["CD3D", "CD3E", "IL7R", "LYZ"],
    "cells": [{"id": "a", "i": [0, 1, 2], "v": [3, 2, 5]}],
}
TableOf = Callable[..., Any]  # (endpoint, question, result, ModelInfo) -> pyarrow.Table with a row per cell
TABLE: Lazy[TableOf] = Lazy("cytoray.tasks.tables", "table_of_answers")


class Predictor(Protocol):
    """Interface of a model in the service; CellPredictor implements it."""

    def predict(self, cells: SparseCells) -> Predictions:
        """Predict for C cells, in their order; NaN for a cell without genes."""


@dataclass(frozen=True)
class ServedModel:
    """A model that answers requests.

    ``waits``: whether a request may take minutes, as offline; a service refuses it until what it needs is prepared.
    """

    bundle: ModelBundle
    predictor: Predictor
    info: ModelInfo
    waits: bool = False
    _parts: dict[Callable[[ServedModel], Any], Any] = field(default_factory=dict, repr=False)

    def predict(self, cells: SparseCells) -> Predictions:
        """Predict for C cells; raises ModelError if embeddings of cells with genes are not finite."""
        predictions = self.predictor.predict(cells)
        if not np.isfinite(predictions.embeddings[cells.num_genes_per_cell > 0]).all():
            raise ModelError("The model returned embeddings that are not finite.", remedy="Serve another version.")
        return predictions

    def carries(self, name: str) -> bool:
        """Return whether an attachment belongs to the model: what reads it takes a second to import."""
        return any(file.startswith(f"{name}.") for file in self.bundle.attachments)

    def part(self, load: Callable[[ServedModel], Part]) -> Part:
        """Return what ``load`` makes of the model, such as an attached index; it is loaded once and kept."""
        if load not in self._parts:
            self._parts[load] = load(self)
        found: Part = self._parts[load]
        return found


@dataclass(frozen=True)
class Question(Generic[Asked]):
    """A request that was parsed and checked."""

    request: Asked  # without its cells, which are in ``cells``
    cells: SparseCells  # over the model's vocabulary; none if the request is not about cells
    cell_ids: tuple[str | None, ...] = ()  # (C,), as sent
    genes: Int32 = field(default_factory=lambda: np.empty(0, np.int32))  # the vocabulary's that the request measured

    def take(self, rows: Int64) -> Question[Asked]:
        """Return the question about some of the cells."""
        cell_ids = tuple(self.cell_ids[row] for row in rows) if self.cell_ids else ()
        return replace(self, cells=self.cells.take(rows), cell_ids=cell_ids)

    def rows(self, columns: dict[str, list[Any]], *, missing: Sequence[int]) -> list[dict[str, Any]]:
        """Return the answer to each cell with its id, from columns (C,); all is None for cells in ``missing``."""
        for column in columns.values():
            for row in missing:
                column[row] = None
        named = {"id": list(self.cell_ids), **columns}
        return [dict(zip(named, row, strict=True)) for row in zip(*named.values(), strict=True)]


@dataclass(frozen=True)
class Answers:
    """The answers that a client received to C cells, in the order in which they were sent, of one model version."""

    cells: list[dict[str, Any]]  # (C,) entries of ``cells`` of the responses
    first: dict[str, Any]  # the first response; empty if nothing was sent
    num_genes: int = 0  # genes sent
    describe: Callable[[], dict[str, Any]] = dict  # the service's /version

    @property
    def model_version(self) -> str:
        """The version that answered; empty if nothing was sent."""
        return str(self.first["model"]["version"]) if self.first else ""

    @property
    def num_matched_genes(self) -> int:
        """Genes sent that the model knows."""
        return int(self.first["genes"]["matched"]) if "genes" in self.first else 0

    @cached_property
    def service(self) -> dict[str, Any]:
        """The labels, widths and limits that the service reports; empty if nothing was sent."""
        return self.describe() if self.first else {}


def num_tokens(question: Question[Any]) -> int:
    """Return the tokens of the cells of a request, with one <cls> per cell."""
    return len(question.cells.gene_ids) + question.cells.num_cells


def accept(model: ServedModel) -> None:
    """Accept any model."""


def admit(model: ServedModel, question: Question[Any]) -> None:
    """Admit any request."""


def is_divisible(model: ServedModel, question: Question[Any]) -> bool:
    """Answer the cells of any request independently."""
    return True


def never_together(answer: Mapping[str, Any]) -> bool:
    """Answer that the cells of a request do not depend on each other."""
    return False


def load_nothing(model: ServedModel) -> object:
    """Need nothing beyond the model."""
    return None


def read_cells(answers: Answers) -> list[dict[str, Any]]:
    """Return the answers to cells as JSON data."""
    return answers.cells


@dataclass(frozen=True)
class Endpoint(Generic[Asked, Result]):
    """A kind of request, answered at ``/v1/NAME``.

    ``run`` is called in a thread of the batcher with several requests at once, also those of other endpoints with the
    same ``run``. With ``join`` it answers each cell independently of the others, and gets parts of requests:
    ``join(results, order)`` puts the results of the parts one after another and takes their cells in ``order`` (C,).
    A request whose type is a CellsRequest has its cells checked and mapped to the model's vocabulary before, and gets
    ``genes`` and ``warnings`` in its answer. ``problems`` are the codes of its own refusals, beside those that any
    request of its kind may get.
    """

    name: str
    description: str  # in OpenAPI
    request: type[Asked]
    response: type[Response]
    run: Callable[[ServedModel, Sequence[Question[Asked]]], Sequence[Result]]
    answer: Callable[[Question[Asked], Result], dict[str, Any]]  # the members of the response that are its own
    check: Callable[[ServedModel], None] = accept  # raises RequestError if the model cannot answer
    load: Callable[[ServedModel], object] = load_nothing  # of ``ServedModel.part``: called before the first request
    admit: Callable[[ServedModel, Question[Asked]], None] = admit  # raises RequestError; outside the model's thread
    cost: Callable[[Question[Asked]], int] = num_tokens  # of a request that is answered as a whole
    join: Callable[[Sequence[Result], Int64], Result] | None = None
    divides: Callable[[ServedModel, Question[Asked]], bool] = is_divisible  # whether ``join`` applies to a request
    together: Callable[[Mapping[str, Any]], bool] = never_together  # whether an answer depends on all cells it is to
    read: Callable[[Answers], Any] = read_cells  # what the client returns
    table: Lazy[TableOf] = TABLE  # of the answers to cells of files
    offline_members: Mapping[str, Any] = field(default_factory=dict)  # of requests about cells of files
    obsm: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # key of obsm: columns of the table in an h5ad
    problems: tuple[str, ...] = ()
    example: Mapping[str, Any] = field(default_factory=lambda: CELLS_EXAMPLE)  # a request, in JSON

    @property
    def route(self) -> str:
        """The path of the endpoint."""
        return f"/v1/{self.name}"
