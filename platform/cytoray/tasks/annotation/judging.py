"""Score an annotator's answers: labels, probabilities, prediction sets, and whether unseen types are noticed."""

# C cells, T test cells, K labels

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cytoray.evaluation.annotator import LEVEL
from cytoray.evaluation.assessment import MetricRow, measure, row_of
from cytoray.evaluation.calibration import brier_score, measure_reliability, negative_log_likelihood
from cytoray.evaluation.classification import macro_f1, score_classification
from cytoray.evaluation.conformal import area_under_roc
from cytoray.evaluation.intervals import Statistic, bootstrap_interval, draw_rows
from cytoray.tasks.annotation.annotator import Answers, Float64, Int64


def judge_labels(
    answers: Sequence[Answers], truth: Int64, labels: Sequence[str], units: npt.NDArray[Any], seed: int
) -> tuple[dict[str, MetricRow], dict[str, Any]]:
    """Score labels and probabilities of all splits."""
    rows = np.concatenate([each.split.test for each in answers])
    true = truth[rows]
    probabilities = {
        "product": np.concatenate([each.product for each in answers]),
        "baseline": np.concatenate([each.baseline for each in answers]),
    }
    if all(each.model is not None for each in answers):
        probabilities["model"] = np.concatenate([each.model for each in answers if each.model is not None])
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
    sets = np.concatenate([each.in_set for each in answers])
    details["prediction_sets"] = {
        "level": LEVEL,
        "coverage": float(sets[np.arange(len(true)), true].mean()),
        "mean_size": float(sets.sum(axis=1).mean()),
    }
    if all(each.adapted is not None for each in answers):
        adapted = np.concatenate([each.adapted for each in answers if each.adapted is not None]).argmax(axis=1)
        details["adapted"] = _adapted(adapted, called, true, draws, len(labels))
    if all(each.random_start is not None for each in answers):
        found = np.concatenate([each.random_start for each in answers if each.random_start is not None])
        scratch = found.argmax(axis=1)
        details["random_start"] = {
            "macro_f1": macro_f1(true, scratch, len(labels)),
            "accuracy": float((scratch == true).mean()),
        }
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
    return {name: functools.partial(score, some) for name, some in called.items()}


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


def judge_unseen(
    answers: Sequence[Answers], truth: Int64, labels: Sequence[str], seed: int
) -> tuple[dict[str, MetricRow], dict[str, Any]]:
    """Score how well cells of a label that was left out are distinguished from the others (area under ROC)."""
    table = []
    for each in answers:
        left_out = truth[each.split.test] == list(labels).index(each.split.name)
        table.append(
            {
                "left_out": each.split.name,
                "num_cells": int(left_out.sum()),
                "distance": area_under_roc(each.distances, left_out),
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
