"""Assess cell-type annotation on anyone's labelled cells: a simple method, a blend of methods, and how sure to be.

Protocols: 5-fold (of cells, or of whole batches), few-labels, transfer to a query, leave-type-out. Nothing is chosen on
the cells that are scored: penalties, weights, adjustment and temperature come from folds of the training cells.
"""

# C cells, T test cells, K labels

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cytoray import progress
from cytoray.errors import ConfigError, CorpusError
from cytoray.evaluation.annotator import NUM_FOLDS, fit_annotator
from cytoray.evaluation.assessment import Assessment
from cytoray.evaluation.assessment_page import AssessedTask
from cytoray.evaluation.label_matching import Synonym, match_labels
from cytoray.evaluation.splits import Split, few_labels, grouped_folds, leave_one_label_out, stratified_folds
from cytoray.evaluation.stacking import Blend, Choice
from cytoray.evaluation.voters import Expression
from cytoray.tasks.annotation.annotator import Answers, LabelledCells, answer
from cytoray.tasks.annotation.assess_config import AssessAnnotationConfig
from cytoray.tasks.annotation.assessment_page import annotation_sections
from cytoray.tasks.annotation.judging import judge_labels, judge_unseen
from cytoray.tasks.annotation.labelled import (
    few_scored_warning,
    gene_synonym,
    label_warnings,
    read_label_map,
    read_labelled,
)
from cytoray.tasks.annotation.transformer import Transformer, open_transformer
from cytoray.tasks.pieces import Pieces
from cytoray.tokens.labels import is_placeholder

Protocol = Literal["5-fold", "few-labels", "transfer", "leave-type-out"]
FRACTIONS = (0.1, 0.02)
NUM_SEEDS = 3
MAX_CELLS = 20_000  # of each data set: the features of so many take 160 MB a view, and penalties are tuned in minutes


def without_placeholders(cells: LabelledCells) -> tuple[LabelledCells, dict[str, int]]:
    """Leave out cells whose label is a placeholder such as ``unassigned``, and count them by label."""
    placeholders = Counter(label for label in cells.labels if is_placeholder(label))
    rows = np.flatnonzero([label not in placeholders for label in cells.labels])
    if not len(rows):
        raise CorpusError(f"{cells.uri}: every label is missing.", remedy="Set --label-key to the cell types.")
    return (cells.take(rows), dict(placeholders)) if placeholders else (cells, {})


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


@dataclass(frozen=True, eq=False)
class Options:
    """How annotation is assessed."""

    protocol: Protocol = "5-fold"
    label_map: Mapping[str, str] | None = None  # renames labels; without it those of a query are matched word by word
    synonym: Synonym = str
    seed: int = 0
    transformer: Transformer | None = None  # fine-tuned in each split


@dataclass(frozen=True, eq=False)
class _Prepared:
    """Cells to learn from and, for a transfer, to be scored, under common labels and with common genes."""

    cells: LabelledCells
    query: LabelledCells | None
    whole: Expression  # the cells that are scored, with all their genes
    warnings: list[str]
    label_names: dict[str, dict[str, str]] | None

    @property
    def scored(self) -> LabelledCells:
        """The cells that are scored."""
        return self.cells if self.query is None else self.query


def run_assessment(config: AssessAnnotationConfig, pieces: Pieces) -> AssessedTask:
    """Read the cells that ``config`` names and assess annotation on them; each split is a piece."""
    if config.random_start and config.model is None:
        raise ConfigError("random_start needs a model, whose shape it takes.", remedy="Name it with --model.")
    label_map = None if config.label_map is None else read_label_map(config.label_map)
    transformer = None if config.model is None else open_transformer(config)
    cells = read_labelled(config.data, config.label_key, batch_key=config.batch_key)
    query = None if config.query is None else read_labelled(config.query, config.label_key)
    options = Options(config.protocol, label_map, gene_synonym(), config.seed, transformer)
    with progress.stage("assess", total=num_splits(cells, config.protocol), unit="splits") as advance:
        found = assess_annotation(cells, options, query=query, pieces=pieces, advance=advance)
    return AssessedTask(found, annotation_sections(found))


