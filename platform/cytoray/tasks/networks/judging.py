"""Judge networks beside known edges: factors that are scored lie outside those that weights were learned from."""

# T transcription factors, G targets, D draws

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cytoray.evaluation.assessment import MetricRow
from cytoray.evaluation.intervals import LEVEL, Interval, draw_rows, verdict_of
from cytoray.evaluation.networks.cells import Float32, Float64, Int64
from cytoray.evaluation.networks.ranking import aggregate, equal_weights, learn_weights
from cytoray.evaluation.networks.scores import (
    KnownEdges,
    early_precision_ratio,
    factor_aurocs,
    pooled_auroc,
    precision_ratio,
    shuffled,
    sign_accuracy,
)
from cytoray.tasks.networks.candidates import CORRELATION, TREES
from cytoray.tasks.networks.evidence import Kinds
from cytoray.tasks.networks.screen import KnockedOut

NUM_FOLDS, NUM_SHUFFLES = 5, 10
NUM_DRAWS, NUM_SLOW_DRAWS = 1_000, 200
FEWEST_FACTORS = 3  # that are scored
EQUAL, LEARNED = "equal weights", "learned weights"
Score = Callable[[Float32, KnownEdges], float]


@dataclass(frozen=True, eq=False)
class Product:
    """Weights of edges (T, G), each row by a choice that has not seen its factor, and how often what was chosen."""

    weights: Float32
    chosen: dict[str, int]
    why: tuple[str, ...]


def leave_factors_out(evidence: Kinds, scored: Kinds, known: KnownEdges, *, seed: int) -> Product:
    """Choose for each fold of factors between correlation, equal and learned weights, by the other factors alone.

    Learned weights are judged on inner folds. Rows of factors without known edges have the choice of all factors.
    """
    weights = np.empty_like(next(iter(scored.values())))
    folds = _folds(known, seed)
    chosen: Counter[str] = Counter()
    why = []
    for number, fold in enumerate([np.arange(len(weights)), *folds]):
        is_all = number == 0
        train = known.scored if is_all else np.setdiff1d(known.scored, fold)
        name, scores = _choose(evidence, scored, known, train, seed)
        weights[fold] = _of_candidate(name, evidence, scored, known, train)[fold]
        if not is_all:
            chosen[name] += 1
            text = ", ".join(f"{each} {score:.3f}" for each, score in scores.items())
            why.append(f"factors {number} of {len(folds)}: {name} (median AUROC of the other factors: {text})")
    return Product(weights, dict(chosen), tuple(why))


def judge_known(
    evidence: Kinds, scored: Kinds, product: Product, known: KnownEdges, *, seed: int
) -> tuple[dict[str, MetricRow], dict[str, Any]]:
    """Score the product beside correlation alone, with the floor of shuffled edges, and each kind of evidence alone."""
    size = np.abs(evidence[CORRELATION])
    model = {name: scored[name] for name in scored if name in ("knock_out", "embedding", "attention")}
    transformer = aggregate(model, equal_weights(model)) if model else None
    floors = [shuffled(known, seed=seed + number) for number in range(NUM_SHUFFLES)]
    scores: dict[str, tuple[Score, int]] = {
        "factor_auroc": (_median_auroc, NUM_DRAWS),
        "early_precision_ratio": (early_precision_ratio, NUM_SLOW_DRAWS),
        "precision_ratio": (precision_ratio, NUM_SLOW_DRAWS),
    }
    metrics = {}
    rows = np.flatnonzero((known.edges & known.valid).any(axis=1))
    for name, (score, num_draws) in scores.items():
        units = known.scored if name == "factor_auroc" else rows
        interval = _interval(score, (product.weights, size), known, units, num_draws=num_draws, seed=seed)
        metrics[name] = MetricRow(
            floor=float(np.mean([score(product.weights, each) for each in floors])),
            baseline=score(size, known),
            model=None if transformer is None else score(transformer, known),
            product=score(product.weights, known),
            interval=interval,
            verdict=verdict_of(interval),
        )
    signs = sign_accuracy(evidence[CORRELATION], known)
    if signs is not None:
        metrics["sign_accuracy"] = MetricRow(floor=0.5, product=signs)
    alone = {"|correlation|": size, "product": product.weights, EQUAL: aggregate(scored, equal_weights(scored))}
    cells = {name: values for name, values in scored.items() if name != "gene_sets"}
    alone["evidence of cells, equal weights"] = aggregate(cells, equal_weights(cells))
    alone |= {name: np.abs(values) for name, values in evidence.items() if name != CORRELATION}
    members = [
        {"member": name, **{metric: score(values, known) for metric, (score, _) in scores.items()}}
        for name, values in alone.items()
    ]
    counts = {"num_factors": len(known.scored), "num_edges": int((known.edges & known.valid).sum())}
    return metrics, {"members": members, **counts}


