"""Assess the prediction of proteins from RNA on anyone's cells: a simple method, a blend of methods, and the noise.

Protocols: 5-fold (of cells, or of whole batches) and transfer to a query. Nothing is chosen on the cells that are
scored: components, options and weights come from folds of the training cells.
"""

# C cells, P proteins

from __future__ import annotations

import functools
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from cytoray import progress
from cytoray.errors import CorpusError
from cytoray.evaluation.assessment import Assessment
from cytoray.evaluation.assessment_page import AssessedTask
from cytoray.evaluation.splits import Split, grouped_folds, stratified_folds
from cytoray.tasks.annotation.labelled import confounding_warning
from cytoray.tasks.multiomic.assess_config import AssessMultiomicConfig
from cytoray.tasks.multiomic.assessment_page import multiomic_sections
from cytoray.tasks.multiomic.blending import Rounds, fit_proteins, folds_of
from cytoray.tasks.multiomic.joint import judge_joint
from cytoray.tasks.multiomic.judging import Pooled, SplitAnswers, judge_proteins
from cytoray.tasks.multiomic.paired import Float64, Int64, PairedCells, protein_word
from cytoray.tasks.multiomic.reading import read_paired
from cytoray.tasks.multiomic.unseen import judge_unseen_proteins
from cytoray.tasks.pieces import Pieces

if TYPE_CHECKING:  # torch: only if a model is named
    from cytoray.tasks.multiomic.embedding import UsedModel

NUM_FOLDS = 5
FEWEST_CELLS = 20
MAX_CELLS = 20_000  # of each data set: their 4,000 genes take 320 MB


def run_assessment(config: AssessMultiomicConfig, pieces: Pieces) -> AssessedTask:
    """Read the cells that ``config`` names and assess the prediction of their proteins; each split is a piece."""
    cells = read_paired(
        config.data, protein_key=config.protein_key, label_key=config.label_key, batch_key=config.batch_key
    )
    query = None
    if config.query is not None:
        query = read_paired(config.query, protein_key=config.protein_key, label_key=config.label_key)
    used = None
    if config.model is not None:
        from cytoray.tasks.multiomic.embedding import add_embeddings

        for each in (cells, query) if query is not None else (cells,):
            _check(each)  # before all of them are embedded
        cells, query, used = add_embeddings(cells, query, config, pieces=pieces)
    total = 1 if query is not None else num_splits(cells)
    with progress.stage("assess", total=total, unit="splits") as advance:
        found = assess_proteins(cells, Options(used, config.seed), query=query, pieces=pieces, advance=advance)
    return AssessedTask(found, multiomic_sections(found))


def num_splits(cells: PairedCells) -> int:
    """Return how many folds are trained and scored."""
    return min(NUM_FOLDS, len(set(cells.batches))) if cells.batches is not None else NUM_FOLDS


@dataclass(frozen=True)
class Options:
    """How protein prediction is assessed; ``model`` is the transformer of the cells' embeddings."""

    model: UsedModel | None = None
    seed: int = 0


