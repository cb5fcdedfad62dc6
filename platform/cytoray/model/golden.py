"""Golden cells: answers that a model gave when it was registered, so that whoever loads it can see that it still does.

tag = golden_cells(bundle).to_text()
check_golden_cells(bundle, tag)  # ModelError if the answers differ
"""

# C cells, D width, K labels

from __future__ import annotations

import base64
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cytoray.errors import ModelError
from cytoray.model.bundle import ModelBundle
from cytoray.model.predictor import CellPredictor, Predictions
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.vocabulary import SPECIAL_TOKENS, GeneVocabulary

NUM_GENES = (8, 16, 24)  # of the cells, which have different lengths
TOLERANCE = 1e-3  # far above float noise between devices and thread counts, far below the difference to another model
_REMEDY = "Use another version, or export and register the model again."

Float32 = npt.NDArray[np.float32]


class GoldenCell(BaseModel):
    """One cell by the names of its genes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    genes: list[str] = Field(min_length=1)
    values: list[float] = Field(min_length=1)


class GoldenCells(BaseModel):
    """Some artificial cells and a model's answers to them; arrays are float32 in base64."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1
    cells: list[GoldenCell] = Field(min_length=1)
    embeddings: str  # (C, D)
    probabilities: str | None  # (C, K), of the model's classifier
    labels: list[str]
    tolerance: float = Field(TOLERANCE, gt=0)  # largest difference of any number

    def to_text(self) -> str:
        """Return the golden cells as JSON."""
        return self.model_dump_json()

    @classmethod
    def from_text(cls, text: str) -> GoldenCells:
        """Read golden cells; raises ModelError for another text."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            problem = "The golden cells that are recorded with the model cannot be read."
            raise ModelError(problem, remedy=_REMEDY, refused="golden") from error


def golden_cells(bundle: ModelBundle) -> GoldenCells:
    """Compute golden cells of a model, whose genes follow from its vocabulary; ModelError for answers that are NaN."""
    cells = _choose_cells(bundle.vocabulary)
    found = _predict(bundle, cells)
    probabilities = None if found.probabilities is None else _encode(found.probabilities)
    return GoldenCells(
        cells=cells, embeddings=_encode(found.embeddings), probabilities=probabilities, labels=list(found.labels)
    )


def check_golden_cells(bundle: ModelBundle, text: str) -> None:
    """Raise ModelError if a model does not answer golden cells as it did when they were recorded."""
    golden = GoldenCells.from_text(text)
    found = _predict(bundle, golden.cells)
    pairs = [("embeddings", found.embeddings, golden.embeddings)]
    if golden.probabilities is not None and found.probabilities is not None:
        pairs.append(("probabilities", found.probabilities, golden.probabilities))
    if list(found.labels) != golden.labels:
        raise _mismatch("its labels are others")
    for what, seen, recorded in pairs:
        expected = np.frombuffer(base64.b64decode(recorded), np.float32)
        if expected.size != seen.size:
            raise _mismatch(f"{what} have another shape")
        difference = float(np.abs(seen.ravel() - expected).max())
        if not difference <= golden.tolerance:
            raise _mismatch(f"{what} differ by {difference:.3g}, at most {golden.tolerance:g} is expected")


def _choose_cells(vocabulary: GeneVocabulary) -> list[GoldenCell]:
    """Choose genes from the whole vocabulary."""
    tokens = [token for token in vocabulary.tokens if token not in SPECIAL_TOKENS]
    spread = [tokens[place] for place in np.unique(np.linspace(0, len(tokens) - 1, 4 * max(NUM_GENES)).astype(int))]
    ids = vocabulary.map_genes(spread).ids
    _, first = np.unique(ids, return_index=True)
    genes = [spread[place] for place in sorted(first) if ids[place] >= 0]
    if not genes:
        raise ModelError("The vocabulary has no genes.", remedy=_REMEDY)
    cells = []
    for number, count in enumerate(NUM_GENES):
        chosen = genes[number :: max(1, len(genes) // count)][:count] or genes[:1]
        cells.append(GoldenCell(genes=chosen, values=[float(1 + place % 7) for place in range(len(chosen))]))
    return cells


def _predict(bundle: ModelBundle, cells: list[GoldenCell]) -> Predictions:
    """Predict for golden cells; raises ModelError for genes that are unknown and answers that are not finite."""
    found = CellPredictor(bundle).predict(SparseCells.concatenate([_as_cells(bundle, cell) for cell in cells]))
    numbers = [found.embeddings, *([] if found.probabilities is None else [found.probabilities])]
    if not all(np.isfinite(array).all() for array in numbers):
        raise ModelError("The model returned answers that are not finite.", remedy=_REMEDY, refused="not_finite")
    return found


def _as_cells(bundle: ModelBundle, cell: GoldenCell) -> SparseCells:
    mapping = bundle.vocabulary.map_genes(cell.genes)
    if (mapping.ids < 0).any() or len(cell.values) != len(cell.genes):
        raise _mismatch("its vocabulary lacks some of their genes")
    columns = np.arange(len(cell.genes))
    return mapping.apply(np.array(cell.values), columns, np.array([0, len(columns)]), np.zeros(1, np.uint64))


def _mismatch(reason: str) -> ModelError:
    return ModelError(
        f"The model does not answer its golden cells as it did when it was registered: {reason}.",
        remedy=_REMEDY,
        refused="golden",
    )


def _encode(array: Float32) -> str:
    return base64.b64encode(np.ascontiguousarray(array, np.float32).tobytes()).decode()
