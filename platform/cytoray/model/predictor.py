"""Predict embeddings and labels of cells with a bundle, in plain torch: the same code offline and in the service."""

# C cells, B cells of one minibatch, D width, K labels

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from cytoray.errors import ModelError
from cytoray.model.bundle import ModelBundle
from cytoray.model.config import Pooling
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.collator import collate_cells
from cytoray.tokens.label_tree import LabelTree
from cytoray.tokens.packed import PackedCells, unpack

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Predictions:
    """Predictions for C cells, in their order."""

    embeddings: Float32  # (C, D), L2-normalised
    probabilities: Float32 | None  # (C, K), rows sum to 1; None if the bundle has no classes
    labels: tuple[str, ...]  # names of the K columns
    doubts: Doubts | None = None  # of a bundle with an annotator
    tree: LabelTree | None = None  # of the labels

    def take(self, rows: slice | npt.NDArray[np.int64]) -> Predictions:
        """Return the predictions for some of the cells."""
        return replace(
            self,
            embeddings=self.embeddings[rows],
            probabilities=None if self.probabilities is None else self.probabilities[rows],
            doubts=None if self.doubts is None else Doubts(self.doubts.in_set[rows], self.doubts.unseen_p[rows]),
        )

    @staticmethod
    def concatenate(parts: Sequence[Predictions]) -> Predictions:
        """Return the predictions for all cells of several parts, which are of one model."""
        probabilities = [part.probabilities for part in parts if part.probabilities is not None]
        doubts = [part.doubts for part in parts if part.doubts is not None]
        in_set, unseen_p = [one.in_set for one in doubts], [one.unseen_p for one in doubts]
        return replace(
            parts[0],
            embeddings=np.concatenate([part.embeddings for part in parts]),
            probabilities=np.concatenate(probabilities) if probabilities else None,
            doubts=Doubts(np.concatenate(in_set), np.concatenate(unseen_p)) if doubts else None,
        )


@dataclass(frozen=True, eq=False)
class Doubts:
    """How sure labels are: which of them fit each cell, and whether the cell may be of a type that was not learned."""

    in_set: npt.NDArray[np.bool_]  # (C, K), the likeliest label always; none for a cell without genes
    unseen_p: Float32  # (C,) how probable its distance to the training cells of its label is; NaN without genes


class Annotate(Protocol):
    """Annotation by more than the classifier of a model."""

    def __call__(self, cells: SparseCells, probabilities: Float32) -> tuple[Float32, Doubts]:
        """Return the probabilities (C, K) of the labels and the doubts about C cells, each with genes.

        ``probabilities``: those of the model's classifier, (C, K).
        """


class CellPredictor:
    """A predictor of embeddings and, if the bundle has labels, cell types; a cell's result is independent of others."""

    def __init__(
        self,
        bundle: ModelBundle,
        *,
        batch_tokens: int = 4096,
        pooling: Pooling | None = None,
        empty_cells: Literal["error", "nan"] = "error",
        annotate: Annotate | None = None,
    ) -> None:
        """Prepare a predictor; ``batch_tokens`` is the maximum number of tokens per minibatch of more than one cell.

        ``pooling`` is how hidden states become an embedding, by default the model's own way. ``empty_cells``:
        cells without any gene raise a ModelError, or have NaN in all their results. ``annotate`` gives the labels'
        probabilities, by default the model's classifier.
        """
        self._bundle, self._annotate = bundle, annotate
        # Small minibatches stay in the CPU's cache: 4,096 tokens run 1.5 times as fast as 65,536 (12 x 512).
        self._batch_tokens = batch_tokens
        self._pooling = pooling
        self._empty_cells = empty_cells
        self._tokenizer, self._tree = bundle.tokenizer(), bundle.label_tree

    def predict(
        self, cells: SparseCells | PackedCells, *, advance: Callable[[int], object] = lambda cells: None
    ) -> Predictions:
        """Predict for every cell; ``advance`` receives the number of cells done.

        Raises ModelError that names the rows of cells without any gene, unless they are to be NaN.
        """
        if self._empty_cells == "error":
            _refuse_empty_cells(cells)
        model, labels, tokenizer = self._bundle.model.eval(), self._bundle.classes, self._tokenizer
        embeddings = np.full((cells.num_cells, model.config.width), np.nan, np.float32)
        probabilities = np.full((cells.num_cells, model.config.num_labels), np.nan, np.float32)
        packed = tokenizer.pack(cells)
        identities = tokenizer.identities(packed)
        filled = np.flatnonzero(cells.num_genes_per_cell > 0)
        lengths, _ = tokenizer.num_tokens(cells.num_genes_per_cell[filled])
        advance(cells.num_cells - len(filled))
        with torch.inference_mode():
            for places in group_by_length(lengths, batch_tokens=self._batch_tokens):
                rows = filled[places]
                batch = collate_cells(tokenizer, packed, rows, identities=identities).to(model.device)
                cells_BD = model.embed(batch, pooling=self._pooling)
                embeddings[rows] = _host(F.normalize(cells_BD.float(), dim=-1))
                if labels:
                    own_BD = cells_BD if self._pooling is None else model.embed(batch)
                    probabilities[rows] = _host(model.classify(own_BD).float().softmax(dim=-1))
                advance(len(rows))
        if not labels:
            return Predictions(embeddings, None, labels)
        return self._labelled(Predictions(embeddings, probabilities, labels, tree=self._tree), cells, filled)

    def _labelled(
        self, found: Predictions, cells: SparseCells | PackedCells, filled: npt.NDArray[np.int64]
    ) -> Predictions:
        """Predictions by ``annotate``, if there is one; ``filled``: the rows of cells with genes."""
        if self._annotate is None:
            return found
        assert found.probabilities is not None, "a model with labels"
        sparse = cells if isinstance(cells, SparseCells) else unpack(cells)
        own, doubts = self._annotate(sparse.take(filled), found.probabilities[filled])
        in_set = np.zeros(found.probabilities.shape, np.bool_)
        unseen_p = np.full(len(in_set), np.nan, np.float32)
        found.probabilities[filled], in_set[filled], unseen_p[filled] = own, doubts.in_set, doubts.unseen_p
        return replace(found, doubts=Doubts(in_set, unseen_p))


def group_by_length(lengths: npt.NDArray[np.integer], *, batch_tokens: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield rows of similar length whose tokens, were they padded (rows x longest), stay within ``batch_tokens``."""
    order = np.argsort(lengths, kind="stable")
    start = 0
    for stop in range(1, len(order) + 1):
        full = stop == len(order) or (stop + 1 - start) * lengths[order[stop]] > batch_tokens
        if full:
            yield order[start:stop]
            start = stop


def _host(tensor: Tensor) -> Float32:
    array: Float32 = tensor.cpu().numpy()
    return array


def _refuse_empty_cells(cells: SparseCells | PackedCells) -> None:
    empty = np.flatnonzero(cells.num_genes_per_cell == 0)
    if len(empty):
        first = ", ".join(map(str, empty[:10])) + (", …" if len(empty) > 10 else "")
        noun = "row" if len(empty) == 1 else "rows"
        raise ModelError(
            f"{len(empty)} of {cells.num_cells} cells have no gene that the model knows ({noun} {first}).",
            remedy="Drop these cells, or check that the gene names are symbols or Ensembl ids of the model's species.",
            rows=empty.tolist(),
        )
