"""Choose how to integrate without cell types: clusters that batches formed by themselves stand in for these.

Each batch is clustered before any correction, and clusters of different batches that are mutual nearest neighbours are
matched. The total score of the metrics with matched clusters as labels, averaged over coarse and fine clusters, ranks
the candidates. The simple method, tuned by the same score, is one of them, and stays unless another is better by more
than ``MARGIN``.
"""

# C cells, D features

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cytoray import progress
from cytoray.evaluation.inputs import code_names
from cytoray.evaluation.integration import (
    BatchClusters,
    IntegrationOptions,
    NeighbourOverlap,
    cluster_batches,
    neighbour_overlap,
    score_integration,
)
from cytoray.evaluation.integration.overlap import LEAST_OVERLAP
from cytoray.tasks.integration.cells import BatchedCells, sample_batches
from cytoray.tasks.integration.features import (
    GeneBlock,
    components_of_all_genes,
    fit_block,
    variable_in_batches,
)
from cytoray.tasks.integration.recipe import (
    Corrected,
    Recipe,
    View,
    correct,
    floor,
    harmonise_features,
    product_recipes,
    simple_recipes,
)
from cytoray.tasks.pieces import Pieces

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
SCORED_CELLS = 2_000
RESOLUTIONS = (0.3, 0.6, 1.0)  # of the clusters within batches
MARGIN = 0.01
_OPTIONS = IntegrationOptions(resolutions=(1.0,), kmeans_starts=3)  # Leiden is no part of the total


@dataclass(frozen=True, eq=False)
class Candidate:
    """Cells integrated by a recipe, and what is known of the result without cell types."""

    recipe: Recipe
    corrected: Corrected
    score: float | None  # with matched clusters as labels; None if no clusters match
    overlap: NeighbourOverlap

    @property
    def embedding(self) -> Float64:
        """The integrated cells."""
        return self.corrected.embedding


@dataclass(frozen=True, eq=False)
class Choice:
    """The candidates, the tuned simple method among them, and the one that was chosen."""

    floor: Candidate
    candidates: tuple[Candidate, ...]
    baseline: Candidate
    product: Candidate
    why: str


CANDIDATE_KINDS = (Candidate, Recipe, Corrected, NeighbourOverlap)


class Features:
    """The features of cells by view, each computed once."""

    def __init__(self, cells: BatchedCells, *, embeddings: npt.NDArray[np.floating] | None = None) -> None:
        """Prepare features; ``embeddings`` (C, W) of a transformer are those of the view "model"."""
        self.cells = cells
        self.codes, self.batch_names = code_names(cells.batches, "batch label")
        self._embeddings = None if embeddings is None else sparse.csr_matrix(embeddings)
        self._genes: Int64 | None = None
        self._blocks: dict[tuple[View, int], GeneBlock] = {}

    @property
    def has_model(self) -> bool:
        """Whether there are embeddings of a transformer."""
        return self._embeddings is not None

    def blocks(self, recipe: Recipe) -> dict[View, GeneBlock]:
        """Return the fitted components of each view of a recipe."""
        return {view: self._block(view, recipe.num_components) for view in recipe.views}

    def of(self, recipe: Recipe) -> Float64:
        """Return the features (C, D) of a recipe, each view with a mean square norm of 1."""
        parts = [block.transform(self._values(view)) for view, block in self.blocks(recipe).items()]
        return np.hstack(parts).astype(np.float64)

    def _block(self, view: View, num: int) -> GeneBlock:
        if (view, num) not in self._blocks:
            values = self._values(view)
            genes = np.arange(values.shape[1]) if view == "model" else self._variable_genes()
            self._blocks[view, num] = fit_block(values, genes, num_components=num, scaled=view == "scaled")
        return self._blocks[view, num]

    def _values(self, view: View) -> sparse.csr_matrix:
        if view != "model":
            return self.cells.expression
        assert self._embeddings is not None, "no embeddings of a transformer"
        return self._embeddings

    def _variable_genes(self) -> Int64:
        if self._genes is None:
            values = self.cells.values if self.cells.are_counts else self.cells.expression
            self._genes = variable_in_batches(values, self.cells.batches)
        return self._genes


def choose(
    features: Features,
    *,
    seed: int = 0,
    pieces: Pieces | None = None,
    advance: progress.Advance = progress.silent,
) -> Choice:
    """Integrate the cells by every recipe and choose one without cell types; ``advance`` counts recipes.

    Candidates that are among the ``pieces`` are not computed again.
    """
    judge, pieces = _Judge(features, seed), pieces or Pieces()

    def candidate(recipe: Recipe) -> Candidate:
        """Integrate by a recipe, or return the piece."""
        work = functools.partial(judge.candidate, recipe)
        found, reused = pieces.compute(f"recipe {recipe.name}", work, kinds=CANDIDATE_KINDS)
        judge.remember(found)
        advance(1, recipe.name, already=reused)
        return found

    none = candidate(floor())
    simple = [candidate(recipe) for recipe in simple_recipes()]
    others = [candidate(recipe) for recipe in product_recipes(has_model=features.has_model)]
    baseline = _best(simple)
    product, why = _gate(baseline, others)
    return Choice(none, (*simple, *others), baseline, product, why)


