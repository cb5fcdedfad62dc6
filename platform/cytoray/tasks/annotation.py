"""Cell-type annotation: fine-tune a pretrained run on labelled cells, and judge it beside simple baselines."""

# C cells, G genes

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse

from cytoray import progress, storage
from cytoray.corpus.manifest import CorpusManifest, load_manifest
from cytoray.corpus.reading import NamedCells
from cytoray.corpus.stream import load_cells, open_stream
from cytoray.corpus.streaming.obs import read_obs
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.errors import CorpusError, ModelError
from cytoray.evaluation.baselines import logistic_regression, majority_class
from cytoray.evaluation.classification import ClassificationScores, score_classification
from cytoray.evaluation.plots import plot_confusion, plot_embedding
from cytoray.evaluation.report import replace_file, write_scores
from cytoray.model.bundle import ModelBundle, load_bundle
from cytoray.model.predictor import CellPredictor, Predictions
from cytoray.model.stability import Stability, measure_stability
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.training.checkpoint import best_checkpoint, require_checkpoint
from cytoray.training.config import FinetuneConfig
from cytoray.training.export import BundleRecord, export_bundles, find_bundle
from cytoray.training.objectives import ClassificationObjective
from cytoray.training.trainer import TrainingResult, TrainingSpec, run_training
from cytoray.training.validation import held_in, open_held_out

STABILITY_CELLS = 500  # first cells whose answers are asked for again with changes


def finetune(
    config: FinetuneConfig, *, advance: progress.Advance = progress.silent
) -> tuple[TrainingResult, BundleRecord]:
    """Fine-tune the last checkpoint of ``initial_run`` on the labelled cells of a corpus; ``advance`` counts steps."""
    options = StreamOptions(config.tokenizer, config.train.seed, config.train.cells_per_step, config.label_key)
    stream = open_stream(config.store, config.corpus, held_in(options, config))
    if len(stream.labels) < 2:
        raise CorpusError(
            f"Corpus {config.corpus!r}: {config.label_key!r} has only the label {stream.labels[0]!r}.",
            remedy="Name a column that tells at least two kinds of cells apart.",
        )
    initial = best_checkpoint(config.store, config.initial_run) or require_checkpoint(config.store, config.initial_run)
    parent = find_bundle(config.store, config.initial_run)
    model = _load(parent).model.config.model_copy(update={"num_labels": len(stream.labels)})
    vocabulary = GeneVocabulary.load_default()
    objective = ClassificationObjective(vocabulary.pad_id)
    held_out = open_held_out(options, config, labels=stream.labels)
    spec = TrainingSpec(config, stream, model, vocabulary.pad_id, objective, initial, held_out)
    result = run_training(spec, advance=advance)
    return result, export_bundles(config, result, model=model, labels=stream.labels, parent=parent.digest)


def _load(record: BundleRecord) -> ModelBundle:
    """A bundle from the store, verified."""
    with tempfile.TemporaryDirectory(prefix="cytoray-bundle-") as scratch:
        storage.download_folder(record.uri, Path(scratch) / "bundle")
        return load_bundle(Path(scratch) / "bundle")


@dataclass(frozen=True)
class AnnotationReport:
    """How well held-out cells were annotated, by whom, and where the pictures are."""

    scores: dict[str, ClassificationScores]  # model, logistic regression, majority class
    predictions: Predictions
    files: dict[str, Path]
    stability: dict[str, Stability]  # what of the model's answers survives which change


@dataclass(frozen=True)
class Baseline:
    """The labelled cells that the simple baselines learn from: those the model was fine-tuned on."""

    store: str
    corpus: str
    label_key: str

    def predict(self, test: SparseCells) -> dict[str, Sequence[str]]:
        """Labels for ``test`` by logistic regression and by majority class."""
        manifest = load_manifest(self.store, self.corpus)
        train, labels = self._load(manifest)
        log_normalised = manifest.values == "expression"
        regression = logistic_regression(
            _matrix(train), train_labels=labels, test=_matrix(test), log_normalised=log_normalised
        )
        return {
            "logistic regression": regression.predicted,
            "majority class": majority_class(labels, test.num_cells),
        }

    def _load(self, manifest: CorpusManifest) -> tuple[SparseCells, list[str]]:
        """Cells with a label, and their labels."""
        cells = load_cells(self.store, manifest)
        labels = [label for column in read_obs(self.store, manifest, self.label_key) for label in column]
        rows = np.flatnonzero([label is not None for label in labels])
        return cells.take(rows), [str(labels[row]) for row in rows]


def evaluate(bundle: ModelBundle, held_out: NamedCells, baseline: Baseline, *, folder: Path) -> AnnotationReport:
    """Annotate held-out cells, score the model beside simple baselines, write scores and plots to ``folder``."""
    if not bundle.labels:
        raise ModelError("This bundle has no classifier, so it cannot annotate.", remedy="Evaluate a fine-tuned run.")
    folder.mkdir(parents=True, exist_ok=True)
    predictions = CellPredictor(bundle).predict(held_out.cells)
    assert predictions.probabilities is not None, "a bundle with labels gives probabilities"
    truth = [str(label) for label in held_out.labels]
    predicted = [predictions.labels[best] for best in predictions.probabilities.argmax(axis=1)]
    labels = sorted({*truth, *predictions.labels})
    answers = {"cytoray": predicted, **baseline.predict(held_out.cells)}
    scores = {name: score_classification(truth, answer, labels=labels) for name, answer in answers.items()}
    files = {name: folder / f"{name}.png" for name in ("confusion", "umap")} | {"scores": folder / "scores.json"}
    write_scores(scores, files["scores"])
    plot_confusion(scores["cytoray"], files["confusion"])
    plot_embedding(
        predictions.embeddings, truth, files["umap"], predicted=predicted, title="Held-out cells, cytoray embedding"
    )
    stability = measure_stability(
        bundle, held_out.cells.take(np.arange(min(held_out.cells.num_cells, STABILITY_CELLS)))
    )
    files["stability"] = folder / "stability.json"
    figures = {name: found.as_dict() for name, found in stability.items()}
    replace_file(files["stability"], (json.dumps(figures, indent=1) + "\n").encode())
    return AnnotationReport(scores, predictions, files, stability)


def _matrix(cells: SparseCells) -> sparse.csr_matrix:
    """Cells as a (C, vocabulary) matrix for the baselines."""
    shape = (cells.num_cells, GeneVocabulary.load_default().size)
    return sparse.csr_matrix((cells.values, cells.gene_ids, cells.indptr), shape=shape)
