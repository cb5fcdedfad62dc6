"""Assess cell-type annotation on anyone's labelled cells: a simple method, a blend of methods, and how sure to be.

Protocols: 5-fold (of cells, or of whole batches), few-labels, transfer to a query, leave-type-out. Nothing is chosen on
the cells that are scored: penalties, weights, adjustment and temperature come from folds of the training cells.
"""

# C cells, T test cells, K labels

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cytoray import progress
from cytoray.errors import ConfigError, CorpusError
from cytoray.evaluation.adaptation import adapt_frequencies, nearest_neighbours, smooth_over_neighbours
from cytoray.evaluation.assessment import Assessment, MetricRow, measure, row_of
from cytoray.evaluation.calibration import brier_score, measure_reliability, negative_log_likelihood
from cytoray.evaluation.classification import score_classification
from cytoray.evaluation.conformal import area_under_roc, fit_prediction_sets
from cytoray.evaluation.intervals import Statistic, bootstrap_interval, draw_rows
from cytoray.evaluation.label_matching import Synonym, match_labels
from cytoray.evaluation.splits import Split, few_labels, grouped_folds, leave_one_label_out, stratified_folds
from cytoray.evaluation.stacking import Choice, choose_blend, macro_f1
from cytoray.evaluation.voters import Expression, Round, Voter, fit_voters

logger = logging.getLogger(__name__)
Protocol = Literal["5-fold", "few-labels", "transfer", "leave-type-out"]
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
NUM_FOLDS = 5
FRACTIONS = (0.1, 0.02)
NUM_SEEDS = 3
BASELINE = "genes"
NO_LABELS = frozenset({"", "na", "nan", "none", "null", "unassigned", "unknown", "unlabeled", "unlabelled"})
FEW_TRAINING_CELLS, MANY_FOLDS = 500, 10  # below, there are more inner folds, since each cell counts
LEVEL = 0.9  # of prediction sets
NUM_NEAREST = 15


@dataclass(frozen=True, eq=False)
class LabelledCells:
    """C cells with their labels, and the batch of each if it is known."""

    expression: Expression
    labels: tuple[str, ...]
    uri: str
    batches: tuple[str, ...] | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of values, genes and labels."""
        found = hashlib.sha256()
        for array in (self.expression.values.indptr, self.expression.values.indices, self.expression.values.data):
            found.update(np.ascontiguousarray(array).tobytes())
        found.update("\0".join(self.labels).encode())
        return found.hexdigest()

    def take(self, rows: Int64) -> LabelledCells:
        """Return some of the cells."""
        batches = None if self.batches is None else tuple(self.batches[row] for row in rows)
        return replace(
            self, expression=self.expression.take(rows), labels=tuple(self.labels[row] for row in rows), batches=batches
        )


@dataclass(frozen=True, eq=False)
class Fitted:
    """Everything that answers: voters and their blends, prediction sets, and the training cells' own distances."""

    labels: tuple[str, ...]
    voters: Mapping[str, Voter]
    choice: Choice
    frequencies: Float64  # (K,) of the training labels
    limits: Any  # PredictionSets
    training: npt.NDArray[np.float32]  # (C, P) components of the training cells
    codes: Int64  # (C,) their labels


@dataclass(frozen=True, eq=False)
class Answers:
    """Probabilities of the test cells of one split, and what else is scored."""

    split: Split
    product: Float64  # (T, K)
    baseline: Float64
    floor: Int64  # (T,) the commonest label
    strangeness: Float64  # (T,) distance to the training cells of the predicted label, relative to theirs
    sets: npt.NDArray[np.bool_]  # (T, K)
    adapted: Float64 | None  # (T, K), transductive
    choice: Choice


def without_placeholders(cells: LabelledCells) -> tuple[LabelledCells, dict[str, int]]:
    """Leave out cells whose label is a placeholder such as ``unassigned``, and count them by label."""
    placeholders = Counter(label for label in cells.labels if label.strip().lower() in NO_LABELS)
    rows = np.flatnonzero([label not in placeholders for label in cells.labels])
    if not len(rows):
        raise CorpusError(f"{cells.uri}: every label is missing.", remedy="Set --label-key to the cell types.")
    return (cells.take(rows), dict(placeholders)) if placeholders else (cells, {})


