"""Answer `/v1/map`: labels of cells by a reference that the model carries, with neighbours and places on its map."""

# C cells

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from cytoray.tasks.carried import Carried, genes_are_known
from cytoray.tasks.endpoint import Answers, Endpoint, Question, ServedModel
from cytoray.tasks.messages import CellsRequest, CellsResponse, Message
from cytoray.tasks.prediction import is_uniform

if TYPE_CHECKING:
    import anndata
    import pandas as pd

    from cytoray.tasks.mapping.inputs import MapCells
    from cytoray.tasks.mapping.mapper import Embed
    from cytoray.tasks.mapping.querying import MappedQuery, Refits
    from cytoray.tasks.mapping.reference import Reference

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


class MapRequest(CellsRequest):
    """Cells over one list of genes, to be mapped among those of the reference."""


class Candidate(Message):
    """A label that a cell may have."""

    label: str
    probability: float


class Neighbour(Message):
    """A cell of the reference that lies near a cell."""

    ref_id: str = Field(description="Its name in the reference.")
    label: str
    dataset: str = Field(description="The file that it comes from.")
    batch: str | None = None
    distance: float = Field(description="Between unit vectors: from 0 to 2.")


class MappedCell(Message):
    """The answer for one cell of `/v1/map`; all but the id is null for a cell without a gene of the reference."""

    cell_id: str | None
    label: str | None
    probability: float | None = Field(description="Calibrated probability of `label`.")
    status: Literal["assigned", "ambiguous", "unassigned"] | None = Field(
        description="`unassigned`: unlike the cells of every label. `ambiguous`: several labels fit, see `set`."
    )
    candidates: list[Candidate] | None = Field(description="Up to five labels, the likeliest first.")
    set: list[str] | None = Field(description="Labels of the calibrated prediction set.")
    unseen_p: float | None = Field(description="Small if the reference may not have the type of the cell.")
    mapping_percentile: float | None = Field(
        description="Percentage of reference cells of the label that lie no nearer to their neighbours."
    )
    neighbours: list[Neighbour] | None = Field(description="The five nearest cells of the reference.")
    x: float | None = Field(description="Place on the reference's map, which never changes; null without a map.")
    y: float | None


class Thresholds(Message):
    """Limits that decide about the status of a cell."""

    unassigned: float = Field(description="`unseen_p` below which a cell is unassigned.")
    sets: float = Field(description="Share of cells whose true label is in their `set`.")


class MadeBy(Message):
    """The model whose embeddings a reference uses."""

    uri: str
    weights: str = Field(description="SHA-256 of weights, vocabulary and preprocessing.")


class MapHeader(Message):
    """The part of an answer that holds for all its cells."""

    reference: str = Field(description="SHA-256 that identifies the reference.")
    model: MadeBy | None = Field(description="Null if the reference was built by genes alone.")
    space: str = Field(description="Where cells are neighbours.")
    k: int = Field(description="Number of neighbours that vote.")
    weights: dict[str, float] = Field(description="Weight of each method in the labels' probabilities.")
    coverage: float = Field(description="Share of a reference cell's counts that lie in the genes of the request.")
    refitted: bool = Field(description="Whether the reference was fitted to the genes of the request.")
    thresholds: Thresholds
    warnings: list[str]


class MapResponse(CellsResponse):
    """Labels by the reference, in the order of the request."""

    header: MapHeader
    cells: list[MappedCell]


@dataclass(frozen=True, eq=False)
class LoadedReference:
    """The reference that a served model carries, and the mappers that were fitted to the genes of requests."""

    reference: Reference
    embed: Embed | None
    refits: Refits