def judge_screen(
    evidence: Kinds, weights: Float32, effects: list[KnockedOut], *, seed: int
) -> tuple[MetricRow, list[dict[str, Any]]]:
    """Score how well edges of knocked-out factors find the genes that change; an interval over genes.

    The floor is the mean over all other factors of the network, whose edges are scored as if they were those of the
    factor that was knocked out: popular targets change, too.
    """
    size = np.abs(evidence[CORRELATION])
    table = []
    for each in effects:
        own = {"product": weights, "baseline": size, TREES: evidence[TREES]}
        found = {name: pooled_auroc([values[each.row, each.columns]], [each.hits]) for name, values in own.items()}
        others = [weights[row, each.columns] for row in range(len(weights)) if row != each.row]
        floor = pooled_auroc(others, [each.hits] * len(others)) if others else 0.5
        counts = {"num_genes": len(each.hits), "num_changed": int(each.hits.sum())}
        table.append({"factor": each.tf, **counts, **found, "other_factors": floor})
    rng = np.random.default_rng(seed)
    gaps = []
    for _ in range(NUM_DRAWS):
        places = [rng.integers(0, len(each.hits), len(each.hits)) for each in effects]
        scores = [
            pooled_auroc(
                [values[each.row, each.columns[rows]] for each, rows in zip(effects, places, strict=True)],
                [each.hits[rows] for each, rows in zip(effects, places, strict=True)],
            )
            for values in (weights, size)
        ]
        if scores[0] is not None and scores[1] is not None:
            gaps.append(scores[0] - scores[1])
    interval = _percentile(np.array(gaps))
    floor, baseline, product = (
        float(np.mean([row[name] for row in table])) for name in ("other_factors", "baseline", "product")
    )
    row = MetricRow(floor=floor, baseline=baseline, product=product, interval=interval, verdict=verdict_of(interval))
    return row, table


def _choose(evidence: Kinds, scored: Kinds, known: KnownEdges, train: Int64, seed: int) -> tuple[str, dict[str, float]]:
    """Return the candidate of the best median AUROC over the training factors, and all scores."""
    own = known.take(train)
    learned = np.empty_like(next(iter(scored.values())))[train]
    inner = np.array_split(np.random.default_rng(seed).permutation(len(train)), min(NUM_FOLDS, max(len(train), 1)))
    for fold in inner:
        others = np.setdiff1d(np.arange(len(train)), fold)
        learned[fold] = _of_candidate(LEARNED, evidence, scored, known, train[others])[train[fold]]
    scores = {
        CORRELATION: _median_auroc(np.abs(evidence[CORRELATION])[train], own),
        EQUAL: _median_auroc(_of_candidate(EQUAL, evidence, scored, known, train)[train], own),
        LEARNED: _median_auroc(learned, own),
    }
    return max(scores, key=lambda name: scores[name]), scores


def _of_candidate(name: str, evidence: Kinds, scored: Kinds, known: KnownEdges, train: Int64) -> Float32:
    """Return the weights (T, G) by one candidate, learned from the factors ``train`` if it learns."""
    if name == CORRELATION:
        return aggregate({CORRELATION: scored[CORRELATION]}, {CORRELATION: 1.0})
    if name == EQUAL:
        return aggregate(scored, equal_weights(scored))
    part = known.take(train)
    learned = learn_weights({kind: values[train] for kind, values in scored.items()}, part.edges, part.valid)
    return aggregate(scored, learned)


def _folds(known: KnownEdges, seed: int) -> list[Int64]:
    order = np.random.default_rng(seed).permutation(known.scored)
    return [np.sort(part) for part in np.array_split(order, min(NUM_FOLDS, len(order)))]


def _median_auroc(weights: Float32, known: KnownEdges) -> float:
    found = factor_aurocs(weights, known)
    return float(np.median(found)) if len(found) else float("nan")


def _interval(
    score: Score, pair: tuple[Float32, Float32], known: KnownEdges, units: Int64, *, num_draws: int, seed: int
) -> Interval:
    """Return the interval of the difference of two networks over draws of factors."""
    if score is _median_auroc:  # once per factor
        found = [factor_aurocs(values, known) for values in pair]
        draws = draw_rows(np.arange(len(units)), num_draws=num_draws, seed=seed)
        return _percentile(np.array([np.median(found[0][rows]) - np.median(found[1][rows]) for rows in draws]))
    draws = [units[rows] for rows in draw_rows(np.arange(len(units)), num_draws=num_draws, seed=seed)]
    gaps = [score(pair[0][rows], known.take(rows)) - score(pair[1][rows], known.take(rows)) for rows in draws]
    return _percentile(np.array(gaps))


def _percentile(values: Float64) -> Interval:
    low, high = np.quantile(values[np.isfinite(values)], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))