def fit_annotator(cells: LabelledCells, *, labels: Sequence[str], elsewhere: bool = False, seed: int = 0) -> Fitted:
    """Fit voters, blend and doubts on labelled cells; ``labels`` (K,) fixes the order, and may name absent ones.

    With ``elsewhere`` the cells to be answered come from another experiment: the choice then also looks at held-out
    cells that were disturbed accordingly. So it does for few training cells, whose folds alone say little.
    """
    names = np.asarray(labels, str)
    codes = np.searchsorted(names, np.asarray(cells.labels, str)).astype(np.int64)
    few = len(codes) < FEW_TRAINING_CELLS
    num_folds = MANY_FOLDS if few else NUM_FOLDS
    rounds = [
        Round(tuple(stratified_folds(cells.labels, num_folds=num_folds, seed=seed + number)), is_disturbed=number == 1)
        for number in range(2 if few or elsewhere else 1)
    ]
    voters, held_out = fit_voters(cells.expression, codes, num_labels=len(names), rounds=rounds, seed=seed)
    choice = choose_blend(held_out, codes, baseline=BASELINE, seed=seed)
    unseen = np.exp(choice.product.combine({name: answers[0] for name, answers in held_out.items()}))
    return Fitted(
        tuple(labels),
        voters,
        choice,
        np.bincount(codes, minlength=len(names)) / len(codes),
        fit_prediction_sets(unseen, codes, level=LEVEL),
        voters["components"].features.transform(cells.expression),
        codes,
    )


def answer(fitted: Fitted, query: Expression, split: Split, *, adapt: bool = False) -> Answers:
    """Answer the cells of a query with everything that was fitted; ``adapt`` also adapts to the query as a whole."""
    logged = {name: voter.log_probabilities(query) for name, voter in fitted.voters.items()}
    product = np.exp(fitted.choice.product.combine(logged))
    adapted = None
    components = fitted.voters["components"].features.transform(query)
    if adapt:
        frequencies = np.maximum(fitted.frequencies, 1e-6)
        neighbours, _ = nearest_neighbours(components)
        adapted = smooth_over_neighbours(adapt_frequencies(product, frequencies), neighbours, times=2)
    return Answers(
        split,
        product,
        np.exp(fitted.choice.baseline.combine(logged)),
        np.full(len(product), int(fitted.frequencies.argmax())),
        _strangeness(fitted, components, product.argmax(axis=1)),
        fitted.limits.contain(product),
        adapted,
        fitted.choice,
    )


def _strangeness(fitted: Fitted, components: npt.NDArray[np.float32], predicted: Int64) -> Float64:
    """Mean distance to the nearest training cells of the predicted label, over the median of those cells' own."""
    found = np.ones(len(components))
    for label in np.unique(predicted):
        own = fitted.training[fitted.codes == label]
        rows = np.flatnonzero(predicted == label)
        if len(own) < 2:
            continue
        usual = np.median(nearest_neighbours(own, num=NUM_NEAREST)[1].mean(axis=1))
        _, distances = nearest_neighbours(components[rows], own, num=NUM_NEAREST)
        found[rows] = distances.mean(axis=1) / max(float(usual), 1e-6)
    return found


def plan_splits(cells: LabelledCells, protocol: Protocol, *, seed: int = 0) -> tuple[list[Split], str]:
    """Return the splits of a protocol within one data set, and a sentence that describes them."""
    if protocol == "5-fold" and cells.batches is not None:
        splits = grouped_folds(cells.batches, num_folds=NUM_FOLDS, seed=seed)
        return splits, f"{len(splits)} folds of whole batches"
    if protocol == "5-fold":
        return stratified_folds(cells.labels, num_folds=NUM_FOLDS, seed=seed), f"{NUM_FOLDS} folds of cells"
    if protocol == "few-labels":
        seeds = range(seed, seed + NUM_SEEDS)
        splits = [few_labels(cells.labels, fraction=part, seed=each) for part in FRACTIONS for each in seeds]
        shares = " and ".join(f"{100 * part:g} %" for part in FRACTIONS)
        return splits, f"{shares} of the labels, {NUM_SEEDS} seeds each"
    splits = leave_one_label_out(cells.labels, num_folds=NUM_FOLDS, seed=seed)
    return splits, "each label left out once; a fifth of the other cells beside it"


