"""Answer `/v1/integrate`: cells of a known or a new batch, embedded by an integration that the bundle carries."""

# C cells, E dimensions of the embedding

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from cytoray.tasks.carried import Carried, genes_are_known
from cytoray.tasks.endpoint import CELLS_EXAMPLE, Answers, Endpoint, Question, ServedModel
from cytoray.tasks.messages import CellsRequest, CellsResponse, Message
from cytoray.tasks.prediction import is_uniform, read_embeddings

if TYPE_CHECKING:
    import anndata

    from cytoray.tasks.integration.attached import BundleIntegration

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
OBSM_KEY = "X_cytoray"


class IntegrateRequest(CellsRequest):
    """Cells of one batch over one list of genes, to be embedded among those of the integration."""

    batch: str = Field(
        min_length=1,
        max_length=256,
        description="Batch of all these cells: one of the integration's, or a new name, whose cells are mapped onto "
        "those of the integration as a whole.",
    )


class IntegratedCell(Message):
    """The answer for one cell of `/v1/integrate`."""

    id: str | None
    embedding: list[float] | None = Field(description="Null for an empty cell.")


class IntegrateHeader(Message):
    """The part of an answer that holds for all its cells."""

    recipe: str = Field(description="How the cells of the integration were integrated.")
    num_dimensions: int = Field(description="Length of an embedding.")
    is_new_batch: bool = Field(description="Whether the batch is not one of the integration's.")
    warnings: list[str]


class IntegrateResponse(CellsResponse):
    """Embeddings in the space of the integration, in the order of the request."""

    header: IntegrateHeader
    cells: list[IntegratedCell]


@dataclass(frozen=True, eq=False)
class IntegratedCells:
    """Embeddings of C cells, in the order in which they were sent."""

    embeddings: Float32  # (C, E), NaN for a cell without a gene that the model knows
    recipe: str
    is_new_batch: bool
    model_version: str
    warnings: tuple[str, ...] = ()

    def write_to(self, adata: anndata.AnnData) -> None:
        """Write the embeddings to ``obsm["X_cytoray"]``."""
        adata.obsm[OBSM_KEY] = self.embeddings


def load_integration(model: ServedModel) -> BundleIntegration | None:
    """Load the integration of the model; None if it carries none."""
    if not model.carries("integration"):
        return None
    from cytoray.tasks.integration.attached import attached_integration

    return attached_integration(model.bundle)


CARRIED: Carried[BundleIntegration] = Carried("integration", "carries no integration", load_integration)


def embed_cells(model: ServedModel, questions: Sequence[Question[IntegrateRequest]]) -> list[_Found]:
    """Embed the cells of each request; requests differ by their genes and batches."""
    loaded, found = CARRIED.of(model), []
    for question in questions:
        batch = question.request.batch
        with genes_are_known():
            embeddings = loaded.embed(question.cells, question.genes, batch)
        header = {
            "recipe": loaded.model.recipe.name,
            "num_dimensions": embeddings.shape[1],
            "is_new_batch": batch not in loaded.model.batch_names,
            "warnings": loaded.warnings(question.cells.num_cells, batch),
        }
        found.append(_Found(embeddings, header))
    return found


def join_embeddings(parts: Sequence[_Found], order: Int64) -> _Found:
    """Return the embeddings of a request from those of its parts, which are of one batch."""
    return replace(parts[0], embeddings=np.concatenate([part.embeddings for part in parts])[order])


def divides(model: ServedModel, question: Question[IntegrateRequest]) -> bool:
    """Whether the cells can be embedded independently: those of a new batch are mapped as a whole."""
    return question.request.batch in CARRIED.of(model).model.batch_names and is_uniform(question.cells)


def answer_integration(question: Question[IntegrateRequest], found: _Found) -> dict[str, Any]:
    """Return the embedding of each cell and the header."""
    missing = np.flatnonzero(np.isnan(found.embeddings[:, 0])).tolist()
    columns: dict[str, list[Any]] = {"embedding": found.embeddings.tolist()}
    return {"header": found.header, "cells": question.rows(columns, missing=missing)}


def read_integration(answers: Answers) -> IntegratedCells:
    """Return the answers to C cells as arrays."""
    header = answers.first.get("header", {"recipe": "", "is_new_batch": False, "num_dimensions": 0, "warnings": []})
    embeddings = read_embeddings(answers)
    if not np.isfinite(embeddings).any():
        embeddings = np.full((len(answers.cells), header["num_dimensions"]), np.nan, np.float32)
    return IntegratedCells(
        embeddings=embeddings,
        recipe=header["recipe"],
        is_new_batch=header["is_new_batch"],
        model_version=answers.model_version,
        warnings=tuple(header["warnings"]),
    )


@dataclass(frozen=True, eq=False)
class _Found:
    """Embeddings (C, E) and the header of an answer."""

    embeddings: Float32
    header: dict[str, Any]


ENDPOINT: Endpoint[IntegrateRequest, _Found] = Endpoint(
    name="integrate",
    description="Embed cells of a known or a new batch in the space of the model's integration.",
    request=IntegrateRequest,
    response=IntegrateResponse,
    run=embed_cells,
    join=join_embeddings,
    divides=divides,
    answer=answer_integration,
    check=CARRIED.check,
    load=load_integration,
    together=lambda answer: bool(answer["header"]["is_new_batch"]),
    read=read_integration,
    obsm={OBSM_KEY: ("embedding",)},
    problems=("wrong_model",),
    example={**CELLS_EXAMPLE, "batch": "b1"},
)
