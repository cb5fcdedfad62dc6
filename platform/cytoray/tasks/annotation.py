"""Cell-type annotation: fine-tune a model on labelled cells, and compare it with simple baselines."""

# C cells, G genes

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import sparse

from cytoray import progress
from cytoray.corpus.manifest import load_manifest
from cytoray.corpus.reading import NamedCells
from cytoray.corpus.stream import LabelledSample, open_stream, sample_labelled_cells
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.errors import ConfigError, CorpusError, ModelError
from cytoray.evaluation.baselines import logistic_regression, majority_class
from cytoray.evaluation.classification import ClassificationScores, score_classification
from cytoray.evaluation.figures import PictureFormat
from cytoray.evaluation.plots import plot_confusion, plot_embedding
from cytoray.evaluation.report import replace_file, write_scores
from cytoray.model.bundle import ModelBundle
from cytoray.model.predictor import CellPredictor, Predictions
from cytoray.model.stability import Stability, measure_stability
from cytoray.registry.opening import OpenedModel, open_model
from cytoray.runs import BundleRecord
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.labels import missing_spellings_warning, unshared_labels
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.translation import Translation
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.training.config import FinetuneConfig
from cytoray.training.export import ExportSpec, export_bundles
from cytoray.training.initial import InitialModel
from cytoray.training.objectives import ClassificationObjective
from cytoray.training.trainer import TrainingResult, TrainingSpec, run_training
from cytoray.training.validation import held_in, open_held_out

logger = logging.getLogger(__name__)
MAX_BASELINE_CELLS = 40_000  # that the baselines learn from: half a gigabyte at 1,500 genes per cell
# What a value means to the weights; max_length, seed and ties may differ.
TRAINED_KEYS = ("n_bins", "cls_value", "pad_value", "mask_value")
STABILITY_CELLS = 500  # held-out cells that are annotated again with changes
CARD_CELLS = 100  # of them for a run card: four answers to each take a CPU a minute with the largest models


def finetune(
    config: FinetuneConfig, *, advance: progress.Advance = progress.silent
) -> tuple[TrainingResult, BundleRecord]:
    """Fine-tune the model that ``config.initial`` names on the labelled cells of a corpus; ``advance`` counts steps.

    Vocabulary and tokenizer are the model's: keys of ``config.tokenizer`` that are not set are inherited, and genes of
    the corpus that the model does not have are left out. Raises ConfigError if a key contradicts the model's,
    ModelError if it needs more of a cell than genes and values.
    """
    opened = open_model(
        config.initial_uri, store=config.store, tracking=config.tracking, cache_folder=config.cache_folder
    )
    pretrained = opened.bundle
    _refuse_conditions(opened)
    config = config.model_copy(update={"tokenizer": inherited_tokenizer(config, pretrained.tokenizer_config)})
    options = StreamOptions(config.tokenizer, config.train.seed, config.train.cells_per_step, config.label_key)
    options = replace(options, translation=_translate(opened))
    stream = open_stream(config.store, config.corpus, held_in(options, config))
    if len(stream.labels) < 2:
        raise CorpusError(
            f"Corpus {config.corpus!r}: {config.label_key!r} has only the label {stream.labels[0]!r}.",
            remedy="Set label_key to a column with at least two kinds of cells.",
        )
    if warning := missing_spellings_warning(stream.labels, where=f"Corpus {config.corpus!r}, obs/{config.label_key}"):
        logger.warning(warning)
    model = pretrained.model.config.model_copy(update={"num_labels": len(stream.labels)})
    pad_id = pretrained.vocabulary.pad_id
    objective = ClassificationObjective(pad_id)
    held_out = open_held_out(options, config, like=stream)
    initial = initial_weights(opened, labels=stream.labels)
    result = run_training(TrainingSpec(config, stream, model, pad_id, objective, initial, held_out), advance=advance)
    spec = ExportSpec(model, pretrained.vocabulary, stream.labels, parent=opened.digest)
    return result, export_bundles(config, result, spec)


