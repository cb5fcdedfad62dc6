"""Score annotations of held-out cells beside simple baselines, and how stable they are."""

# C cells, G genes

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from cytoray.corpus.manifest import load_manifest
from cytoray.corpus.reading import NamedCells, read_labelled_cells
from cytoray.corpus.stream import LabelledSample, sample_labelled_cells
from cytoray.drafts import replace_file
from cytoray.errors import ModelError
from cytoray.evaluation.baselines import logistic_regression, majority_class
from cytoray.evaluation.classification import ClassificationScores, score_classification
from cytoray.evaluation.plots import plot_confusion, plot_embedding
from cytoray.evaluation.report import write_scores
from cytoray.model.bundle import ModelBundle
from cytoray.model.predictor import CellPredictor, Predictions
from cytoray.model.stability import Stability, measure_stability
from cytoray.pages.charts import PictureFormat
from cytoray.registry.opening import open_model
from cytoray.runs import BundleRecord
from cytoray.tasks.annotation.config import EvaluateConfig, FinetuneConfig
from cytoray.tasks.annotation.product import build_predictor, bundle_annotator
from cytoray.tasks.starting import over_genes_of
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.labels import unshared_labels
from cytoray.tokens.vocabulary import GeneVocabulary

logger = logging.getLogger(__name__)
MAX_BASELINE_CELLS = 40_000  # that the baselines learn from: half a gigabyte at 1,500 genes per cell
STABILITY_CELLS = 500  # held-out cells that are annotated again with changes
CARD_CELLS = 100  # of them for a run card: four answers to each take a CPU a minute with the largest models


