"""Measure how much a model's answers change with the seed, without a few genes, and with fewer counts."""

# C cells

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np

from cytoray.model.bundle import ModelBundle
from cytoray.model.predictor import Annotate, CellPredictor, Predictions
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.keys import combine, uniform

DROPPED_GENES = 0.01
KEPT_COUNTS = 0.9
_GENES, _COUNTS = 1, 2  # purposes of random numbers


@dataclass(frozen=True)
class Stability:
    """Agreement of two answers to the same cells."""

    labels_kept: float | None  # share of cells with the same label; None if the model has no labels
    median_cosine: float  # of a cell's two embeddings
    num_cells: int

    def as_dict(self) -> dict[str, float | int | None]:
        """The figures by name."""
        return asdict(self)


def measure_stability(
    bundle: ModelBundle, cells: SparseCells, *, seed: int = 0, annotate: Annotate | None = None
) -> dict[str, Stability]:
    """Predict C cells again with another seed, without 1 % of the genes, and with counts thinned to 90 %.

    Cells that a change leaves without genes are not compared. Thinning is skipped for values that are not counts.
    ``annotate``: as for CellPredictor.
    """
    first = CellPredictor(bundle, empty_cells="nan", annotate=annotate).predict(cells)
    other_seed = bundle.tokenizer_config.model_copy(update={"seed": bundle.tokenizer_config.seed + 1})
    answers = {
        "another seed": (replace(bundle, tokenizer_config=other_seed), cells),
        "1 % of genes dropped": (bundle, drop_genes(cells, share=DROPPED_GENES, seed=seed)),
    }
    if np.array_equal(cells.values, np.rint(cells.values)):
        answers["counts thinned to 90 %"] = bundle, thin_counts(cells, share=KEPT_COUNTS, seed=seed)
    return {
        name: compare(first, CellPredictor(asked, empty_cells="nan", annotate=annotate).predict(changed))
        for name, (asked, changed) in answers.items()
    }


def compare(first: Predictions, second: Predictions) -> Stability:
    """Compare two answers to C cells, without those that are NaN."""
    cosines = np.einsum("cd,cd->c", first.embeddings, second.embeddings)
    known = np.isfinite(cosines)
    kept = None
    if first.probabilities is not None and second.probabilities is not None and known.any():
        labels = (answer[known].argmax(axis=1) for answer in (first.probabilities, second.probabilities))
        kept = float(np.equal(*labels).mean())
    return Stability(kept, float(np.median(cosines[known])) if known.any() else float("nan"), int(known.sum()))


def drop_genes(cells: SparseCells, *, share: float, seed: int) -> SparseCells:
    """Drop a random ``share`` of all genes, the same genes in each cell."""
    kept = uniform(combine(seed, _GENES, cells.gene_ids)) >= share
    return _with_values(cells, np.where(kept, cells.values, 0))


def thin_counts(cells: SparseCells, *, share: float, seed: int) -> SparseCells:
    """Keep a random ``share`` of the counted molecules of each cell."""
    drawn = np.random.default_rng([seed, _COUNTS]).binomial(cells.values.astype(np.int64), share)
    return _with_values(cells, drawn)


def _with_values(cells: SparseCells, values: np.ndarray) -> SparseCells:
    """Return the cells with other values, without zeros."""
    kept = values > 0
    indptr = np.concatenate([[0], np.cumsum(kept)])[cells.indptr].astype(np.int64)
    return SparseCells(cells.gene_ids[kept], values[kept].astype(np.float32), indptr, cells.cell_ids)