def assess_annotation(
    cells: LabelledCells,
    options: Options,
    *,
    query: LabelledCells | None = None,
    pieces: Pieces | None = None,
    advance: progress.Advance = progress.silent,
) -> Assessment:
    """Assess annotation on labelled cells by a protocol; ``query`` is what "transfer" is scored on.

    Splits that are among the ``pieces`` are not computed again; ``advance`` counts splits. Raises CorpusError or
    ConfigError for data that the protocol cannot use.
    """
    started = time.monotonic()
    assert (options.protocol == "transfer") == (query is not None), "a query belongs to protocol transfer"
    ready = _prepare(cells, query, options)
    cells, query, scored = ready.cells, ready.query, ready.scored
    labels = sorted({*cells.labels, *scored.labels})
    if query is None:
        splits, sentence = plan_splits(cells, options.protocol, seed=options.seed)
    else:
        splits = [Split("query", np.arange(len(cells.labels)), np.arange(len(query.labels)))]
        sentence = f"trained on {cells.uri}, scored on {query.uri}"
    answers, pieces = [], pieces or Pieces()
    for split in splits:
        work = functools.partial(_answer_split, ready, split, labels, options)
        found, reused = pieces.compute(split.name, work, kinds=(Answers, Split, Choice, Blend))
        answers.append(found)
        advance(1, f"{split.name}: {found.choice.chosen}", already=reused)
    truth = np.searchsorted(np.asarray(labels, str), np.asarray(scored.labels, str)).astype(np.int64)
    if options.protocol == "leave-type-out":
        metrics, more = judge_unseen(answers, truth, labels, options.seed)
    else:
        metrics, more = judge_labels(answers, truth, labels, _units(scored), options.seed)
    transformer = options.transformer
    return Assessment(
        task="annotation",
        data=_describe(cells, query),
        split=sentence,
        metrics=metrics,
        chosen=dict(Counter(each.choice.chosen for each in answers)),
        why=tuple(f"{each.split.name}: {each.choice.why}" for each in answers),
        seeds=(options.seed,),
        seconds=time.monotonic() - started,
        model=None if transformer is None else transformer.opened.uri,
        contamination=None if transformer is None else transformer.contamination(ready.whole),
        warnings=tuple(ready.warnings),
        details=({} if ready.label_names is None else {"label_names": ready.label_names}) | more,
    )


def _prepare(cells: LabelledCells, query: LabelledCells | None, options: Options) -> _Prepared:
    """Leave out cells that cannot be used, and give both data sets common labels and genes."""
    cells, placeholders = without_placeholders(cells)
    warnings = [f"{count} cells labelled {label!r} were left out" for label, count in sorted(placeholders.items())]
    cells = _sample(cells, options.seed, warnings)
    whole, names = cells.expression, None
    if query is not None:
        query, placeholders = without_placeholders(query)
        warnings += [f"{count} query cells labelled {label!r} were left out" for label, count in placeholders.items()]
        query = _sample(query, options.seed, warnings)
        cells, query, names = _common_labels(cells, query, options.label_map, options.synonym)
        whole = query.expression
        cells, query = _common_genes(cells, query)
    elif options.label_map:
        cells = replace(cells, labels=tuple(options.label_map.get(label, label) for label in cells.labels))
    warnings += _check(cells, options.protocol)
    if query is not None:
        warnings += few_scored_warning(len(query.labels))
    return _Prepared(cells, query, whole, warnings, names)


def _answer_split(ready: _Prepared, split: Split, labels: list[str], options: Options) -> Answers:
    """Fit everything on the training cells of a split and annotate its test cells."""
    training, test = ready.cells.take(split.train), ready.scored.expression.take(split.test)
    elsewhere = ready.query is not None or ready.cells.batches is not None
    annotator, unseen = fit_annotator(
        training.expression, training.labels, labels=labels, elsewhere=elsewhere, seed=options.seed
    )
    alone = scratch = None
    if options.transformer is not None:
        annotator, alone = options.transformer.join(annotator, unseen, training.expression, test)
        scratch = options.transformer.from_scratch(unseen, training.expression, test)
    found = answer(annotator, test, split, adapt=ready.query is not None, transformer=alone)
    return replace(found, random_start=scratch)


def _sample(cells: LabelledCells, seed: int, warnings: list[str]) -> LabelledCells:
    """About MAX_CELLS of the cells, each label's share of them, and a warning if some were left out."""
    num_cells = len(cells.labels)
    if num_cells <= MAX_CELLS:
        return cells
    rows = few_labels(cells.labels, fraction=MAX_CELLS / num_cells, seed=seed).train
    warnings.append(f"{cells.uri}: a random sample of {len(rows):,} of {num_cells:,} cells was used")
    return cells.take(rows)


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


def _check(cells: LabelledCells, protocol: Protocol) -> list[str]:
    """Refuse labels that cannot be learned and batches that cannot be left out; return warnings about hard labels."""
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
    if protocol == "5-fold" and cells.batches is not None and len(set(cells.batches)) < 2:
        raise CorpusError(
            f"{cells.uri}: all {len(cells.labels)} cells are of the batch {cells.batches[0]!r}.",
            remedy="Name a column with several batches, or leave out --batch-key: folds are then of cells.",
        )
    return label_warnings(cells.labels, cells.batches)


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
        replace(each, expression=replace(each.expression, values=_only(each.expression.values, shared)))
        for each in (cells, query)
    )
    return first, second


def _only(values: sparse.csr_matrix, genes: npt.NDArray[np.int64]) -> sparse.csr_matrix:
    """The values of some genes, zero for the others."""
    kept = np.zeros(values.shape[1], bool)
    kept[genes] = True
    some = values.copy()
    some.data *= kept[some.indices]
    some.eliminate_zeros()
    return some
