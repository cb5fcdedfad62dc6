"""Run a model over a data set in minibatches of similar length: hidden states, attention and logits per cell."""

# C cells, T tokens of a minibatch, L tokens of a cell, D width, H heads, K outputs

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from cytoray import progress
from cytoray.api.dataset import scGPTDataset
from cytoray.model.bundle import ModelBundle
from cytoray.model.predictor import group_by_length
from cytoray.tokens import packed
from cytoray.tokens.collator import PackedMinibatch, collate_packed
from cytoray.tokens.tokenizer import TokenizedCells

Float32 = npt.NDArray[np.float32]
Rows = npt.NDArray[np.integer]
_CELLS_AT_A_TIME = 4_096


class Inference:
    """A bundle's model over one data set, in eval mode and without gradients; empty cells are skipped."""

    def __init__(
        self, bundle: ModelBundle, dataset: scGPTDataset, *, batch_tokens: int, advance: Callable[[int], object]
    ) -> None:
        """``batch_tokens`` bounds a minibatch; ``advance`` receives the number of cells done."""
        bundle.model.eval()
        self._bundle, self._dataset = bundle, dataset
        self._batch_tokens, self._advance = batch_tokens, advance

    def gene_states(self) -> list[pd.Series]:
        """Return per cell a series of hidden states, float32 (D,), by gene symbol; empty for an empty cell."""
        states = [pd.Series([], index=pd.Index([], dtype=object), dtype=object) for _ in range(len(self._dataset))]
        for rows, tokens, batch in self._minibatches():
            hidden_TD = self._bundle.model.encode(batch).float().cpu().numpy()
            for place, row in enumerate(rows):
                cell = slice(tokens.indptr[place] + 1, tokens.indptr[place + 1])
                states[row] = pd.Series(list(hidden_TD[cell]), index=self._symbols(tokens.gene_ids[cell]), dtype=object)
        return states

    def token_states(self) -> Iterator[tuple[npt.NDArray[np.integer], Float32]]:
        """Yield gene ids (T,) and hidden states (T, D) of the gene tokens of each minibatch, without ``<cls>``."""
        for _, tokens, batch in self._minibatches():
            hidden_TD = self._bundle.model.encode(batch).float().cpu().numpy()
            genes = np.ones(len(hidden_TD), bool)
            genes[tokens.indptr[:-1]] = False
            yield tokens.gene_ids[genes], hidden_TD[genes]

    def attentions(self, *, layer: int) -> list[Float32]:
        """Return attention weights (H, L, L) per cell in one layer, ``<cls>`` first; NaN (H, 1, 1) if it is empty."""
        heads = self._bundle.model.config.num_heads
        found = [np.full((heads, 1, 1), np.nan, np.float32) for _ in range(len(self._dataset))]
        for rows, _, batch in self._minibatches():
            for row, weights_HLL in zip(rows, self._bundle.model.attention(batch, layer=layer), strict=True):
                found[row] = weights_HLL.float().cpu().numpy()
        return found

    def genes(self) -> list[list[str]]:
        """Return the symbols of each cell's L tokens in order, ``<cls>`` first, without running the model."""
        found: list[list[str]] = [["<cls>"] for _ in range(len(self._dataset))]
        for rows, tokens in self._tokens():
            for place, row in enumerate(rows):
                cell = slice(tokens.indptr[place], tokens.indptr[place + 1])
                found[row] = self._symbols(tokens.gene_ids[cell])
        return found

    def logits(self) -> Float32:
        """Return the classifier's logits (C, K); NaN for an empty cell."""
        model = self._bundle.model
        found = np.full((len(self._dataset), model.config.num_labels), np.nan, np.float32)
        for rows, _, batch in self._minibatches():
            found[rows] = model.classify(model.embed(batch)).float().cpu().numpy()
        return found

    def _minibatches(self) -> Iterator[tuple[Rows, TokenizedCells, PackedMinibatch]]:
        """Yield rows, tokens and tensors of minibatches of similar length."""
        with torch.inference_mode():
            for rows, tokens in self._tokens():
                for places in group_by_length(tokens.lengths, batch_tokens=self._batch_tokens):
                    taken = tokens.take(places)
                    yield rows[places], taken, collate_packed(taken).to(self._bundle.model.device)
                    self._advance(len(places))

    def _tokens(self) -> Iterator[tuple[Rows, TokenizedCells]]:
        """Yield the tokens of cells that have genes, some thousand cells at a time."""
        tokenizer = self._bundle.tokenizer()
        kept = np.flatnonzero(self._dataset.cells.num_genes_per_cell > 0)
        for start in range(0, len(kept), _CELLS_AT_A_TIME):
            rows = kept[start : start + _CELLS_AT_A_TIME]
            yield rows, tokenizer(packed.take(self._dataset.cells, rows))

    def _symbols(self, ids: npt.NDArray[np.integer]) -> list[str]:
        return [self._bundle.vocabulary.tokens[token] for token in ids]


@contextmanager
def watched(title: str, *, total: int) -> Iterator[progress.Advance]:
    """Show progress over ``total`` cells: a bar on a terminal, elsewhere a line every few seconds of longer work."""
    with progress.stage(title, total=total, unit="cells", brief=True) as advance:
        yield advance