def num_splits(cells: LabelledCells, protocol: Protocol) -> int:
    """Return how many times a protocol trains, for a display of progress."""
    numbers = {"5-fold": NUM_FOLDS, "few-labels": len(FRACTIONS) * NUM_SEEDS, "transfer": 1}
    return numbers.get(protocol, len(set(cells.labels)))


def assess_annotation(
    cells: LabelledCells,
    protocol: Protocol,
    *,
    query: LabelledCells | None = None,
    label_map: Mapping[str, str] | None = None,
    synonym: Synonym = str,
    seed: int = 0,
    advance: progress.Advance = progress.silent,
) -> Assessment:
    """Assess annotation on labelled cells by a protocol; ``query`` is what "transfer" is scored on.

    ``label_map`` renames labels of both data sets; without it those of a reference and a query are matched word by
    word. ``advance`` counts splits. Raises CorpusError or ConfigError for data that the protocol cannot use.
    """
    started = time.monotonic()
    cells, placeholders = without_placeholders(cells)
    warnings = [f"{count} cells labelled {label!r} were left out" for label, count in sorted(placeholders.items())]
    if (protocol == "transfer") != (query is not None):
        raise ConfigError("Protocol transfer needs a query, and no other protocol has one.", remedy="Set --query.")
    details: dict[str, Any] = {}
    if query is not None:
        query, placeholders = without_placeholders(query)
        warnings += [f"{count} query cells labelled {label!r} were left out" for label, count in placeholders.items()]
        cells, query, details["label_names"] = _common_labels(cells, query, label_map, synonym)
        cells, query = _common_genes(cells, query)
    elif label_map:
        cells = replace(cells, labels=tuple(label_map.get(label, label) for label in cells.labels))
    warnings += _check(cells)
    labels = sorted({*cells.labels})
    answers, sentence = [], f"trained on {cells.uri}, scored on {query.uri}" if query is not None else ""
    scored = cells if query is None else query
    if query is None:
        splits, sentence = plan_splits(cells, protocol, seed=seed)
    else:
        splits = [Split("query", np.arange(len(cells.labels)), np.arange(len(query.labels)))]
        labels = sorted({*labels, *query.labels})
    for split in splits:
        elsewhere = query is not None or cells.batches is not None
        fitted = fit_annotator(cells.take(split.train), labels=labels, elsewhere=elsewhere, seed=seed)
        found = answer(fitted, scored.expression.take(split.test), split, adapt=query is not None)
        answers.append(found)
        advance(1, f"{split.name}: {found.choice.chosen}")
    truth = np.searchsorted(np.asarray(labels, str), np.asarray(scored.labels, str)).astype(np.int64)
    judge = _judge_unseen if protocol == "leave-type-out" else _judge_labels
    metrics, more = judge(answers, truth, labels, _units(scored), seed)
    return Assessment(
        task="annotation",
        data=_describe(cells, query),
        split=sentence,
        metrics=metrics,
        chosen=dict(Counter(each.choice.chosen for each in answers)),
        why=tuple(f"{each.split.name}: {each.choice.why}" for each in answers),
        seeds=(seed,),
        seconds=time.monotonic() - started,
        warnings=tuple(warnings),
        details=details | more,
    )


def _describe(cells: LabelledCells, query: LabelledCells | None) -> dict[str, Any]:
    described: dict[str, Any] = {"uri": cells.uri, "digest": cells.digest, "num_cells": len(cells.labels)}
    if query is not None:
        described["query"] = {"uri": query.uri, "digest": query.digest, "num_cells": len(query.labels)}
    return described


def _units(cells: LabelledCells) -> npt.NDArray[Any]:
    """The unit of each cell for the bootstrap: its batch if there are several, else the cell itself."""
    if cells.batches is not None and len(set(cells.batches)) > 2:
        return np.asarray(cells.batches, str)
    return np.arange(len(cells.labels))


