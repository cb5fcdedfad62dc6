"""Parts that a transformer adds to proteins and joint spaces: embeddings and, of a multi-omic one, predicted proteins.

A multi-omic model that was trained on the cells has seen their proteins: it is used only if it is known not to be.
"""

# C cells, P proteins, D dimensions

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cytoray.corpus.config import SourceConfig
from cytoray.corpus.contamination import share_of_training
from cytoray.corpus.reading import read_cells
from cytoray.model.predictor import CellPredictor
from cytoray.registry.opening import OpenedModel, open_model
from cytoray.tasks.multiomic.assess_config import AssessMultiomicConfig
from cytoray.tasks.multiomic.paired import Float32, PairedCells, protein_word
from cytoray.tasks.multiomic.transformer import MultiomicTransformer
from cytoray.tasks.pieces import Pieces
from cytoray.tokens.features import RNA
from cytoray.tokens.packed import PackedCells
from cytoray.tokens.vocabulary import GeneVocabulary


@dataclass(frozen=True, eq=False)
class ProteinTransformer:
    """A multi-omic model with tokens of some of a data set's proteins."""

    model: MultiomicTransformer
    modality: str

    @staticmethod
    def find(opened: OpenedModel, proteins: Sequence[str]) -> ProteinTransformer | None:
        """Return the model with the modality that has most of the proteins; None if it has none of them."""
        if not opened.bundle.features():
            return None
        model = MultiomicTransformer(opened.bundle)
        others = [name for name in model.modalities if name != RNA]
        shared = {name: len(_matched(proteins, model.names(name))) for name in others}
        best = max(shared, key=lambda name: shared[name])
        return ProteinTransformer(model, best) if shared[best] else None

    def predict(self, cells: PairedCells) -> Float32:
        """Predict the P proteins of the model from the RNA of cells, (C, P), between 0 and 1."""
        found = self.model.predict({RNA: self._genes(cells)}, self.modality)
        predicted: Float32 = found / np.float32(self.model.bundle.tokenizer_config.n_bins)
        return predicted

    def embed(self, cells: PairedCells) -> Float32:
        """Return joint embeddings (C, D) of RNA and proteins, which must be counts."""
        names = _matched(cells.proteins.names, self.model.names(self.modality))
        places = [place for place, name in enumerate(cells.proteins.names) if name in names]
        packed = self.model.pack(self.modality, cells.proteins.values[:, places], list(names.values()))
        return self.model.embed({RNA: self._genes(cells), self.modality: packed})

    def _genes(self, cells: PairedCells) -> PackedCells:
        return self.model.pack(RNA, cells.rna.values, cells.genes)


@dataclass(frozen=True, eq=False)
class UsedModel:
    """The model that an assessment uses, and how far it has seen the cells."""

    uri: str
    transformer: ProteinTransformer | None = None  # None for a model of genes alone, or one that was left out
    contamination: float | None = None  # share of the scored cells that a multi-omic model was trained on


def add_embeddings(
    cells: PairedCells, query: PairedCells | None, config: AssessMultiomicConfig, *, pieces: Pieces | None = None
) -> tuple[PairedCells, PairedCells | None, UsedModel]:
    """Return the cells with their embeddings by the model that ``config`` names.

    Those of a multi-omic model are followed by the proteins that it predicts from RNA; it is left out, with a warning,
    unless it is known not to have been trained on the cells. Embeddings that are among the ``pieces`` are not computed
    again. Cells without a gene that the model knows have the mean embedding of the others.
    """
    assert config.model is not None
    opened = open_model(config.model, store=config.store, tracking=config.tracking, cache_folder=config.cache_folder)
    parts = [cells] if query is None else [cells, query]
    transformer = ProteinTransformer.find(opened, cells.proteins.names)
    if transformer is not None:
        shares = [_share_of_training(part, opened, config) for part in parts]
        used = UsedModel(config.model, transformer, shares[-1])
        if any(share != 0 for share in shares):
            share = next(share for share in shares if share != 0)
            seen = "an unknown share" if share is None else f"{100 * share:.1f} %"
            text = (
                f"{config.model} was trained on {seen} of the cells with their proteins, so it was left out; whether "
                "cells are among those of its corpus is known from the corpus, in the store that --store names"
            )
            return replace(cells, warnings=(*cells.warnings, text)), query, replace(used, transformer=None)
    else:
        used = UsedModel(config.model)
    pieces = pieces or Pieces()
    works = [functools.partial(_embed, part, opened, transformer) for part in parts]
    found = [pieces.compute(f"embeddings {number}", work)[0] for number, work in enumerate(works)]
    if any(each is None for each in found):
        return cells, query, replace(used, transformer=None)
    return (
        replace(cells, embeddings=found[0]),
        None if query is None else replace(query, embeddings=found[1]),
        used,
    )


def _share_of_training(cells: PairedCells, opened: OpenedModel, config: AssessMultiomicConfig) -> float | None:
    own = read_cells(SourceConfig(uri=cells.uri), vocabulary=GeneVocabulary.load_default(), keep_empty=True)
    return share_of_training(config.store, opened.bundle.lineage, own.cells)


def _embed(cells: PairedCells, opened: OpenedModel, transformer: ProteinTransformer | None) -> Float32 | None:
    """Embeddings by RNA alone, and predicted proteins; None if the model knows no gene of any cell."""
    named = read_cells(SourceConfig(uri=cells.uri), vocabulary=opened.bundle.vocabulary, keep_empty=True)
    place = {name: row for row, name in enumerate(named.names)}
    rows = np.array([place[name] for name in cells.names], np.int64)
    found = CellPredictor(opened.bundle, empty_cells="nan").predict(named.cells.take(rows)).embeddings
    is_empty = ~np.isfinite(found).all(axis=1)
    if is_empty.all():
        return None
    found[is_empty] = found[~is_empty].mean(axis=0)
    if transformer is None:
        return found
    predicted = transformer.predict(cells)
    return np.hstack([found, predicted / np.float32(np.sqrt(predicted.shape[1]))])  # of about the same length


def _matched(names: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """Return the known name of each name that has one, whatever vendors added to either."""
    words = {protein_word(name): name for name in reversed(known)}
    pairs = {name: words[protein_word(name)] for name in names if protein_word(name) in words}
    first = {feature: name for name, feature in reversed(pairs.items())}  # two names of one feature: the first
    return {name: feature for name, feature in pairs.items() if first[feature] == name}
