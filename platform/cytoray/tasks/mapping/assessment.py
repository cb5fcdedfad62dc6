"""Assess reference mapping: build a reference of labelled cells, map another data set, and score its labels.

Labels of the query only score. The reference is fitted under its own labels; both are compared under common names.
"""

# C cells of the query, S scored ones

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cytoray import progress
from cytoray.errors import CorpusError
from cytoray.evaluation.assessment import Assessment, MetricRow, measure
from cytoray.evaluation.assessment_page import AssessedTask, Section, details_rows, png
from cytoray.evaluation.classification import macro_f1, score_classification, score_confusion
from cytoray.evaluation.intervals import Statistic, draw_rows
from cytoray.evaluation.label_matching import match_labels
from cytoray.evaluation.plots import draw_confusion
from cytoray.evaluation.stacking import Choice
from cytoray.model.predictor import CellPredictor
from cytoray.registry.opening import open_model
from cytoray.tasks.annotation.labelled import few_scored_warning, gene_synonym, read_label_map
from cytoray.tasks.mapping.assess_config import AssessMappingConfig
from cytoray.tasks.mapping.building import build_reference
from cytoray.tasks.mapping.cells import read_query, read_reference
from cytoray.tasks.mapping.fitting import Fitted, fit_mapper, num_steps
from cytoray.tasks.mapping.inputs import MapCells
from cytoray.tasks.mapping.packing import KINDS
from cytoray.tasks.mapping.querying import MappedQuery, Refits, check_common, embed_with, map_query
from cytoray.tasks.pieces import Pieces
from cytoray.tokens.labels import is_placeholder
from cytoray.tokens.vocabulary import GeneVocabulary

Int64 = npt.NDArray[np.int64]
Names = npt.NDArray[np.str_]
LABEL_COLUMNS = ("label", "precision", "recall", "f1", "num_true", "num_predicted")


class KeptFits:
    """``fit_mapper`` whose results are pieces, numbered in the order in which they are asked for."""

    def __init__(self, pieces: Pieces) -> None:
        """Keep the fits among ``pieces``."""
        self._pieces, self._num_fits = pieces, 0

    def __call__(self, *cells: Any, advance: progress.Advance = progress.silent, **options: Any) -> Fitted:
        """Fit a mapper as ``fit_mapper`` does, or return the piece."""
        self._num_fits += 1
        work = functools.partial(fit_mapper, *cells, advance=advance, **options)
        kinds = (*KINDS.values(), Fitted, Choice)
        found, reused = self._pieces.compute(f"fit {self._num_fits}", work, kinds=kinds)
        if reused:
            advance(num_steps(), "fit", already=True)
        return found


def run_assessment(config: AssessMappingConfig, pieces: Pieces) -> AssessedTask:
    """Build a reference of the cells that ``config`` names, map the query, and score its labels; fits are pieces."""
    started = time.monotonic()
    opened = None
    if config.model is not None:
        opened = open_model(
            config.model, store=config.store, tracking=config.tracking, cache_folder=config.cache_folder
        )
    vocabulary = GeneVocabulary.load_default() if opened is None else opened.bundle.vocabulary
    embed = None if opened is None else embed_with(CellPredictor(opened.bundle, empty_cells="nan").predict)
    table = None if config.label_map is None else read_label_map(config.label_map)
    cells, warnings = read_reference([config.data], config.label_key, batch_key=config.batch_key, vocabulary=vocabulary)
    query = read_query(config.query, vocabulary=vocabulary, label_key=config.label_key)
    names = common_names(cells, query, table)
    check_common(cells.expressed, query)  # as map_query does, but before the reference is fitted
    warnings += few_scored_warning(_check_query(query, names, config))
    fit = KeptFits(pieces)
    with progress.stage("assess", total=num_steps() + 3, unit="steps") as advance:
        reference = build_reference(
            cells, embed=embed, about={"model": None}, seed=config.seed, with_map=False, fit=fit, advance=advance
        )
        found = map_query(reference, query, embed=embed, refits=Refits(reference, embed, fit=fit))
        advance(1, "query")
    metrics, details = judge_mapping(found, query, names, seed=config.seed)
    known = reference.about
    assessment = Assessment(
        task="mapping",
        data=_describe(config.data, cells) | {"query": _describe(config.query, query)},
        split=f"reference {config.data}, scored on {config.query}",
        metrics=metrics,
        chosen={str(found.reference.about["chosen"]): 1},
        why=(str(known["why_space"]), str(known["why"])),
        seeds=(config.seed,),
        seconds=time.monotonic() - started,
        model=None if opened is None else opened.uri,
        warnings=(*warnings, *found.warnings),
        details=details | {"label_names": {"reference": names[0], "query": names[1]}, "space": known["space"]},
    )
    return AssessedTask(assessment, _sections(assessment))


def _check_query(query: MapCells, names: tuple[dict[str, str], dict[str, str]], config: AssessMappingConfig) -> int:
    """Return how many cells of the query can be scored; CorpusError for none."""
    learned = set(names[0].values())
    known = np.array([label is not None and names[1].get(label) in learned for label in query.labels], bool)
    num_scored = int((known & ~query.is_empty).sum())
    if not num_scored:
        raise CorpusError(
            f"{config.query}: no cell with a label of the reference has a count of a known gene.",
            remedy="Check the names of the genes and the counts of the query.",
        )
    return num_scored