def _check(cells: LabelledCells) -> list[str]:
    """Refuse labels that cannot be learned; return warnings about labels that are hard to score."""
    counts = Counter(cells.labels)
    if len(counts) < 2:
        raise CorpusError(
            f"{cells.uri}: all {len(cells.labels)} cells have the label {next(iter(counts))!r}.",
            remedy="Set --label-key to a column with at least two cell types.",
        )
    if len(cells.labels) < 2 * len(counts):
        raise CorpusError(
            f"{cells.uri}: {len(cells.labels)} cells have {len(counts)} labels.",
            remedy="Set --label-key to a column with several cells per label.",
        )
    warnings = [f"label {label!r} has one cell" for label, count in sorted(counts.items()) if count == 1]
    if cells.batches is not None:
        batch_of: dict[str, set[str]] = {}
        for label, batch in zip(cells.labels, cells.batches, strict=True):
            batch_of.setdefault(label, set()).add(batch)
        if len(set(cells.batches)) > 1 and all(len(found) == 1 for found in batch_of.values()):
            warnings.append("each label occurs in one batch only: labels and batches cannot be separated")
    return warnings


def _common_labels(
    cells: LabelledCells, query: LabelledCells, label_map: Mapping[str, str] | None, synonym: Synonym
) -> tuple[LabelledCells, LabelledCells, dict[str, dict[str, str]]]:
    """Both data sets under common labels, and the names; query cells of labels that were not learned are left out."""
    reference_names, query_names = match_labels(sorted({*cells.labels}), sorted({*query.labels}), synonym=synonym)
    if label_map:
        reference_names = {label: label_map.get(label, label) for label in reference_names}
        query_names = {label: label_map.get(label, label) for label in query_names}
    learned = set(reference_names.values())
    rows = np.flatnonzero([query_names[label] in learned for label in query.labels])
    if not len(rows):
        raise CorpusError(
            f"{cells.uri} and {query.uri} share no label: {_few(reference_names)} and {_few(query_names)}.",
            remedy="Give a table of labels with --label-map.",
        )
    query = query.take(rows)
    return (
        replace(cells, labels=tuple(reference_names[label] for label in cells.labels)),
        replace(query, labels=tuple(query_names[label] for label in query.labels)),
        {"reference": reference_names, "query": query_names},
    )


def _few(names: Mapping[str, str]) -> str:
    return ", ".join(list(names)[:8]) + (", …" if len(names) > 8 else "")


def _common_genes(cells: LabelledCells, query: LabelledCells) -> tuple[LabelledCells, LabelledCells]:
    """Both data sets with the genes that occur in both: a gene that a panel lacks would look like one that is off."""
    both = [np.asarray((each.expression.values != 0).sum(axis=0)).ravel() > 0 for each in (cells, query)]
    shared = np.flatnonzero(both[0] & both[1])
    if not len(shared):
        raise CorpusError(f"{cells.uri} and {query.uri} share no gene.", remedy="Check the names of the genes.")
    first, second = (
        replace(each, expression=replace(each.expression, values=each.expression.values[:, shared]))
        for each in (cells, query)
    )
    return first, second


def _judge_labels(
    answers: Sequence[Answers], truth: Int64, labels: Sequence[str], units: npt.NDArray[Any], seed: int
) -> tuple[dict[str, MetricRow], dict[str, Any]]:
    """Score labels and probabilities of all splits."""
    rows = np.concatenate([each.split.test for each in answers])
    true = truth[rows]
    probabilities = {
        "product": np.concatenate([each.product for each in answers]),
        "baseline": np.concatenate([each.baseline for each in answers]),
    }
    called = {name: found.argmax(axis=1) for name, found in probabilities.items()}
    called["floor"] = np.concatenate([each.floor for each in answers])
    draws = draw_rows(units[rows], seed=seed)
    metrics = {
        "macro_f1": measure(_statistics(called, lambda some, at: macro_f1(true[at], some[at], len(labels))), draws,
                            num_rows=len(rows)),
        "accuracy": measure(_statistics(called, lambda some, at: float((true[at] == some[at]).mean())), draws,
                            num_rows=len(rows)),
    }  # fmt: skip
    metrics |= _probability_metrics(probabilities, true)
    details: dict[str, Any] = {"splits": [_split_row(each, truth, len(labels)) for each in answers]}
    sets = np.concatenate([each.sets for each in answers])
    details["prediction_sets"] = {
        "level": LEVEL,
        "coverage": float(sets[np.arange(len(true)), true].mean()),
        "mean_size": float(sets.sum(axis=1).mean()),
    }
    if all(each.adapted is not None for each in answers):
        adapted = np.concatenate([each.adapted for each in answers if each.adapted is not None]).argmax(axis=1)
        details["adapted"] = _adapted(adapted, called, true, draws, len(labels))
    names = list(labels)
    scored = score_classification(
        [names[code] for code in true], [names[code] for code in called["product"]], labels=names
    )
    details |= {"labels": names, "per_label": scored.as_dict()["per_label"], "confusion": scored.confusion.tolist()}
    reliability = measure_reliability(probabilities["product"], true)
    details["reliability"] = {
        "confidence": reliability.confidence.tolist(),
        "accuracy": reliability.accuracy.tolist(),
        "num_cells": reliability.num_cells.tolist(),
    }
    return metrics, details


