"""Assess batch integration on anyone's cells: no correction, tuned Harmony, the transformer alone, and the product.

Nothing is chosen by cell types: if they are given, they only score what was chosen without them.
"""

# C cells, D dimensions

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cytoray import progress
from cytoray.evaluation.assessment import Assessment, MetricRow, row_of
from cytoray.evaluation.assessment_page import AssessedTask
from cytoray.evaluation.integration import (
    IntegrationOptions,
    IntegrationScores,
    LabelIntegration,
    neighbour_overlap,
)
from cytoray.tasks.integration.assess_config import AssessIntegrationConfig
from cytoray.tasks.integration.assessment_page import Pictured, integration_sections
from cytoray.tasks.integration.cells import BatchedCells, check_batches, sample_batches
from cytoray.tasks.integration.choosing import Choice, Features, candidate_rows, choose, num_recipes
from cytoray.tasks.integration.features import components_of_all_genes
from cytoray.tasks.integration.judging import NUM_DRAWS, Judged, labelled_rows, metric_rows
from cytoray.tasks.integration.reading import read_batched
from cytoray.tasks.integration.stress import stress_batch
from cytoray.tasks.integration.transformer import EmbeddedCells, embed_cells
from cytoray.tasks.pieces import Pieces
from cytoray.tokens.labels import is_placeholder

Float64 = npt.NDArray[np.float64]
MAX_CELLS = 20_000  # that are integrated and scored: metrics compare all pairs of cells
COMPARED_CELLS = 2_000  # that all candidates are scored on in the table of candidates
CANDIDATE_OPTIONS = IntegrationOptions(resolutions=(1.0,), kmeans_starts=3)
NO_LABELS = "cell-type labels were not given: only metrics of batches and clusters have a meaning"


@dataclass(frozen=True, eq=False)
class Prepared:
    """Cells to assess, and what was done to them."""

    cells: BatchedCells
    split: str
    warnings: tuple[str, ...]


def run_assessment(config: AssessIntegrationConfig, pieces: Pieces) -> AssessedTask:
    """Read the cells that ``config`` names and assess integration on them; each candidate is a piece."""
    prepared = prepare(read_batched(config.data, config.batch_key, label_key=config.label_key), config)
    total = num_recipes(has_model=config.model is not None) + NUM_DRAWS
    with progress.stage("assess", total=total, unit="steps") as advance:
        return assess_integration(prepared, config, pieces=pieces, advance=advance)


def prepare(cells: BatchedCells, config: AssessIntegrationConfig) -> Prepared:
    """Check the cells, sample large data and apply the stress; raises CorpusError for cells that cannot be used."""
    warnings = check_batches(cells, config.batch_key)
    if cells.num_left_out:
        warnings.append(
            f"{cells.num_left_out:,} cells without a batch in {config.batch_key!r} or without counts were left out"
        )
    rows = sample_batches(cells.batches, MAX_CELLS, seed=config.seed)
    if len(rows) < len(cells.batches):
        warnings.append(f"a random sample of {len(rows):,} of {len(cells.batches):,} cells was used")
        cells = cells.take(rows)
    cells = replace(cells, labels=_known_labels(cells))
    cells, change = stress_batch(cells, config.stress, seed=config.seed)
    check_batches(cells, config.batch_key)
    split = "all cells are integrated and scored; labels only score" + (f"; stress: {change}" if change else "")
    return Prepared(cells, split, tuple(warnings))


def assess_integration(
    prepared: Prepared,
    config: AssessIntegrationConfig,
    *,
    pieces: Pieces,
    advance: progress.Advance = progress.silent,
) -> AssessedTask:
    """Integrate prepared cells by all candidates and score them; ``advance`` counts recipes and draws."""
    started = time.monotonic()
    cells = prepared.cells
    transformer = None
    if config.model is not None:
        transformer, _ = pieces.compute("embeddings", lambda: embed_cells(cells, config), kinds=(EmbeddedCells,))
    features = Features(cells, embeddings=None if transformer is None else transformer.embeddings)
    choice = choose(features, seed=config.seed, pieces=pieces, advance=advance)
    embeddings = _columns(choice, transformer)
    scored, rows, label_warnings = _scored(cells)
    some = {column: points[rows] for column, points in embeddings.items()}
    if choice.product is choice.baseline:
        some["product"] = some["baseline"]
    scores = {column: _score(column, scored, points, pieces) for column, points in some.items()}
    metrics = metric_rows(scored, some, scores, seed=config.seed, pieces=pieces, advance=advance)
    overlap = neighbour_overlap(choice.product.corrected.uncorrected, choice.product.embedding, batches=cells.batches)
    metrics |= _label_free_rows(choice)
    if scores["product"].total is None:
        metrics = {"cluster_score": metrics.pop("cluster_score"), **metrics}
    warnings = (*prepared.warnings, *label_warnings, *scores["product"].warnings)
    compared, _ = pieces.compute("candidates", lambda: _compare_candidates(choice, scored, rows))
    assessment = Assessment(
        task="integration",
        data={"uri": cells.uri, "digest": cells.digest, "num_cells": len(cells.batches)},
        split=prepared.split,
        metrics=metrics,
        chosen={choice.product.recipe.name: 1},
        why=(choice.why,),
        seeds=(config.seed,),
        seconds=time.monotonic() - started,
        model=config.model,
        warnings=(*warnings, *([overlap.warning] if overlap.warning else [])),
        details=_details(cells, choice, compared, scores) | {"neighbour_overlap": overlap.to_dict()},
    )
    pictured = Pictured(cells, choice.floor.embedding, choice.product.embedding, seed=config.seed)
    return AssessedTask(assessment, integration_sections(assessment, pictured))


