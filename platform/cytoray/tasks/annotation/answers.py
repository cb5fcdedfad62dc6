"""Answer `/v1/annotate`: the cell type of each cell, with probabilities and its embedding."""

# C cells, K labels, D width

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from cytoray.errors import RequestError
from cytoray.tasks.endpoint import Answers, Endpoint, Question, ServedModel
from cytoray.tasks.messages import CellsRequest, CellsResponse, Message
from cytoray.tasks.prediction import join_predictions, predict_together, read_embeddings, without_answer

if TYPE_CHECKING:
    from cytoray.model.predictor import Predictions
    from cytoray.tokens.label_tree import LabelTree

Float32 = npt.NDArray[np.float32]
Status = Literal["assigned", "ambiguous", "unassigned"]
UNSEEN = 0.01  # `unseen_p` below which a cell is unassigned


class AnnotateRequest(CellsRequest):
    """Cells over one list of genes, to be labelled."""

    include_embedding: bool = Field(True, description="Whether each answered cell carries its embedding.")


class AnnotatedCell(Message):
    """The answer for one cell of `/v1/annotate`; all but the id is null for an empty cell, see `warnings`."""

    id: str | None
    label: str | None
    probability: float | None = Field(description="Probability of `label`.")
    probabilities: dict[str, float] | None = Field(description="Probability of every label; they sum to 1.")
    status: Status | None = Field(
        None,
        description="`ambiguous`: several labels fit, see `fitting`. `unassigned`: the cell is so far from the "
        "training cells of its label (`unseen_p` below 0.01) that its type may not have been learned. Absent, "
        "as are the next two, if the model does not measure this.",
    )
    fitting: list[str] | None = Field(
        None,
        description="Labels that fit the cell: of cells like the training cells 90 % have the true one among them.",
    )
    common_ancestor: str | None = Field(
        None,
        description="Lowest name in the model's label tree that each of `fitting` is or lies below: the answer for an "
        "`ambiguous` cell. Null if they share none; absent if the model has no tree.",
    )
    unseen_p: float | None = Field(
        None, description="Share of cells of the label that are as far from its training cells as this one."
    )
    embedding: list[float] | None = Field(None, description="Absent if `include_embedding` is false.")


class AnnotateResponse(CellsResponse):
    """Labels with probabilities, in the order of the request."""

    cells: list[AnnotatedCell]


@dataclass(frozen=True)
class Annotations:
    """Labels, probabilities and embeddings of C cells, in the order in which the cells were given."""

    labels: tuple[str | None, ...]  # (C,), None for a cell without a gene that the model knows
    label_names: tuple[str, ...]  # (K,) of the columns of probabilities
    probabilities: Float32  # (C, K), NaN for such a cell
    embeddings: Float32  # (C, D), unit length, NaN for such a cell
    model_version: str
    num_matched_genes: int = 0  # genes sent that the model knows
    num_genes: int = 0  # genes sent
    status: tuple[str | None, ...] = ()  # (C,) "assigned", "ambiguous", "unassigned"; None if it is not measured
    fitting: tuple[tuple[str, ...], ...] = ()  # (C,) labels that fit the cell
    unseen_p: Float32 | None = None  # (C,) NaN if it is not measured
    common_ancestors: tuple[str | None, ...] = ()  # (C,) names of the label tree above all that fit, None without any


def check_labels(model: ServedModel) -> None:
    """Raise RequestError if the model has no labels."""
    if not model.bundle.classes:
        raise RequestError(
            f"Model {model.info.name} version {model.info.version} was not trained to label cells.",
            remedy="Use /v1/embed, or serve a model fine-tuned for annotation.",
            code="no_labels",
        )


def annotate(question: Question[AnnotateRequest], predictions: Predictions) -> dict[str, Any]:
    """Return the label of each cell, its probabilities and, if asked for, its embedding."""
    probabilities_CK = predictions.probabilities
    assert probabilities_CK is not None, "annotation needs a model with labels"
    columns: dict[str, list[Any]] = {
        "label": [predictions.labels[best] for best in probabilities_CK.argmax(axis=1)],
        "probability": probabilities_CK.max(axis=1).tolist(),
        "probabilities": [dict(zip(predictions.labels, row, strict=True)) for row in probabilities_CK.tolist()],
    }
    columns |= _doubts(predictions)
    if question.request.include_embedding:
        columns["embedding"] = predictions.embeddings.tolist()
    return {"cells": question.rows(columns, missing=without_answer(predictions))}


def _doubts(predictions: Predictions) -> dict[str, list[Any]]:
    """How sure each label is, by the names of the answer; nothing for a model that does not measure it."""
    doubts = predictions.doubts
    if doubts is None:
        return {}
    fitting = [[predictions.labels[at] for at in np.flatnonzero(row)] for row in doubts.in_set]
    return {
        "status": [status_of(len(labels), p) for labels, p in zip(fitting, doubts.unseen_p.tolist(), strict=True)],
        "fitting": fitting,
        "unseen_p": doubts.unseen_p.tolist(),
        **({} if predictions.tree is None else {"common_ancestor": common_ancestors(predictions.tree, fitting)}),
    }


def common_ancestors(tree: LabelTree, fitting: Sequence[Sequence[str]]) -> list[str | None]:
    """Return the lowest name of the tree above all labels that fit each of C cells; None for a cell without any."""
    found = {labels: tree.common_ancestor(labels) for labels in set(map(tuple, fitting))}
    return [found[tuple(labels)] for labels in fitting]


def status_of(num_fitting: int, unseen_p: float) -> Status:
    """Return the status of a cell's label."""
    if unseen_p < UNSEEN:
        return "unassigned"
    return "ambiguous" if num_fitting > 1 else "assigned"


def read_annotations(answers: Answers) -> Annotations:
    """Return the answers to C cells as arrays."""
    cells = answers.cells
    answered = next((cell["probabilities"] for cell in cells if cell["probabilities"] is not None), None)
    names = tuple(answers.service.get("labels", ()) if answered is None else answered)
    none = dict.fromkeys(names, np.nan)
    rows = [[(cell["probabilities"] or none)[name] for name in names] for cell in cells]
    return Annotations(
        labels=tuple(cell["label"] for cell in cells),
        label_names=names,
        probabilities=np.array(rows, np.float32).reshape(len(cells), len(names)),
        embeddings=read_embeddings(answers),
        model_version=answers.model_version,
        num_matched_genes=answers.num_matched_genes,
        num_genes=answers.num_genes,
        status=tuple(cell.get("status") for cell in cells),
        fitting=tuple(tuple(cell.get("fitting") or ()) for cell in cells),
        common_ancestors=tuple(cell.get("common_ancestor") for cell in cells),
        unseen_p=np.array([np.nan if cell.get("unseen_p") is None else cell["unseen_p"] for cell in cells], np.float32),
    )


ENDPOINT: Endpoint[AnnotateRequest, Predictions] = Endpoint(
    name="annotate",
    description="Annotate cells: the most probable cell type, the probability of each type, how sure it is, and the "
    "embedding.",
    request=AnnotateRequest,
    response=AnnotateResponse,
    run=predict_together,
    join=join_predictions,
    answer=annotate,
    check=check_labels,
    read=read_annotations,
    offline_members={"include_embedding": False},
    obsm={"X_scGPT": ("embedding",)},
    problems=("no_labels",),
)
