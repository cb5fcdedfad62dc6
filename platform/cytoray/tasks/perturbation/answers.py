"""Answer `/v1/perturb`: effects of perturbations, by a perturbation model that the bundle carries; not about cells."""

# Q perturbations, G genes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from cytoray.errors import RequestError
from cytoray.tasks.endpoint import Answers, Endpoint, Question, ServedModel
from cytoray.tasks.messages import Message, Name, Request, Response

if TYPE_CHECKING:
    from cytoray.tasks.perturbation.predicting import PerturbationPrediction, PerturbationPredictor

Float32 = npt.NDArray[np.float32]
MOST_PERTURBATIONS, MOST_POINTS, MOST_TOP = 64, 16, 1000
TOKENS_PER_PERTURBATION = 256  # what a prediction takes, in tokens of a forward pass


class PerturbRequest(Request):
    """Perturbations by the genes that they hit."""

    perturbations: list[Name] = Field(
        min_length=1,
        max_length=MOST_PERTURBATIONS,
        description="Genes (symbols or Ensembl ids), combinations such as STAT1+IRF1, or conditions of the screen.",
    )
    at: list[dict[str, float]] = Field(
        [],
        max_length=MOST_POINTS,
        description="Values of all covariates of the screen, such as dose and time; all perturbations are predicted at "
        "each of these points. Empty: effects are means over the cells of all values.",
    )
    num_top: int = Field(20, ge=1, le=MOST_TOP, description="Genes that are listed for each, those that change most.")
    include_all: bool = Field(False, description="Whether each perturbation carries the change of every gene.")


class ChangedGene(Message):
    """The predicted change of a gene."""

    gene: str
    delta: float = Field(description="Change of log1p of counts per 10,000, against control cells.")
    low: float = Field(description="Lower limit of the interval that held 90 % of effects that were left out.")
    high: float


class Neighbour(Message):
    """A known perturbation that a prediction rests on."""

    target: str
    similarity: float
    weight: float = Field(description="Weight of its effect in the prediction, beyond the mean of all known ones.")
    shared: list[str] = Field(description="Gene sets that both genes are in, the most specific ones.")


class Part(Message):
    """A gene or condition of a perturbation, and where its effect comes from."""

    target: str
    known: bool = Field(description="Whether the screen has it: its effect was then measured.")
    neighbours: list[Neighbour]


class PerturbedEffect(Message):
    """The predicted effect of one perturbation."""

    perturbation: str
    covariates: dict[str, float] = Field(description="Empty if no point was given.")
    confidence: float = Field(
        description="0: no better than the mean of the known effects. Near 1: like a known perturbation."
    )
    top_genes: list[ChangedGene]
    delta: list[float] | None = Field(description="Change of each of `header.genes`; null unless `include_all`.")
    parts: list[Part]
    method: str


class PerturbHeader(Message):
    """The part of an answer that holds for all perturbations."""

    genes: list[str] = Field(description="Empty unless `include_all`.")
    level: float
    warnings: list[str]


class PerturbResponse(Response):
    """Predicted effects, in the order of the request."""

    header: PerturbHeader
    perturbations: list[PerturbedEffect]


@dataclass(frozen=True, eq=False)
class PerturbAnswers:
    """Predicted effects of Q perturbations."""

    names: tuple[str, ...]  # (Q,)
    confidence: Float32  # (Q,)
    top_genes: tuple[tuple[dict[str, Any], ...], ...]  # (Q,) gene, delta, low, high
    reasons: tuple[dict[str, Any], ...]  # (Q,) parts and method
    genes: tuple[str, ...]  # (G,); empty unless all were asked for
    deltas: Float32  # (Q, G)
    warnings: tuple[str, ...] = ()
    covariates: tuple[dict[str, float], ...] = ()  # (Q,) empty dictionaries if no point was given