def _columns(choice: Choice, transformer: EmbeddedCells | None) -> dict[str, Float64]:
    """Return the embedding (C, D) of each column of the report."""
    found = {
        "floor": choice.floor.embedding,
        "baseline": choice.baseline.embedding,
        "product": choice.product.embedding,
    }
    return found if transformer is None else found | {"model": transformer.embeddings.astype(np.float64)}


def _scored(cells: BatchedCells) -> tuple[Judged, npt.NDArray[np.int64], list[str]]:
    """Return the cells that are scored, their rows, and warnings; only those with a label, if there are labels."""
    before = components_of_all_genes(cells.expression)
    every = np.arange(len(cells.batches), dtype=np.int64)
    if cells.labels is None:
        return Judged(cells.batches, None, before), every, [NO_LABELS]
    rows = labelled_rows(cells.labels)
    warnings = []
    if len(rows) < len(every):
        warnings.append(f"{len(every) - len(rows):,} cells without a cell type were integrated but not scored")
    batches = tuple(cells.batches[row] for row in rows)
    if len(rows) < 2 or len(set(batches)) < 2:
        return Judged(cells.batches, None, before), every, ["labels are those of one batch at most: " + NO_LABELS]
    labels = tuple(str(cells.labels[row]) for row in rows)
    if len(set(labels)) == 1:
        warnings.append(f"all scored cells have the label {labels[0]!r}: metrics of cell types have no meaning")
    return Judged(batches, labels, before[rows]), rows, warnings


def _known_labels(cells: BatchedCells) -> tuple[str | None, ...] | None:
    """Return the labels, None for those that say that it is missing, such as ``unassigned``."""
    if cells.labels is None:
        return None
    return tuple(None if label is None or is_placeholder(label) else label for label in cells.labels)


def _label_free_rows(choice: Choice) -> dict[str, MetricRow]:
    """Return the rows that need no labels; they were used to choose, so that they have no verdict."""
    columns = {"floor": choice.floor, "baseline": choice.baseline, "product": choice.product}
    scores = {name: each.score for name, each in columns.items() if each.score is not None}
    overlaps = {name: each.overlap.mean for name, each in columns.items() if each.overlap.mean is not None}
    return {"neighbour_overlap": row_of(overlaps), "cluster_score": row_of(scores)}


def _score(column: str, cells: Judged, points: Float64, pieces: Pieces) -> IntegrationScores:
    """Return the scores of a column of the report, which are a piece."""
    kinds = (IntegrationScores, LabelIntegration)
    return pieces.compute(f"scores of {column}", lambda: cells.score(points), kinds=kinds)[0]


def _compare_candidates(choice: Choice, scored: Judged, rows: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
    """Return the table of candidates with their scores by labels, which are computed after the choice."""
    table = candidate_rows(choice)
    some = sample_batches(scored.batches, COMPARED_CELLS, seed=0)
    compared, rows = scored.take(some), rows[some]
    for row, each in zip(table, (choice.floor, *choice.candidates), strict=True):
        found = compared.score(each.embedding[rows], CANDIDATE_OPTIONS)
        row |= {"total": found.total, "bio": found.bio, "batch": found.batch}
    return table


def _details(
    cells: BatchedCells,
    choice: Choice,
    candidates: list[dict[str, Any]],
    scores: Mapping[str, IntegrationScores],
) -> dict[str, Any]:
    """Return the tables of candidates, batches and cell types."""
    return {
        "candidates": candidates,
        "recipe": choice.product.recipe.as_dict(),
        "batches": dict(sorted(Counter(cells.batches).items())),
        "per_label": scores["product"].to_dict()["per_label"],
        "reasons": scores["product"].reasons,
    }
