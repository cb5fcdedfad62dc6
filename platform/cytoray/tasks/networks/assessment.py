"""Assess gene networks on anyone's cells: beside correlation and trees alone, by known edges, halves and knock-outs.

Weights of evidence are learned, or not, from the known edges of other factors than those that are scored.
"""

# C cells, T transcription factors, G targets

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from cytoray.errors import CorpusError
from cytoray.evaluation.assessment import Assessment, MetricRow
from cytoray.evaluation.assessment_page import AssessedTask, Section, details_rows
from cytoray.evaluation.networks.cells import equal_halves
from cytoray.evaluation.networks.ranking import aggregate, equal_weights
from cytoray.evaluation.networks.scores import FEWEST_EDGES, overlap
from cytoray.tasks.networks.assess_config import AssessNetworksConfig
from cytoray.tasks.networks.building import (
    Prepared,
    ask_model,
    compute_evidence,
    open_evidence,
    prepare,
    static_evidence,
    work_options,
)
from cytoray.tasks.networks.candidates import CORRELATION
from cytoray.tasks.networks.config import InferNetworksConfig
from cytoray.tasks.networks.evidence import Evidence
from cytoray.tasks.networks.inference import prepare_work
from cytoray.tasks.networks.judging import FEWEST_FACTORS, Product, judge_known, judge_screen, leave_factors_out
from cytoray.tasks.networks.screen import read_screen, screen_genes
from cytoray.tasks.networks.truth import known_of
from cytoray.tasks.pieces import Pieces

MOST_TOP, TOP_SHARE = 10_000, 0.1  # edges of the halves that are compared
WHOLE, HALVES = "all", ("first half", "second half")
BASELINE, OF_CELLS = "|correlation|", "evidence of cells"


def run_assessment(config: AssessNetworksConfig, pieces: Pieces) -> AssessedTask:
    """Infer a network of all cells and of two halves, and judge them; each block of targets is a piece."""
    started = time.monotonic()
    inference = config.inference()
    # Knocked-out cells of the screen itself are what is scored.
    is_own = config.screen is not None and config.screen == config.data
    also = [] if config.screen is None else screen_genes(config.screen)  # they are what can be scored
    prepared = prepare(inference, only=(config.perturbation_key, config.control) if is_own else None, also=also)
    known = None if config.truth is None else known_of(config.truth, prepared.candidates, confidence=config.confidence)
    if known is not None and len(known.scored) < FEWEST_FACTORS:
        raise CorpusError(
            f"{config.truth} has {FEWEST_EDGES} known targets of {len(known.scored)} factors of the network; "
            f"{FEWEST_FACTORS} are needed.",
            remedy="Give a larger table, raise --num-targets, or lower --min-share.",
        )
    screened = None
    if (screen := config.screen_config()) is not None:
        screened = read_screen(screen, prepared.candidates)
    evidence, warnings = _evidence(inference, prepared, pieces)
    values, scores = evidence[WHOLE].values, evidence[WHOLE].scores(prepared.candidates.valid)
    if known is not None:
        product = leave_factors_out(values, scores, known, seed=config.seed)
    else:
        equal = aggregate(scores, equal_weights(scores))
        product = Product(equal, {"equal weights": 1}, ("without known edges all evidence has the same weight",))
    metrics: dict[str, MetricRow] = {}
    details: dict[str, Any] = {}
    if known is not None:
        metrics, details = judge_known(values, scores, product, known, seed=config.seed)
    metrics["half_overlap"], details["halves"] = _overlaps(evidence, prepared)
    if screened is not None:
        effects, doubts = screened
        warnings += doubts
        if effects:
            row, details["screen"] = judge_screen(values, product.weights, effects, seed=config.seed)
            metrics["knock_out_auroc"] = row
    assessment = Assessment(
        task="networks",
        data=_describe(prepared, config),
        split=_split_sentence(config),
        metrics=metrics,
        chosen=product.chosen,
        why=product.why,
        seeds=(config.seed,),
        seconds=time.monotonic() - started,
        model=config.model,
        warnings=(*prepared.warnings, *warnings),
        details=details,
    )
    return AssessedTask(assessment, _sections(details))


