"""Embeddings and labels of cells from a bundle, in plain torch: the same code offline and behind the service."""

# C cells, B cells of one minibatch, D width, K labels

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from cytoray.errors import ModelError
from cytoray.model.bundle import ModelBundle
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.collator import collate
from cytoray.tokens.tokenizer import CellTokenizer, TokenizedCells

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Predictions:
    """What the model says of C cells, in the order they were given."""

    embeddings: Float32  # (C, D), L2-normalised
    probabilities: Float32 | None  # (C, K), rows sum to 1; None where the bundle has no labels
    labels: tuple[str, ...]  # names of the K columns


class CellPredictor:
    """Embed and, where the bundle has labels, classify cells; a cell's result does not depend on its neighbours."""

    def __init__(self, bundle: ModelBundle, *, batch_tokens: int = 16384) -> None:
        """``batch_tokens`` bounds the tokens of a minibatch, padding included; a longer single cell goes alone."""
        self._bundle = bundle
        self._batch_tokens = batch_tokens
        self._tokenizer = CellTokenizer(bundle.vocabulary, bundle.tokenizer_config)

    def predict(self, cells: SparseCells) -> Predictions:
        """Predict for every cell; raises ModelError that names the rows of cells without any gene."""
        _refuse_empty_cells(cells)
        bundle, config = self._bundle, self._bundle.model.config
        embeddings = np.empty((cells.num_cells, config.width), np.float32)
        probabilities = np.empty((cells.num_cells, config.num_labels), np.float32)
        bundle.model.eval()
        if cells.num_cells:
            tokens = self._tokenizer(cells)
            with torch.inference_mode():
                for rows in group_by_length(tokens.lengths, batch_tokens=self._batch_tokens):
                    cells_BD = self._embed(tokens.take(rows))
                    embeddings[rows] = F.normalize(cells_BD.float(), dim=-1).cpu().numpy()
                    if bundle.labels:
                        probabilities[rows] = bundle.model.classify(cells_BD).float().softmax(dim=-1).cpu().numpy()
        return Predictions(embeddings, probabilities if bundle.labels else None, bundle.labels)

    def _embed(self, tokens: TokenizedCells) -> Tensor:
        """Run one minibatch on the device the model lives on."""
        bundle = self._bundle
        device = bundle.model.flag_encoder.weight.device
        batch = collate(tokens, pad_id=bundle.vocabulary.pad_id, pad_value=bundle.tokenizer_config.pad_value)
        return bundle.model.embed(batch.to(device))


def group_by_length(lengths: npt.NDArray[np.integer], *, batch_tokens: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield rows of similar length whose padded size (rows x longest) stays within ``batch_tokens``."""
    order = np.argsort(lengths, kind="stable")
    start = 0
    for stop in range(1, len(order) + 1):
        full = stop == len(order) or (stop + 1 - start) * lengths[order[stop]] > batch_tokens
        if full:
            yield order[start:stop]
            start = stop


def _refuse_empty_cells(cells: SparseCells) -> None:
    empty = np.flatnonzero(cells.num_genes_per_cell == 0)
    if len(empty):
        first = ", ".join(map(str, empty[:10])) + (", …" if len(empty) > 10 else "")
        noun = "row" if len(empty) == 1 else "rows"
        raise ModelError(
            f"{len(empty)} of {cells.num_cells} cells have no gene that the model knows ({noun} {first}).",
            remedy="Drop these cells, or check that the gene names are symbols or Ensembl ids of the model's species.",
            rows=empty.tolist(),
        )
