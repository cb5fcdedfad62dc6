"""Answer `/v1/proteins`: proteins predicted from the RNA of each cell, by a protein model that the bundle carries."""

# C cells, P proteins

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from cytoray.errors import RequestError
from cytoray.tasks.carried import Carried, genes_are_known
from cytoray.tasks.endpoint import Answers, Endpoint, Question, ServedModel
from cytoray.tasks.messages import CellsRequest, CellsResponse, Message, Name
from cytoray.tasks.prediction import is_uniform

if TYPE_CHECKING:
    import anndata

    from cytoray.tasks.multiomic.attached import BundleProteins
    from cytoray.tasks.multiomic.protein_predictor import ProteinPrediction

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
MOST_PROTEINS = 1_000  # antibody panels have some 300
LEVEL = 0.9  # of intervals, see protein_predictor
OBSM_KEY = "X_protein_predicted"


class ProteinsRequest(CellsRequest):
    """Cells over one list of genes, whose proteins are predicted."""

    proteins: list[Name] = Field(
        [], max_length=MOST_PROTEINS, description="Names of the proteins to predict; an empty list: all of the model."
    )


class PredictedProtein(Message):
    """A protein, and how far its predictions can be trusted."""

    name: str
    confidence: float = Field(description="Correlation with the measured protein on cells that were held out.")
    half_width: float = Field(description="Half the width of the interval that held 90 % of the measured values there.")


class ProteinCell(Message):
    """The answer for one cell of `/v1/proteins`."""

    id: str | None
    values: list[float] | None = Field(
        description="Predicted values, in the order of `header.proteins`. Null for an empty cell."
    )


class ProteinsHeader(Message):
    """The part of an answer that holds for all its cells."""

    proteins: list[PredictedProtein]
    units: Literal["clr", "log1p", "as fitted"] = Field(
        description="`clr`: log1p of counts less its mean over all proteins of the model. `log1p`: of the counts of "
        "a single protein. `as fitted`: the protein model was fitted on values that were normalised before."
    )
    level: float = Field(description="Share of measured values that lie within `half_width` of the predicted ones.")
    warnings: list[str]


class ProteinsResponse(CellsResponse):
    """Predicted proteins, in the order of the request."""

    header: ProteinsHeader
    cells: list[ProteinCell]


@dataclass(frozen=True, eq=False)
class ProteinAnswers:
    """Proteins predicted for C cells, in the order in which they were sent."""

    values: Float32  # (C, P), NaN for a cell without a gene that the model knows
    names: tuple[str, ...]  # (P,)
    confidence: Float32  # (P,) correlation with the measured protein on cells that were held out
    half_width: Float32  # (P,) of the interval that held 90 % of the measured values there
    units: str
    model_version: str
    warnings: tuple[str, ...] = ()

    def write_to(self, adata: anndata.AnnData) -> None:
        """Write the values to ``obsm["X_protein_predicted"]``, and the names of its columns to uns."""
        adata.obsm[OBSM_KEY] = self.values
        adata.uns[f"{OBSM_KEY}_names"] = np.array(self.names, dtype=object)


def load_proteins(model: ServedModel) -> BundleProteins | None:
    """Load the protein model of the model; None if it carries none."""
    if not model.carries("proteins"):
        return None
    from cytoray.tasks.multiomic.attached import attached_proteins

    return attached_proteins(model.bundle)


CARRIED: Carried[BundleProteins] = Carried("proteins", "does not predict proteins", load_proteins)


def admit_proteins(model: ServedModel, question: Question[ProteinsRequest]) -> None:
    """Refuse proteins that the model does not have."""
    known = CARRIED.of(model).predictor.proteins
    if unknown := [name for name in question.request.proteins if name not in known]:
        raise RequestError(
            f"The model does not predict {', '.join(unknown[:5])}.",
            remedy=f"It predicts {', '.join(known[:20])}{', …' if len(known) > 20 else ''}.",
            code="unknown_proteins",
            pointer="/proteins",
            unknown=unknown[:20],
        )


def predict_proteins(model: ServedModel, questions: Sequence[Question[ProteinsRequest]]) -> list[_Found]:
    """Predict the proteins of the cells of each request; requests differ by their genes."""
    loaded, found = CARRIED.of(model), []
    for question in questions:
        with genes_are_known():
            prediction = loaded.predict(question.cells, question.genes)
        found.append(_Found(prediction, bool(loaded.predictor.facts["are_counts"])))
    return found


def join_proteins(parts: Sequence[_Found], order: Int64) -> _Found:
    """Return the prediction for a request from those for its parts, which differ by their cells only."""
    values = np.concatenate([part.prediction.values for part in parts])[order]
    names = tuple(map(str, range(len(values))))
    return replace(parts[0], prediction=replace(parts[0].prediction, values=values, cells=names))


def answer_proteins(question: Question[ProteinsRequest], found: _Found) -> dict[str, Any]:
    """Return the proteins of each cell and the header."""
    prediction = found.prediction
    wanted = question.request.proteins or list(prediction.names)
    columns = [prediction.names.index(name) for name in wanted]
    trust = zip(wanted, prediction.confidence[columns].tolist(), prediction.half_width[columns].tolist(), strict=True)
    proteins = [
        {"name": name, "confidence": confidence, "half_width": half_width} for name, confidence, half_width in trust
    ]
    units = "as fitted" if not found.are_counts else "clr" if len(prediction.names) > 1 else "log1p"
    empty = np.flatnonzero(question.cells.num_genes_per_cell == 0).tolist()
    return {
        "header": {"proteins": proteins, "units": units, "level": LEVEL, "warnings": list(prediction.warnings)},
        "cells": question.rows({"values": prediction.values[:, columns].tolist()}, missing=empty),
    }


def read_proteins(answers: Answers) -> ProteinAnswers:
    """Return the answers to C cells as arrays."""
    header = answers.first.get("header", {"proteins": [], "units": "", "warnings": []})
    proteins = header["proteins"]
    none = [np.nan] * len(proteins)
    values = [none if cell["values"] is None else cell["values"] for cell in answers.cells]
    return ProteinAnswers(
        values=np.array(values, np.float32).reshape(len(values), len(proteins)),
        names=tuple(one["name"] for one in proteins),
        confidence=np.array([one["confidence"] for one in proteins], np.float32),
        half_width=np.array([one["half_width"] for one in proteins], np.float32),
        units=header["units"],
        model_version=answers.model_version,
        warnings=tuple(header["warnings"]),
    )


@dataclass(frozen=True, eq=False)
class _Found:
    """A prediction, and whether the protein model was fitted on counts."""

    prediction: ProteinPrediction
    are_counts: bool


ENDPOINT: Endpoint[ProteinsRequest, _Found] = Endpoint(
    name="proteins",
    description="Predict proteins from RNA, with the correlation of each with its measured values on cells not seen.",
    request=ProteinsRequest,
    response=ProteinsResponse,
    run=predict_proteins,
    join=join_proteins,
    divides=lambda model, question: is_uniform(question.cells),
    answer=answer_proteins,
    check=CARRIED.check,
    load=load_proteins,
    admit=admit_proteins,
    read=read_proteins,
    offline_members={"proteins": []},
    obsm={OBSM_KEY: ("values",)},
    problems=("wrong_model", "unknown_proteins"),
)
