"""Forward passes in bfloat16, for models whose answers stay close to those in float32."""

# C cells, D width, K labels

from __future__ import annotations

import logging

import numpy as np
import torch

from cytoray.errors import ModelError
from cytoray.model.predictor import Predictions
from cytoray.serving.config import PrecisionCheck
from cytoray.tasks.endpoint import Predictor
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.vocabulary import SPECIAL_TOKENS, GeneVocabulary

logger = logging.getLogger(__name__)
NUM_CELLS, MOST_GENES = 32, 256  # of the artificial cells that are compared


class HalfPredictor:
    """A predictor whose matrix products are in bfloat16; sums, norms and answers are in float32."""

    def __init__(self, exact: Predictor, *, device: torch.device) -> None:
        self._exact, self._device = exact, device

    def predict(self, cells: SparseCells) -> Predictions:
        """Predict for C cells."""
        with torch.autocast(self._device.type, dtype=torch.bfloat16):
            return self._exact.predict(cells)


def in_bfloat16(
    exact: Predictor, *, device: torch.device, vocabulary: GeneVocabulary, bounds: PrecisionCheck, name: str
) -> HalfPredictor:
    """Return a predictor in bfloat16; raises ModelError with the measured figure if its answers differ too much."""
    half = HalfPredictor(exact, device=device)
    cells = artificial_cells(vocabulary)
    cosine, agreement = compare(exact.predict(cells), half.predict(cells))
    logger.info("%s in bfloat16: cosine %.5f, label agreement %.3f", name, cosine, agreement)
    measured = {"cosine": cosine, "label_agreement": agreement}
    if not cosine >= bounds.min_cosine or not agreement >= bounds.min_label_agreement:  # also for NaN
        raise ModelError(
            f"{name} in bfloat16 differs from float32: minimum cosine of embeddings {cosine:.6f} (bound "
            f"{bounds.min_cosine:g}), share of equal labels {agreement:.3f} (bound {bounds.min_label_agreement:g}).",
            remedy="Serve it with precision: float32, or accept the difference in precision_check.",
            **measured,
        )
    return half


def compare(exact: Predictions, other: Predictions) -> tuple[float, float]:
    """Return the minimum cosine of the embeddings (C, D) of a cell, and the share of cells with the same label."""
    cosine = float((exact.embeddings * other.embeddings).sum(axis=1).min())  # both have length 1
    if exact.probabilities is None or other.probabilities is None:
        return cosine, 1.0
    same = exact.probabilities.argmax(axis=1) == other.probabilities.argmax(axis=1)
    return cosine, float(same.mean())


def artificial_cells(vocabulary: GeneVocabulary) -> SparseCells:
    """Return cells with random counts of random genes, the same for every model with these genes."""
    genes = [token for token in vocabulary.tokens if token not in SPECIAL_TOKENS]
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, min(len(genes), MOST_GENES), NUM_CELLS, endpoint=True)
    columns = np.concatenate([rng.choice(len(genes), size, replace=False) for size in sizes])
    counts = 1.0 + rng.poisson(2.0, len(columns))
    indptr = np.concatenate([[0], np.cumsum(sizes)])
    used = sorted(set(columns.tolist()))
    mapping = vocabulary.map_genes([genes[column] for column in used])
    places = np.searchsorted(used, columns)
    return mapping.apply(counts, places, indptr, np.arange(NUM_CELLS, dtype=np.uint64))