def load_perturbations(model: ServedModel) -> PerturbationPredictor | None:
    """Load the perturbation model of the model; None if it carries none."""
    if not model.carries("perturbations"):
        return None
    from cytoray.tasks.perturbation.attached import attached_perturbations

    return attached_perturbations(model.bundle)


def check_perturbations(model: ServedModel) -> None:
    """Raise RequestError if the model carries no perturbation model."""
    if model.part(load_perturbations) is None:
        raise RequestError(
            f"Model {model.info.name} version {model.info.version} does not predict perturbations.",
            remedy="Attach a perturbation model with `cytoray models attach MODEL --perturbations FOLDER`, and serve "
            "that.",
            code="wrong_model",
        )


def admit_perturbations(model: ServedModel, question: Question[PerturbRequest]) -> None:
    """Refuse names that are neither a gene nor a condition of the screen, and points with other covariates."""
    try:
        _loaded(model).parse(question.request.perturbations, question.request.at)
    except RequestError as error:
        raise RequestError(
            error.problem, remedy=error.remedy, **(error.details | {"pointer": "/perturbations"})
        ) from error


def predict_perturbations(
    model: ServedModel, questions: Sequence[Question[PerturbRequest]]
) -> list[PerturbationPrediction]:
    """Predict the perturbations of each request."""
    return [_loaded(model).predict_names(each.request.perturbations, each.request.at) for each in questions]


def answer_perturbations(question: Question[PerturbRequest], found: PerturbationPrediction) -> dict[str, Any]:
    """Return the effects and the header."""
    from cytoray.tasks.perturbation.fitting import LEVEL

    request = question.request
    effects = [
        {
            "perturbation": name,
            "covariates": found.covariates[row] if found.covariates else {},
            "confidence": float(found.confidence[row]),
            "top_genes": found.top(row, num=request.num_top),
            "delta": found.deltas[row].tolist() if request.include_all else None,
            **found.reasons[row],
        }
        for row, name in enumerate(found.names)
    ]
    genes = list(found.genes) if request.include_all else []
    return {
        "header": {"genes": genes, "level": LEVEL, "warnings": list(found.warnings)},
        "perturbations": effects,
    }


def read_perturbations(answers: Answers) -> PerturbAnswers:
    """Return the answer as arrays."""
    header, found = answers.first["header"], answers.first["perturbations"]
    genes = tuple(header["genes"])
    deltas = [one["delta"] or [] for one in found]
    return PerturbAnswers(
        names=tuple(one["perturbation"] for one in found),
        confidence=np.array([one["confidence"] for one in found], np.float32),
        top_genes=tuple(tuple(one["top_genes"]) for one in found),
        reasons=tuple({"parts": one["parts"], "method": one["method"]} for one in found),
        genes=genes,
        deltas=np.array(deltas, np.float32).reshape(len(found), len(genes)),
        warnings=tuple(header["warnings"]),
        covariates=tuple(one["covariates"] for one in found),
    )


def cost(question: Question[PerturbRequest]) -> int:
    """Return about how many tokens take as long."""
    return TOKENS_PER_PERTURBATION * len(question.request.perturbations) * max(len(question.request.at), 1)


def _loaded(model: ServedModel) -> PerturbationPredictor:
    loaded = model.part(load_perturbations)
    assert loaded is not None, "checked before"
    return loaded


ENDPOINT: Endpoint[PerturbRequest, PerturbationPrediction] = Endpoint(
    name="perturb",
    description="Predict what perturbations do to the expression of each gene, with confidence and the reason.",
    request=PerturbRequest,
    response=PerturbResponse,
    run=predict_perturbations,
    answer=answer_perturbations,
    check=check_perturbations,
    load=load_perturbations,
    admit=admit_perturbations,
    cost=cost,
    read=read_perturbations,
    problems=("wrong_model", "unknown_perturbations"),
    example={"perturbations": ["JAK2", "STAT1+IRF1"]},
)