def run_evaluation(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate as a stage; returns the scores and the files as JSON data."""
    report = evaluate_configured(config)
    return {
        "scores": {name: scores.as_dict() for name, scores in report.scores.items()},
        "files": {name: str(path) for name, path in report.files.items()},
    }


def evaluate_configured(config: EvaluateConfig) -> AnnotationReport:
    """Score the configured model and the baselines on the configured cells, with plots."""
    opened = open_model(config.model, store=config.store, tracking=config.tracking, cache_folder=config.cache_folder)
    held_out = read_labelled_cells(config.data, config.label_key, vocabulary=opened.bundle.vocabulary)
    baseline = Baseline(config.store, config.baseline_corpus, config.label_key)
    return evaluate(opened.bundle, held_out, baseline, folder=Path(config.folder), formats=config.plots)


@dataclass(frozen=True)
class AnnotationReport:
    """Scores of the model and the baselines on held-out cells, and the files with plots."""

    scores: dict[str, ClassificationScores]  # cytoray, its transformer alone, logistic regression, majority class
    predictions: Predictions
    files: dict[str, Path]
    stability: dict[str, Stability]  # what of the model's answers survives which change


@dataclass(frozen=True)
class Baseline:
    """The labelled cells that the baselines learn from: those the model was fine-tuned on."""

    store: str
    corpus: str
    label_key: str

    def predict(
        self, test: SparseCells, *, training: LabelledSample | None = None, vocabulary: GeneVocabulary | None = None
    ) -> dict[str, Sequence[str]]:
        """Predict labels for ``test`` by two simple methods; ``training`` is the result of ``load``, if known.

        The genes of ``test`` are numbered as in ``vocabulary``, by default as in the corpus.
        """
        train = self.load() if training is None else training
        vocabulary = vocabulary or GeneVocabulary.load_default()
        cells = over_genes_of(vocabulary, train.cells)
        log_normalised = load_manifest(self.store, self.corpus).values == "expression"
        regression = logistic_regression(
            _matrix(cells, vocabulary.size),
            train_labels=train.labels,
            test=_matrix(test, vocabulary.size),
            log_normalised=log_normalised,
        )
        return {
            "logistic regression": regression.predicted,
            "majority class": majority_class(train.labels, test.num_cells),
        }

    def load(self) -> LabelledSample:
        """Cells with a label, of a large corpus a random sample, and a warning that it is one."""
        manifest = load_manifest(self.store, self.corpus)
        sample = sample_labelled_cells(self.store, manifest, self.label_key, max_cells=MAX_BASELINE_CELLS)
        if sample.is_sample:
            logger.warning(
                "The baselines learn from a random sample: %s of %s labelled cells of corpus %r.",
                f"{len(sample.labels):,}", f"{sample.num_labelled:,}", self.corpus,
            )  # fmt: skip
        return sample


def evaluate(
    bundle: ModelBundle,
    held_out: NamedCells,
    baseline: Baseline,
    *,
    folder: Path,
    formats: Sequence[PictureFormat] = ("png",),
) -> AnnotationReport:
    """Annotate held-out cells, score the model beside simple baselines, write scores and plots to ``folder``.

    Raises ModelError if the model has no classifier, or shares no label with the cells.
    """
    if not bundle.classes:
        raise ModelError("This bundle has no classifier and cannot annotate.", remedy="Evaluate a fine-tuned run.")
    truth = [str(label) for label in held_out.labels]
    _check_labels(truth, bundle.labels)
    folder.mkdir(parents=True, exist_ok=True)
    predictions = build_predictor(bundle).predict(held_out.cells)
    assert predictions.probabilities is not None, "a bundle with labels gives probabilities"
    predicted = [predictions.labels[best] for best in predictions.probabilities.argmax(axis=1)]
    labels = sorted({*truth, *predictions.labels})
    training = baseline.load()
    known = baseline.predict(held_out.cells, training=training, vocabulary=bundle.vocabulary)
    alone: dict[str, Sequence[str]] = {}
    if bundle_annotator(bundle) is not None:
        own = CellPredictor(bundle).predict(held_out.cells).probabilities
        assert own is not None, "a bundle with labels gives probabilities"
        alone["transformer alone"] = [bundle.labels[best] for best in own.argmax(axis=1)]
    answers = {"cytoray": predicted, **alone, **known}
    scores = {name: score_classification(truth, answer, labels=labels) for name, answer in answers.items()}
    plots = {name: [folder / f"{name}.{kind}" for kind in formats] for name in ("confusion", "umap")}
    files = {name: paths[0] for name, paths in plots.items()} | {"scores": folder / "scores.json"}
    write_scores(scores, files["scores"])
    learned = {"num_cells": len(training.labels), "num_labelled_cells": training.num_labelled}
    files["baselines"] = _write_json(folder / "baselines.json", learned | {"sampled": training.is_sample})
    plot_confusion(scores["cytoray"], plots["confusion"])
    title = "Held-out cells, cytoray embedding"
    plot_embedding(predictions.embeddings, truth, plots["umap"], predicted=predicted, title=title)
    stability = measure_stability(bundle, _spread(held_out.cells), annotate=bundle_annotator(bundle))
    figures = {name: found.as_dict() for name, found in stability.items()}
    files["stability"] = _write_json(folder / "stability.json", figures)
    return AnnotationReport(scores, predictions, files, stability)


def held_out_stability(config: FinetuneConfig, record: BundleRecord) -> dict[str, dict[str, float | int | None]]:
    """Return how stable the bundle's answers to some held-out cells are; empty if the run holds none out."""
    if config.validation is None:
        return {}
    manifest = load_manifest(config.store, config.corpus)
    select = config.validation.select
    sample = sample_labelled_cells(config.store, manifest, config.label_key, select=select, max_cells=CARD_CELLS)
    bundle = open_model(record.uri, cache_folder=config.cache_folder).bundle
    cells = over_genes_of(bundle.vocabulary, sample.cells)
    stability = measure_stability(bundle, cells, annotate=bundle_annotator(bundle))
    return {name: found.as_dict() for name, found in stability.items()}


def _spread(cells: SparseCells) -> SparseCells:
    """Some of the cells, evenly spread over all of them."""
    count = min(cells.num_cells, STABILITY_CELLS)
    return cells.take(np.arange(count, dtype=np.int64) * cells.num_cells // max(1, count))


def _write_json(path: Path, figures: Mapping[str, object]) -> Path:
    replace_file(path, (json.dumps(figures, indent=1) + "\n").encode())
    return path


def _check_labels(truth: Sequence[str], known: Sequence[str]) -> None:
    """Refuse held-out labels of which the model knows none; log those that it cannot predict."""
    problem = unshared_labels(truth, known)
    if problem is not None:
        raise ModelError(
            f"The held-out cells and the model share no label: {problem}.",
            remedy="Set label_key to the column that the model was fine-tuned on, or rename its values to the model's.",
            labels=sorted(set(truth))[:20],
            known=list(known[:20]),
        )
    if unknown := sorted(set(truth) - set(known)):
        logger.warning("the model cannot predict %d labels of the held-out cells: %s", len(unknown), ", ".join(unknown))


def _matrix(cells: SparseCells, num_genes: int) -> sparse.csr_matrix:
    """Cells as a (C, vocabulary) matrix for the baselines."""
    return sparse.csr_matrix((cells.values, cells.gene_ids, cells.indptr), shape=(cells.num_cells, num_genes))