def common_names(
    cells: MapCells, query: MapCells, table: Mapping[str, str] | None
) -> tuple[dict[str, str], dict[str, str]]:
    """Return common names of the labels of reference and query; CorpusError if they share none."""
    learned = sorted({str(label) for label in cells.labels})
    asked = sorted({label for label in query.labels if label is not None and not is_placeholder(label)})
    if not asked:
        raise CorpusError(
            f"{query.sources[0] if query.sources else 'the query'}: no cell has a label to score.",
            remedy="Set --label-key to a column that holds cell types in both files.",
        )
    reference_names, query_names = match_labels(learned, asked, synonym=gene_synonym())
    if table:
        reference_names = {label: table.get(label, label) for label in reference_names}
        query_names = {label: table.get(label, label) for label in query_names}
    if not set(reference_names.values()) & set(query_names.values()):
        raise CorpusError(
            f"Reference and query share no label: {', '.join(learned[:8])} and {', '.join(asked[:8])}.",
            remedy="Give a table of labels with --label-map.",
        )
    return reference_names, query_names


def judge_mapping(
    found: MappedQuery, query: MapCells, names: tuple[dict[str, str], dict[str, str]], *, seed: int
) -> tuple[dict[str, MetricRow], dict[str, Any]]:
    """Score the labels of query cells whose type the reference has, and count statuses of all of them."""
    reference_names, query_names = names
    learned = set(reference_names.values())
    rows = np.flatnonzero(
        [
            answered and label is not None and query_names.get(label) in learned
            for label, answered in zip(query.labels, found.answered, strict=True)
        ]
    )
    truth = np.array([query_names[str(query.labels[row])] for row in rows], str)
    called = {name: answers[rows] for name, answers in _called(found, reference_names).items()}
    common = sorted({*truth.tolist(), *(name for answers in called.values() for name in answers.tolist())})
    metrics = _metrics(called, truth, common, seed)
    scores = score_classification(truth.tolist(), called["product"].tolist(), labels=common)
    mapped = found.mapped
    status = {
        "assigned": int((~mapped.unassigned & ~mapped.ambiguous)[found.answered].sum()),
        "ambiguous": int(mapped.ambiguous[found.answered].sum()),
        "unassigned": int(mapped.unassigned[found.answered].sum()),
    }
    neighbours = _score(called["neighbours"], truth, common)
    details = {"labels": common, "per_label": scores.as_dict()["per_label"], "confusion": scores.confusion.tolist()}
    details |= {"status": status, "num_scored": len(rows), "neighbours": neighbours, "refitted": found.refitted}
    return metrics, details


def _called(found: MappedQuery, names: Mapping[str, str]) -> dict[str, Names]:
    """The common name that each method gives each cell of the query, (C,)."""
    mapper = found.reference.mapper
    common = np.array([names[label] for label in mapper.labels], str)
    assert found.mapped.baseline is not None, "kept when the mapper was fitted"
    answers = {
        "product": found.mapped.labels,
        "baseline": found.mapped.baseline.argmax(axis=1),
        "neighbours": found.mapped.votes.argmax(axis=1),
        "floor": np.full(len(found.mapped.labels), int(mapper.counts.argmax())),
    }
    return {name: common[codes] for name, codes in answers.items()}


def _metrics(called: Mapping[str, Names], truth: Names, common: Sequence[str], seed: int) -> dict[str, MetricRow]:
    places = np.asarray(common, str)
    true = np.searchsorted(places, truth)
    codes = {name: np.searchsorted(places, called[name]) for name in ("floor", "baseline", "product")}
    draws = draw_rows(np.arange(len(true)), seed=seed)

    def score_f1(name: str) -> Statistic:
        """Return macro-F1 of a method as a function of rows."""
        return lambda rows: macro_f1(true[rows], codes[name][rows], len(places))

    def score_accuracy(name: str) -> Statistic:
        """Return accuracy of a method as a function of rows."""
        return lambda rows: float((true[rows] == codes[name][rows]).mean())

    scores = {"macro_f1": score_f1, "accuracy": score_accuracy}
    return {
        metric: measure({name: score(name) for name in codes}, draws, num_rows=len(true))
        for metric, score in scores.items()
    }


def _score(called: Names, truth: Names, common: Sequence[str]) -> dict[str, float]:
    places = np.asarray(common, str)
    true, codes = np.searchsorted(places, truth), np.searchsorted(places, called)
    return {"macro_f1": macro_f1(true, codes, len(places)), "accuracy": float((true == codes).mean())}


def _describe(uri: str, cells: MapCells) -> dict[str, Any]:
    digest = hashlib.sha256()
    values = cells.expression.values
    for array in (values.indptr, values.indices, values.data):
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update("\0".join(str(label) for label in cells.labels).encode())
    return {"uri": uri, "digest": digest.hexdigest(), "num_cells": len(cells.names)}


def _sections(assessment: Assessment) -> list[Section]:
    details = assessment.details
    confusion = score_confusion(np.array(details["confusion"], np.int64), tuple(details["labels"]))
    status, votes = details["status"], details["neighbours"]
    counted = ", ".join(f"{count:,} {name}" for name, count in status.items())
    text = (
        f"{counted}. Neighbours alone, in the space {details['space']!r}: macro F1 {votes['macro_f1']:.3f}, accuracy "
        f"{votes['accuracy']:.3f}."
    )
    sections = [Section("Answers", text), Section("Types", rows=details_rows(LABEL_COLUMNS, details["per_label"]))]
    sections.append(Section("Confusion", image=png(draw_confusion(confusion))))
    rows = [["label", "data set", "assessed as"]]
    for side, names in details["label_names"].items():
        rows += [[label, side, name] for label, name in names.items()]
    return [*sections, Section("Names of the labels", rows=rows)]