def assess_proteins(
    cells: PairedCells,
    options: Options,
    *,
    query: PairedCells | None = None,
    pieces: Pieces | None = None,
    advance: progress.Advance = progress.silent,
) -> Assessment:
    """Assess protein prediction on folds of ``cells``, or trained on them and scored on ``query``.

    Splits that are among the ``pieces`` are not computed again; ``advance`` counts splits. Raises CorpusError for data
    that cannot be used.
    """
    started, seed, pieces = time.monotonic(), options.seed, pieces or Pieces()
    warnings = [*cells.warnings, *(f"query: {text}" for text in (query.warnings if query is not None else ()))]
    cells = _sample(cells, seed, warnings)
    if query is not None:
        query = _sample(query, seed, warnings)
        cells, query = common_features(cells, query, warnings)
    for each in (cells, query) if query is not None else (cells,):
        _check(each)
    if query is None and cells.batches is not None and cells.labels is not None:
        warnings += confounding_warning(cells.labels, cells.batches)
    scored = cells if query is None else query
    splits, sentence = _plan(cells, query, seed)
    pooled = Pooled.empty(scored)
    answers: list[SplitAnswers] = []
    inputs = ", RNA" if cells.embeddings is None else ", RNA and embeddings"  # a model may be left out
    for split in splits:
        work = functools.partial(_answer_split, cells, scored, split, seed)
        found, reused = pieces.compute(f"{split.name}{inputs}", work, kinds=(SplitAnswers,))
        pooled.add(split, found)
        answers.append(found)
        advance(1, f"{split.name}: {found.chosen}", already=reused)
    metrics, details = judge_proteins(scored, pooled, seed)
    details["splits"] = [_describe_split(split, found) for split, found in zip(splits, answers, strict=True)]
    details["weights"] = mean_weights(answers)
    transformer = None if options.model is None else options.model.transformer
    embed = transformer.embed if transformer is not None and cells.proteins.are_counts else None
    details["unseen_proteins"], _ = pieces.compute("unseen", lambda: judge_unseen_proteins(cells, seed=seed))
    details["joint"], _ = pieces.compute("joint", lambda: judge_joint(cells, embed=embed, seed=seed))
    return Assessment(
        task="multiomic",
        data=_describe(cells, query),
        split=sentence,
        metrics=metrics,
        chosen=dict(Counter(each.chosen for each in answers)),
        why=tuple(f"{split.name}: {each.why}" for split, each in zip(splits, answers, strict=True)),
        seeds=(seed,),
        seconds=time.monotonic() - started,
        model=None if options.model is None else options.model.uri,
        contamination=None if options.model is None else options.model.contamination,
        warnings=tuple(warnings),
        details=details,
    )


def inner_rounds(cells: PairedCells, *, elsewhere: bool, seed: int) -> Rounds:
    """Return the folds on which options and weights are chosen: whole batches if there are several."""
    num = folds_of(np.arange(cells.num_cells))
    if cells.batches is not None and len(set(cells.batches)) > 1:
        folds = grouped_folds(cells.batches, num_folds=num, seed=seed)
    else:
        folds = stratified_folds(["cell"] * cells.num_cells, num_folds=num, seed=seed)
    return Rounds(tuple(folds), is_disturbed=elsewhere)


def _answer_split(cells: PairedCells, scored: PairedCells, split: Split, seed: int) -> SplitAnswers:
    """Fit everything on the training cells of a split and predict the proteins of its test cells."""
    training, test = cells.take(split.train), scored.take(split.test)
    rounds = inner_rounds(training, elsewhere=scored is not cells or cells.batches is not None, seed=seed)
    targets = training.proteins.targets
    fitted = fit_proteins(training.rna, targets, rounds, embeddings=training.embeddings, seed=seed)
    product, members = fitted.predict(test.rna, test.embeddings)
    return SplitAnswers(
        product=product,
        members=members,
        floor=targets.mean(axis=0),
        weights=dict(fitted.blend.weights),
        baseline=fitted.baseline,
        transformer=fitted.transformer,
        chosen=fitted.chosen,
        why=fitted.why,
        scores=dict(fitted.scores),
        options={name: dict(option) for name, option in fitted.options.items()},
    )


def _plan(cells: PairedCells, query: PairedCells | None, seed: int) -> tuple[list[Split], str]:
    if query is not None:
        split = Split("query", np.arange(cells.num_cells), np.arange(query.num_cells))
        return [split], f"trained on {cells.uri}, scored on {query.uri}"
    if cells.batches is not None:
        splits = grouped_folds(cells.batches, num_folds=NUM_FOLDS, seed=seed)
        return splits, f"{len(splits)} folds of whole batches"
    return stratified_folds(["cell"] * cells.num_cells, num_folds=NUM_FOLDS, seed=seed), f"{NUM_FOLDS} folds of cells"


def _check(cells: PairedCells) -> None:
    if cells.num_cells < FEWEST_CELLS:
        raise CorpusError(
            f"{cells.uri}: {cells.num_cells} cells with proteins; at least {FEWEST_CELLS} are needed.",
            remedy="Give more cells.",
        )
    if cells.rna.values.nnz == 0:
        raise CorpusError(f"{cells.uri}: no cell has a count of RNA.", remedy="Check which matrix holds the counts.")
    if cells.batches is not None and len(set(cells.batches)) < 2:
        raise CorpusError(
            f"{cells.uri}: all cells are of batch {cells.batches[0]!r}.",
            remedy="Leave out --batch-key: folds are then of cells.",
        )


