"""The transformer in an assessment: fine-tuned on labelled cells in this process, beside the cheap annotators."""

# C training cells, H of them held out from fine-tuning, T cells to annotate, K labels

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch

from cytoray import progress
from cytoray.corpus.contamination import share_of_training
from cytoray.errors import ModelError
from cytoray.evaluation.annotator import Annotator, HeldOut, join_transformer
from cytoray.evaluation.splits import Split, stratified_folds
from cytoray.evaluation.voters import Expression, Float64, Int64
from cytoray.model.bundle import ModelBundle
from cytoray.model.fitting import Examples, Fit, FitConfig, hold_out, seeded, with_head
from cytoray.model.predictor import CellPredictor
from cytoray.model.transformer import ScGPT
from cytoray.registry.opening import OpenedModel, open_model
from cytoray.tasks.annotation.assess_config import AssessAnnotationConfig
from cytoray.tasks.annotation.product import logarithms
from cytoray.tasks.starting import over_genes_of
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.packed import PackedCells

HELD_OUT_FOLDS = 5  # one of them judges the transformer
PATIENCE = 3  # epochs without a better validation loss
WITHOUT_GENES = 1.0  # divided by K: the probability of each label for a cell without a gene that the model knows


@dataclass(frozen=True, eq=False)
class Transformer:
    """A pretrained model, and how it is fine-tuned in each split."""

    opened: OpenedModel
    fit: FitConfig
    store: str | None = None  # in which the model's corpus is looked for
    random_start: bool = False  # whether random weights are fine-tuned as well

    def __post_init__(self) -> None:
        if needed := self.opened.bundle.model.config.needed_conditions:
            raise ModelError(
                f"{self.opened.uri} needs {' and '.join(needed)} for each cell, which annotation does not give.",
                remedy="Assess a model of genes and values, such as the pretrained ones.",
            )

    def join(
        self, annotator: Annotator, unseen: HeldOut, cells: Expression, test: Expression
    ) -> tuple[Annotator, Float64]:
        """Fine-tune on most training cells; return the annotator it has joined, if it helps, and its answers.

        ``annotator`` and ``unseen`` are those fitted on ``cells``. The answers to the test cells are log-probabilities
        (T, K). One fold of the training cells judges whether it helps: it is not fine-tuned on.
        """
        fold = self._fold(unseen)
        bundle = self._fine_tune(cells.take(fold.train), unseen.codes[fold.train], unseen.blend.shape[1])
        judged = self._answer(bundle, cells.take(fold.test))
        joined = join_transformer(annotator, unseen, rows=fold.test, answers=judged, seed=self.fit.seed)
        return joined, self._answer(bundle, test)

    def from_scratch(self, unseen: HeldOut, cells: Expression, test: Expression) -> Float64 | None:
        """Return the answers (T, K) of random weights that were fine-tuned likewise; None if they are not asked for."""
        if not self.random_start:
            return None
        fold = self._fold(unseen)
        codes, num_labels = unseen.codes[fold.train], unseen.blend.shape[1]
        return self._answer(self._fine_tune(cells.take(fold.train), codes, num_labels, is_random=True), test)

    def contamination(self, cells: Expression) -> float | None:
        """Return the share of the cells that are in the model's pretraining corpus; None if that is not known."""
        return share_of_training(self.store, self.opened.bundle.lineage, as_cells(cells))

    def _fold(self, unseen: HeldOut) -> Split:
        names = [str(code) for code in unseen.codes]
        return stratified_folds(names, num_folds=HELD_OUT_FOLDS, seed=self.fit.seed)[0]

    def _fine_tune(
        self, training: Expression, codes: Int64, num_labels: int, *, is_random: bool = False
    ) -> ModelBundle:
        source, cells = self.opened.bundle, self._cells(training)
        labels = tuple(str(code) for code in range(num_labels))
        shape = source.model.config.model_copy(update={"num_labels": num_labels})
        model = with_head(source, shape, seed=self.fit.seed, keep=False)
        if is_random:
            with seeded(self.fit.seed):
                model = ScGPT(shape, pad_id=source.vocabulary.pad_id).to(source.model.device)
        bundle = replace(copy.copy(source), model=model, labels=labels, digest=None, attachments={})
        rows = np.flatnonzero(cells.num_genes_per_cell > 0)
        packed = bundle.tokenizer().pack(cells.take(rows))
        assert isinstance(packed, PackedCells), "cells become packed"
        examples = Examples(packed, torch.from_numpy(codes[rows]))
        kept, judging = hold_out(codes[rows], fraction=self.fit.validation_fraction, seed=self.fit.seed)
        validation = examples.take(judging) if len(judging) else None
        Fit(bundle, "classification", self.fit).run(examples.take(kept), validation, advance=progress.silent)
        return bundle

    def _answer(self, bundle: ModelBundle, cells: Expression) -> Float64:
        found = CellPredictor(bundle, empty_cells="nan").predict(self._cells(cells)).probabilities
        assert found is not None, "a bundle with labels gives probabilities"
        return logarithms(np.where(np.isnan(found), WITHOUT_GENES / found.shape[1], found))

    def _cells(self, cells: Expression) -> SparseCells:
        """The cells over the vocabulary of the model."""
        return over_genes_of(self.opened.bundle.vocabulary, as_cells(cells))


def open_transformer(config: AssessAnnotationConfig) -> Transformer:
    """Open the model that an assessment names."""
    assert config.model is not None, "a model is named"
    opened = open_model(config.model, store=config.store, tracking=config.tracking, cache_folder=config.cache_folder)
    fit = FitConfig(
        epochs=config.epochs,
        learning_rate=config.learning_rate,
        batch_size=32,
        patience=PATIENCE,
        validation_fraction=0.1,
        seed=config.seed,
    )
    return Transformer(opened, fit, config.store, config.random_start)


def as_cells(cells: Expression) -> SparseCells:
    """Return cells as those of a corpus, without zeros."""
    matrix = cells.values.sorted_indices()
    matrix.eliminate_zeros()
    rows = np.arange(matrix.shape[0], dtype=np.uint64)
    values = matrix.data.astype(np.float32)
    return SparseCells(matrix.indices.astype(np.int32), values, matrix.indptr.astype(np.int64), rows)