def inherited_tokenizer(config: FinetuneConfig, parent: TokenizerConfig) -> TokenizerConfig:
    """Return the tokenizer of the model that is fine-tuned, with the keys that ``config`` sets and the model allows.

    Raises ConfigError for bins and special values that are not those the weights were trained with.
    """
    own = {key: getattr(config.tokenizer, key) for key in config.tokenizer.model_fields_set}
    for key in TRAINED_KEYS:
        if key in own and own[key] != getattr(parent, key):
            raise ConfigError(
                f"tokenizer.{key} is {own[key]}, but {config.initial_uri!r} was trained with {getattr(parent, key)}.",
                remedy=f"Leave tokenizer.{key} out: it is inherited from the initial model.",
                key=f"tokenizer.{key}",
            )
    return parent.model_copy(update=own)


def _refuse_conditions(opened: OpenedModel) -> None:
    """Raise ModelError for a model whose tokens need more than genes and values."""
    if needed := opened.bundle.model.config.needed_conditions:
        raise ModelError(
            f"{opened.uri} needs {' and '.join(needed)} for each cell, which fine-tuning for annotation does not give.",
            remedy="Start from a model of genes and values, such as the pretrained ones.",
        )


def _translate(opened: OpenedModel) -> Translation | None:
    """Return the translation from the corpus's genes to the model's; None if both have the default vocabulary."""
    translation = Translation.to(opened.bundle.vocabulary)
    if translation is not None:
        logger.info(
            "%s has a vocabulary of its own, with %s of the %s genes that corpora are stored over; others are left out",
            opened.uri, f"{translation.num_genes:,}", f"{len(translation.table):,}",
        )  # fmt: skip
    return translation


def initial_weights(opened: OpenedModel, *, labels: tuple[str, ...]) -> InitialModel:
    """Return the weights to start from; without the classifier, unless it is one of the same labels."""
    bundle = opened.bundle
    weights = {
        name: tensor
        for name, tensor in bundle.model.state_dict().items()
        if bundle.labels == labels or not name.startswith("cls_decoder.")
    }
    return InitialModel(opened.uri, opened.digest, weights)


@dataclass(frozen=True)
class AnnotationReport:
    """Scores of the model and the baselines on held-out cells, and the files with plots."""

    scores: dict[str, ClassificationScores]  # model, logistic regression, majority class
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
        cells = _over_genes_of(vocabulary, train.cells)
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
    if not bundle.labels:
        raise ModelError("This bundle has no classifier and cannot annotate.", remedy="Evaluate a fine-tuned run.")
    truth = [str(label) for label in held_out.labels]
    _check_labels(truth, bundle.labels)
    folder.mkdir(parents=True, exist_ok=True)
    predictions = CellPredictor(bundle).predict(held_out.cells)
    assert predictions.probabilities is not None, "a bundle with labels gives probabilities"
    predicted = [predictions.labels[best] for best in predictions.probabilities.argmax(axis=1)]
    labels = sorted({*truth, *predictions.labels})
    training = baseline.load()
    known = baseline.predict(held_out.cells, training=training, vocabulary=bundle.vocabulary)
    answers = {"cytoray": predicted, **known}
    scores = {name: score_classification(truth, answer, labels=labels) for name, answer in answers.items()}
    plots = {name: [folder / f"{name}.{kind}" for kind in formats] for name in ("confusion", "umap")}
    files = {name: paths[0] for name, paths in plots.items()} | {"scores": folder / "scores.json"}
    write_scores(scores, files["scores"])
    learned = {"num_cells": len(training.labels), "num_labelled_cells": training.num_labelled}
    files["baselines"] = _write_json(folder / "baselines.json", learned | {"sampled": training.is_sample})
    plot_confusion(scores["cytoray"], plots["confusion"])
    title = "Held-out cells, cytoray embedding"
    plot_embedding(predictions.embeddings, truth, plots["umap"], predicted=predicted, title=title)
    stability = measure_stability(bundle, _spread(held_out.cells))
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
    cells = _over_genes_of(bundle.vocabulary, sample.cells)
    return {name: found.as_dict() for name, found in measure_stability(bundle, cells).items()}


def _over_genes_of(vocabulary: GeneVocabulary, cells: SparseCells) -> SparseCells:
    """Return cells of a corpus with their genes numbered as in ``vocabulary``."""
    translation = Translation.to(vocabulary)
    return cells if translation is None else translation.apply_sparse(cells)


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