def _statistics(called: Mapping[str, Int64], score: Callable[[Int64, Int64], float]) -> dict[str, Statistic]:
    """The score of each method as a function of rows."""
    return {name: lambda at, some=some: score(some, at) for name, some in called.items()}  # type: ignore[misc]


def _probability_metrics(probabilities: Mapping[str, Float64], true: Int64) -> dict[str, MetricRow]:
    """Metrics of probabilities, of which less is better; they have no verdict."""
    scores: dict[str, Callable[[Float64, Int64], float]] = {
        "calibration_error": lambda found, truth: measure_reliability(found, truth).error,
        "negative_log_likelihood": negative_log_likelihood,
        "brier": brier_score,
    }
    return {
        name: row_of({method: score(found, true) for method, found in probabilities.items()})
        for name, score in scores.items()
    }


def _split_row(each: Answers, truth: Int64, num_labels: int) -> dict[str, Any]:
    """Sizes and macro-F1 of one split."""
    true = truth[each.split.test]
    return {
        "name": each.split.name,
        "num_train": len(each.split.train),
        "num_test": len(true),
        "product": macro_f1(true, each.product.argmax(axis=1), num_labels),
        "baseline": macro_f1(true, each.baseline.argmax(axis=1), num_labels),
        "chosen": each.choice.chosen,
    }


def _adapted(
    adapted: Int64, called: Mapping[str, Int64], true: Int64, draws: list[Int64], num_labels: int
) -> dict[str, Any]:
    """The path that looks at the whole query, declared as such: its macro-F1 against the baseline's."""
    several = {"product": adapted, "baseline": called["baseline"]}
    row = measure(
        _statistics(several, lambda some, at: macro_f1(true[at], some[at], num_labels)), draws, num_rows=len(true)
    )
    accuracy = float((adapted == true).mean())
    return {"transductive": True, "macro_f1": row.as_dict(), "accuracy": accuracy}


def _judge_unseen(
    answers: Sequence[Answers], truth: Int64, labels: Sequence[str], units: npt.NDArray[Any], seed: int
) -> tuple[dict[str, MetricRow], dict[str, Any]]:
    """Score how well cells of a label that was left out are distinguished from the others (area under ROC)."""
    del units
    table = []
    for each in answers:
        left_out = truth[each.split.test] == list(labels).index(each.split.name)
        table.append(
            {
                "left_out": each.split.name,
                "num_cells": int(left_out.sum()),
                "distance": area_under_roc(each.strangeness, left_out),
                "doubt": area_under_roc(1 - each.baseline.max(axis=1), left_out),
            }
        )
    product = np.array([row["distance"] for row in table], np.float64)
    baseline = np.array([row["doubt"] for row in table], np.float64)
    draws = draw_rows(np.arange(len(table)), seed=seed)
    statistics: dict[str, Statistic] = {
        "product": lambda rows: float(product[rows].mean()),
        "baseline": lambda rows: float(baseline[rows].mean()),
    }
    row = replace(measure(statistics, draws, num_rows=len(table)), floor=0.5, ceiling=1.0)
    spread = bootstrap_interval(statistics["product"], draws)
    return {"unseen_auroc": row}, {"left_out": table, "unseen_auroc_interval": spread.as_list()}