@dataclass(frozen=True, eq=False)
class Mappings:
    """Answers to C cells, in the order in which they were sent."""

    cells: list[dict[str, Any]]  # (C,) as /v1/map answers them
    header: dict[str, Any]  # empty if nothing was sent
    model_version: str

    @property
    def labels(self) -> tuple[str | None, ...]:
        """Labels (C,), None for a cell without a gene of the reference."""
        return tuple(cell["label"] for cell in self.cells)

    @property
    def places(self) -> Float32:
        """Places (C, 2) on the reference's map, NaN for cells without one."""
        return np.array([[cell["x"], cell["y"]] for cell in self.cells], np.float32).reshape(-1, 2)

    def to_obs(self, index: Sequence[str] | None = None) -> pd.DataFrame:
        """Return label, probability, status, unseen_p and mapping_percentile as a table with a row per cell."""
        import pandas as pd

        columns = ("label", "probability", "status", "unseen_p", "mapping_percentile")
        values = {name: [cell[name] for cell in self.cells] for name in columns}
        table = pd.DataFrame(values, index=None if index is None else pd.Index(index))
        numbers = ["probability", "unseen_p", "mapping_percentile"]
        return table.astype(dict.fromkeys(numbers, float))

    def write_to(self, adata: anndata.AnnData) -> None:
        """Write the columns of ``to_obs`` to obs as ``cytoray_…``, and the places to ``obsm["X_reference_umap"]``."""
        for name, column in self.to_obs(adata.obs_names).items():
            adata.obs[f"cytoray_{name}"] = column
        adata.obsm["X_reference_umap"] = self.places


def load_reference(model: ServedModel) -> LoadedReference | None:
    """Load the reference of the model; None if it carries none."""
    if not model.carries("reference"):
        return None
    from cytoray.tasks.mapping.attached import attached_reference
    from cytoray.tasks.mapping.querying import Refits, embed_with

    reference = attached_reference(model.bundle)
    if reference is None:
        return None
    embed = embed_with(model.predict) if reference.mapper.space.uses_embeddings else None
    return LoadedReference(reference, embed, Refits(reference, embed))


CARRIED: Carried[LoadedReference] = Carried("reference", "carries no reference", load_reference)


def admit_query(model: ServedModel, question: Question[MapRequest]) -> None:
    """Refuse genes that the reference does not share, and, in a service, those that it has yet to be fitted to."""
    from cytoray.tasks.mapping.querying import common_genes, needs_refit

    loaded = CARRIED.of(model)
    without_cells = replace(question, cells=question.cells.take(np.empty(0, np.int64)))
    with genes_are_known():
        common = common_genes(loaded.reference, _as_query(model, without_cells))
        if needs_refit(loaded.reference, common):
            loaded.refits.get(common, wait=model.waits)


def map_cells(model: ServedModel, questions: Sequence[Question[MapRequest]]) -> list[MappedQuery]:
    """Map the cells of each request; requests differ by their genes."""
    from cytoray.tasks.mapping.querying import map_query

    loaded = CARRIED.of(model)
    return [
        map_query(
            loaded.reference,
            _as_query(model, question),
            embed=loaded.embed,
            refits=loaded.refits,
            wait=model.waits,
        )
        for question in questions
    ]


def join_queries(parts: Sequence[MappedQuery], order: Int64) -> MappedQuery:
    """Return the answers to a request from those to its parts, which have the same genes."""
    from cytoray.tasks.mapping.querying import join_mapped

    return join_mapped(parts, order)


def answer_query(question: Question[MapRequest], found: MappedQuery) -> dict[str, Any]:
    """Return the answer to each cell and the header, as `cytoray reference query` writes them."""
    from cytoray.tasks.mapping.rows import answer_rows, header

    return {"header": header(found), "cells": answer_rows(found, question.cell_ids)}


def read_mappings(answers: Answers) -> Mappings:
    """Return the answers to C cells."""
    return Mappings(answers.cells, answers.first.get("header", {}), answers.model_version)


def _as_query(model: ServedModel, question: Question[Any]) -> MapCells:
    from cytoray.tasks.mapping.inputs import as_query

    return as_query(question.cells, genes=question.genes, num_genes=model.bundle.vocabulary.size)


ENDPOINT: Endpoint[MapRequest, MappedQuery] = Endpoint(
    name="map",
    description="Map cells among the labelled cells of the model's reference: label, calibrated probability, doubts, "
    "neighbours, and the place on the reference's map. The first request with other genes than the reference's is "
    "refused (503, code `fitting`) until the reference is fitted to them.",
    request=MapRequest,
    response=MapResponse,
    run=map_cells,
    join=join_queries,
    divides=lambda model, question: is_uniform(question.cells),
    answer=answer_query,
    check=CARRIED.check,
    load=load_reference,
    admit=admit_query,
    read=read_mappings,
    obsm={"X_reference_umap": ("x", "y")},
    problems=("wrong_model", "fitting"),
)
