"""Fit the annotator of a fine-tuned model on the labelled cells of its corpus, and attach it to the model's bundle."""

# C cells, H of them held out from the training of the transformer, K labels

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from cytoray.corpus.manifest import load_manifest
from cytoray.corpus.stream import LabelledSample, sample_labelled_cells
from cytoray.errors import ConfigError, CorpusError
from cytoray.evaluation.annotator import Annotator, fit_annotator, join_transformer
from cytoray.evaluation.annotator_file import FILE, to_bytes
from cytoray.evaluation.voters import Expression
from cytoray.model.bundle import Attachment, ModelBundle
from cytoray.model.predictor import CellPredictor
from cytoray.tasks.annotation.config import FinetuneConfig
from cytoray.tasks.annotation.product import as_expression, logarithms
from cytoray.tasks.starting import over_genes_of
from cytoray.tokens.cells import SparseCells

logger = logging.getLogger(__name__)
MAX_CELLS = 20_000  # that it learns from: more take long to tune and change little


@dataclass(frozen=True)
class AttachAnnotator:
    """The step of a fine-tuning run that completes its bundle before it is stored."""

    config: FinetuneConfig
    labels: tuple[str, ...]

    def __call__(self, bundle: ModelBundle) -> ModelBundle:
        """Return the bundle with an annotator attached; without, with a warning, if none can be fitted."""
        try:
            annotator = fit_bundle_annotator(bundle, self.config, self.labels)
        except (ConfigError, CorpusError) as error:  # a finished training is not lost for it
            logger.warning("The bundle has no annotator: %s", error)
            return bundle
        chosen = annotator.choice if annotator.joined is None else annotator.joined
        logger.info("annotator: %s", chosen.why)
        lineage = bundle.lineage | {"annotator": chosen.chosen}
        attachments = {**bundle.attachments, FILE: Attachment(to_bytes(annotator))}
        return replace(bundle, lineage=lineage, attachments=attachments)


def fit_bundle_annotator(bundle: ModelBundle, config: FinetuneConfig, labels: tuple[str, ...]) -> Annotator:
    """Fit an annotator on the labelled cells of the run's corpus; the transformer joins it if held-out cells say so.

    Without validation no labelled cell is new to the transformer, and it does not join.
    """
    training, held_out = _read(config, validation=False), _read(config, validation=True)
    known = SparseCells.concatenate([sample.cells for sample in (training, held_out) if sample is not None])
    names = [name for sample in (training, held_out) if sample is not None for name in sample.labels]
    rows = np.flatnonzero([name in labels for name in names])
    cells = over_genes_of(bundle.vocabulary, known.take(rows))
    expression = as_expression(cells, num_genes=bundle.vocabulary.size)
    if load_manifest(config.store, config.corpus).values == "expression":
        expression = Expression(expression.values, log_normalised=True)
    names = [names[row] for row in rows]
    annotator, unseen = fit_annotator(expression, names, labels=labels, seed=config.train.seed)
    assert training is not None, "a run has cells to learn from"
    new = np.flatnonzero(rows >= len(training.labels))
    if not len(new):
        return annotator
    answers = CellPredictor(bundle).predict(cells.take(new)).probabilities
    assert answers is not None, "a bundle with labels gives probabilities"
    return join_transformer(annotator, unseen, rows=new, answers=logarithms(answers), seed=config.train.seed)


def _read(config: FinetuneConfig, *, validation: bool) -> LabelledSample | None:
    """The labelled cells that the transformer learned from, or those of validation; None without validation."""
    if config.validation is None and validation:
        return None
    select = None
    if config.validation is not None:
        select = config.validation.select if validation else f"not ({config.validation.select})"
    manifest = load_manifest(config.store, config.corpus)
    return sample_labelled_cells(config.store, manifest, config.label_key, select=select, max_cells=MAX_CELLS)