def _evidence(config: InferNetworksConfig, prepared: Prepared, pieces: Pieces) -> tuple[dict[str, Evidence], list[str]]:
    """Return the evidence of all cells and of each half, as if there were no others, and warnings."""
    candidates, num_cells = prepared.candidates, prepared.cells.num_cells
    rows = {WHOLE: np.arange(num_cells), **dict(zip(HALVES, equal_halves(num_cells, seed=config.seed), strict=True))}
    works = [
        prepare_work(prepared.cells.take(some), candidates, work_options(config), name=name)
        for name, some in rows.items()
    ]
    model = None if config.model is None else open_evidence(config)
    static, warnings = static_evidence(config, candidates, model)
    found = {name: own.with_kinds(static) for name, own in compute_evidence(config, works, pieces).items()}
    if model is not None:
        for work in works:
            own = ask_model(model, prepared, rows[work.name], work, pieces)
            found[work.name] = found[work.name].with_kinds(own.values, own.halves)
    return found, warnings


def _overlaps(evidence: Mapping[str, Evidence], prepared: Prepared) -> tuple[MetricRow, list[dict[str, Any]]]:
    """Compare the strongest edges of the two halves: of all evidence, of that of cells alone, and of each kind."""
    valid = prepared.candidates.valid
    num = min(MOST_TOP, max(1, int(TOP_SHARE * valid.sum())))
    halves = [evidence[name].scores(valid) for name in HALVES]
    of_cells = tuple(evidence[WHOLE].halves)
    kinds = {kind: (kind,) for kind in of_cells} | {OF_CELLS: of_cells, "all evidence": tuple(halves[0])}
    pairs = {BASELINE: [np.abs(evidence[name].values[CORRELATION]) for name in HALVES]}
    for name, members in kinds.items():
        pairs[name] = [aggregate(half, dict.fromkeys(members, 1.0)) for half in halves]
    found = {name: overlap(first, second, valid, num=num) for name, (first, second) in pairs.items()}
    share = num / valid.sum()
    chance = float(share / (2 - share))
    table = [{"network": name, "top": num, "jaccard": jaccard} for name, jaccard in found.items()]
    return MetricRow(floor=chance, baseline=found[BASELINE], product=found[OF_CELLS]), table


def _describe(prepared: Prepared, config: AssessNetworksConfig) -> dict[str, Any]:
    matrix, digest = prepared.data.values, hashlib.sha256("\0".join(prepared.data.genes).encode())
    for array in (matrix.indptr, matrix.indices, matrix.data):
        digest.update(np.ascontiguousarray(array).tobytes())
    described = {"uri": config.data, "digest": digest.hexdigest(), "num_cells": prepared.cells.num_cells}
    candidates = prepared.candidates
    return {**described, "num_factors": len(candidates.tfs), "num_targets": len(candidates.targets)}


def _split_sentence(config: AssessNetworksConfig) -> str:
    parts = []
    if config.truth is not None:
        parts.append("known edges: weights by folds of factors, each scored by a choice that has not seen it")
    parts.append("halves of the cells at random")
    if config.screen is not None:
        parts.append("knock-outs of a screen, which no choice has seen")
    return "; ".join(parts)


def _sections(details: Mapping[str, Any]) -> list[Section]:
    sections = []
    if "members" in details:
        text = (
            f"Each kind of evidence alone, on {details['num_edges']:,} known edges; median AUROC over the "
            f"{details['num_factors']} factors with {FEWEST_EDGES} or more. Ratios are to random pairs."
        )
        columns = ("member", "factor_auroc", "early_precision_ratio", "precision_ratio")
        sections.append(Section("Evidence", text, details_rows(columns, details["members"])))
    text = (
        "Jaccard index of the strongest edges of two networks, each inferred from a half of the cells alone. Gene sets "
        "are equal in both halves, so the product's figure above is that of the evidence of cells. Each kind of "
        "evidence counts by how far halves of those cells repeat it."
    )
    sections.append(Section("Halves", text, details_rows(("network", "top", "jaccard"), details["halves"])))
    if "screen" in details:
        of_screen = ("factor", "num_genes", "num_changed", "product", "baseline", "trees", "other_factors")
        text = (
            "AUROC of ranking the genes that change (|t| > 3) in cells without the factor by the weight of its edges. "
            "Other factors: the mean if the edges of any other factor are used instead, which is the floor."
        )
        sections.append(Section("Knock-outs", text, details_rows(of_screen, details["screen"])))
    return sections