def num_recipes(*, has_model: bool) -> int:
    """Return how many recipes are tried, for a display of progress."""
    return 1 + len(simple_recipes()) + len(product_recipes(has_model=has_model))


def candidate_rows(choice: Choice) -> list[dict[str, Any]]:
    """Return what is known of each candidate, as plain JSON values."""
    return [
        {
            "name": each.recipe.name,
            "cluster_score": each.score,
            "neighbour_overlap": each.overlap.mean,
            "chosen": each is choice.product,
            "is_baseline": each is choice.baseline,
        }
        for each in (choice.floor, *choice.candidates)
    ]


class _Judge:
    """Integrates by recipes and scores the results, all on the same sample of cells."""

    def __init__(self, features: Features, seed: int) -> None:
        self._features = features
        batches = features.cells.batches
        self._rows = sample_batches(batches, SCORED_CELLS, seed=seed)
        self._batches = [batches[row] for row in self._rows]
        uncorrected = features.of(Recipe("expression"))[self._rows]  # raises CorpusError if nothing varies
        self._before = components_of_all_genes(features.cells.expression[self._rows])
        self._clusters = [
            cluster_batches(uncorrected, batches=self._batches, resolution=resolution) for resolution in RESOLUTIONS
        ]
        self._harmonised: dict[tuple[Any, ...], Float64] = {}

    def candidate(self, recipe: Recipe) -> Candidate:
        """Integrate by a recipe and score the result."""
        features = self._features.of(recipe)
        found = correct(features, self._features.codes, recipe, harmonised=self._harmony(features, recipe))
        return Candidate(recipe, found, self._score(found.embedding), self._overlap(found))

    def remember(self, candidate: Candidate) -> None:
        """Keep the result of Harmony of a candidate for the recipes that begin with the same."""
        recipe = candidate.recipe
        if recipe.theta is not None and not recipe.alignments:
            self._harmonised[_harmony_key(recipe)] = candidate.corrected.corrected

    def _harmony(self, features: Float64, recipe: Recipe) -> Float64 | None:
        if recipe.theta is None:
            return None
        key = _harmony_key(recipe)
        if key not in self._harmonised:
            self._harmonised[key] = harmonise_features(features, self._features.codes, recipe)
        return self._harmonised[key]

    def _score(self, embedding: Float64) -> float | None:
        return cluster_score(embedding[self._rows], batches=self._batches, clusters=self._clusters, before=self._before)

    def _overlap(self, found: Corrected) -> NeighbourOverlap:
        before, after = found.uncorrected[self._rows], found.embedding[self._rows]
        return neighbour_overlap(before, after, batches=self._batches)


def _harmony_key(recipe: Recipe) -> tuple[Any, ...]:
    return recipe.views, recipe.num_components, recipe.theta


def cluster_score(
    embedding: Float64, *, batches: Sequence[str], clusters: Sequence[BatchClusters], before: Float64
) -> float | None:
    """Return the mean total score of an embedding (C, D) with matched clusters as labels; None without a meaning."""
    totals = []
    for each in clusters:
        labels = [str(cluster) for cluster in each.matched]
        scores = score_integration(embedding, batches=batches, labels=labels, before=before, options=_OPTIONS)
        if scores.total is not None:
            totals.append(scores.total)
    return float(np.mean(totals)) if totals else None


def _best(candidates: Sequence[Candidate]) -> Candidate:
    return max(candidates, key=lambda each: -1.0 if each.score is None else each.score)  # of equals, the first


def _is_overcorrected(candidate: Candidate) -> bool:
    mean = candidate.overlap.mean
    return candidate.overlap.warning is not None or (mean is not None and mean < LEAST_OVERLAP)


def _gate(baseline: Candidate, others: Sequence[Candidate]) -> tuple[Candidate, str]:
    """Return the best candidate if it is better than the baseline by the margin, and the reason."""
    allowed = [each for each in others if not _is_overcorrected(each)]
    barred = f" {len(others) - len(allowed)} over-corrected." if len(allowed) < len(others) else ""
    best = _best(allowed) if allowed else baseline
    if best.score is None or baseline.score is None or best is baseline:
        return baseline, f"{baseline.recipe.name}: no other candidate can be compared without labels.{barred}"
    difference = best.score - baseline.score
    scores = f"{best.recipe.name} {best.score:.3f}, {baseline.recipe.name} {baseline.score:.3f}"
    if difference > MARGIN:
        return best, f"{best.recipe.name}: best score with matched clusters as labels ({scores}).{barred}"
    return baseline, f"{baseline.recipe.name}: no candidate is better by more than {MARGIN:g} ({scores}).{barred}"