def _sample(cells: PairedCells, seed: int, warnings: list[str]) -> PairedCells:
    """At most MAX_CELLS of the cells, with a warning if some were left out."""
    if cells.num_cells <= MAX_CELLS:
        return cells
    rows = np.sort(np.random.default_rng(seed).permutation(cells.num_cells)[:MAX_CELLS])
    warnings.append(f"{cells.uri}: a random sample of {MAX_CELLS:,} of {cells.num_cells:,} cells was used")
    return cells.take(rows)


def common_features(cells: PairedCells, query: PairedCells, warnings: list[str]) -> tuple[PairedCells, PairedCells]:
    """Return both data sets with the genes and proteins that occur in both; CorpusError without any."""
    if cells.proteins.are_counts != query.proteins.are_counts:
        kinds = ["counts" if each.proteins.are_counts else "normalised values" for each in (cells, query)]
        raise CorpusError(
            f"The proteins of {cells.uri} are {kinds[0]}, those of {query.uri} {kinds[1]}.",
            remedy="Name matrices of counts in both files with --protein-key.",
        )
    genes = _shared(cells.genes, query.genes)
    if not genes:
        raise CorpusError(f"{cells.uri} and {query.uri} share no gene.", remedy="Check the names of the genes.")
    words = [{protein_word(name): place for place, name in enumerate(each.proteins.names)} for each in (cells, query)]
    shared = _shared(tuple(words[0]), tuple(words[1]))
    if not shared:
        raise CorpusError(
            f"{cells.uri} and {query.uri} share no protein: {', '.join(cells.proteins.names[:5])} and "
            f"{', '.join(query.proteins.names[:5])}.",
            remedy="Name proteins in the same way in both files.",
        )
    if len(shared) < max(len(cells.proteins.names), len(query.proteins.names)):
        warnings.append(f"{len(shared)} proteins occur in both data sets; the others were left out before CLR")
    both = [
        replace(
            each,
            rna=replace(each.rna, values=each.rna.values[:, _places(each.genes, genes)]),
            genes=tuple(genes),
            proteins=each.proteins.select([places[word] for word in shared]),
        )
        for each, places in zip((cells, query), words, strict=True)
    ]
    named = replace(both[1].proteins, names=both[0].proteins.names)
    return both[0], replace(both[1], proteins=named)


def _shared(first: tuple[str, ...], second: tuple[str, ...]) -> list[str]:
    there = set(second)
    return [name for name in first if name in there]


def _places(names: tuple[str, ...], wanted: list[str]) -> Int64:
    place = {name: number for number, name in enumerate(names)}
    return np.array([place[name] for name in wanted], np.int64)


def mean_weights(answers: list[SplitAnswers]) -> list[dict[str, Any]]:
    """Return the weight of each member, averaged over proteins and splits, beside its score on cells not seen."""
    rows = []
    for name in answers[0].members:
        weights: list[Float64] = [np.asarray(each.weights.get(name, np.zeros(1)), np.float64) for each in answers]
        score = float(np.mean([each.scores[name] for each in answers]))
        rows.append({"member": name, "weight": float(np.mean([w.mean() for w in weights])), "pearson": score})
    return rows


def _describe(cells: PairedCells, query: PairedCells | None) -> dict[str, Any]:
    described: dict[str, Any] = {"uri": cells.uri, "digest": cells.digest, "num_cells": cells.num_cells}
    if query is not None:
        described["query"] = {"uri": query.uri, "digest": query.digest, "num_cells": query.num_cells}
    return described


def _describe_split(split: Split, found: SplitAnswers) -> dict[str, Any]:
    return {
        "name": split.name,
        "num_train": len(split.train),
        "num_test": len(split.test),
        "baseline": _option_text(found, found.baseline),
        "chosen": found.chosen,
        "held_out": found.scores[found.chosen],
    }


def _option_text(found: SplitAnswers, name: str) -> str:
    option = ", ".join(f"{key} {value:g}" for key, value in found.options[name].items())
    return f"{name} ({option})" if option else name
