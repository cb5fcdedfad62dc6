"""Where cells would move on the map if a gene were perturbed: the predicted change, embedded by the model again."""

# R cells that are moved, C cells of the session, D width, V genes of the vocabulary, N neighbours

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from cytoray.errors import RequestError
from cytoray.serving.explorer.answering import EMBEDDED, Asker
from cytoray.serving.explorer.cells import Float32, StoredCells
from cytoray.serving.explorer.columns import read_layout
from cytoray.serving.explorer.layout_inputs import read_embeddings
from cytoray.serving.explorer.sessions import Session
from cytoray.tasks import find_endpoint
from cytoray.tasks.endpoint import Question
from cytoray.tasks.messages import Message
from cytoray.tokens.cells import SparseCells

PERTURBED = "perturb"  # the endpoint that predicts the change
MOST_CELLS = 100
NUM_NEIGHBOURS = 10
SMALLEST = 0.001  # distance that is shown


class ShiftRequest(Message):
    """Cells to move, by row, and the perturbation."""

    perturbation: str = Field(min_length=1, max_length=200)
    layout: str = Field(pattern=r"^[a-z]+$")
    rows: Annotated[list[int], Field(min_length=1, max_length=MOST_CELLS)]


async def shift_cells(service: Asker, session: Session, cells: StoredCells, asked: ShiftRequest) -> dict[str, Any]:
    """Return an arrow for each cell and a sentence about them all.

    The predicted change is added to a cell's log-normalised expression and the result is embedded. An arrow leads by
    the difference between the mean places of the cells nearest to the two embeddings, before and after.
    """
    if asked.layout not in session.state.layouts:
        raise RequestError("Unknown layout.", remedy="Choose one of the page.", code="not_found", pointer="/layout")
    if not all(0 <= row < cells.num_cells for row in asked.rows):
        raise RequestError("Unknown cell.", remedy="Choose cells of the page.", code="not_found", pointer="/rows")
    genes, change = await _predict(service, asked.perturbation)
    before = moved_cells(cells, asked.rows, genes, np.zeros_like(change))
    after = moved_cells(cells, asked.rows, genes, change)
    embeddings = [await _embed(service, cells, those) for those in (before, after)]
    known, places = read_embeddings(session.folder), read_layout(session, asked.layout)
    old, new = (mean_places(known, places, found) for found in embeddings)
    own = places[asked.rows]
    ends = own + new - old
    drawn = np.flatnonzero(np.isfinite(ends).all(axis=1))
    distance = 1 - np.nansum(embeddings[0] * embeddings[1], axis=1)
    arrows = [{"from": asked.rows[at], "x": float(ends[at, 0]), "y": float(ends[at, 1])} for at in drawn]
    median = float(np.median(distance))
    shown = f"{median:.3f}" if median >= SMALLEST else f"below {SMALLEST}"
    text = (
        f"{len(drawn)} cells moved; the median cosine distance between a cell's embeddings before and after is "
        f"{shown}. An estimate by the model: not a measurement."
    )
    return {"arrows": arrows, "text": text}


def moved_cells(cells: StoredCells, rows: list[int], genes: npt.NDArray[np.integer], change: Float32) -> SparseCells:
    """Return cells with ``change`` added to the expression of ``genes``, as log-normalised values, none below zero."""
    parts = []
    for row in rows:
        cell = cells.expression_of(row)
        cell[genes] = np.maximum(cell[genes] + change, 0)
        there = np.intersect1d(np.flatnonzero(cell), cells.genes).astype(np.int32)
        parts.append(SparseCells(there, cell[there], np.array([0, len(there)]), cells.cell_ids[row : row + 1]))
    return SparseCells.concatenate(parts)


def mean_places(known_CD: Float32, places_C2: Float32, found_RD: Float32) -> Float32:
    """Return the mean place (R, 2) of the cells whose embeddings are nearest to each of R, NaN without an embedding."""
    placed = np.flatnonzero(np.isfinite(known_CD[:, 0]) & np.isfinite(places_C2[:, 0]))
    count = min(NUM_NEIGHBOURS, len(placed))
    similarity_RC = found_RD @ known_CD[placed].T
    nearest_RN = np.argpartition(-similarity_RC, count - 1, axis=1)[:, :count]
    means: Float32 = places_C2[placed][nearest_RN].mean(axis=1)
    return np.where(np.isfinite(found_RD[:, :1]), means, np.float32(np.nan))


async def _predict(service: Asker, perturbation: str) -> tuple[npt.NDArray[np.integer], Float32]:
    """Return the ids of the genes that a perturbation is predicted to change, and by how much."""
    endpoint = find_endpoint(PERTURBED)
    endpoint.check(service.served)
    request = endpoint.request(perturbations=[perturbation], include_all=True)
    question = Question(request, SparseCells.concatenate([]))
    answer = endpoint.answer(question, await service.ask(endpoint, question))
    ids = service.served.bundle.vocabulary.map_genes(answer["header"]["genes"], sum_older=True).ids
    change = np.array(answer["perturbations"][0]["delta"], np.float32)
    return ids[ids >= 0], change[ids >= 0]


async def _embed(service: Asker, cells: StoredCells, those: SparseCells) -> Float32:
    """Return the model's embeddings (R, D) of some cells."""
    endpoint = find_endpoint(EMBEDDED)
    question = Question(endpoint.request.model_construct(), those, ("",) * those.num_cells, cells.genes)
    found: Float32 = (await service.ask(endpoint, question)).embeddings
    return found
