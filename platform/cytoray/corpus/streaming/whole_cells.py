"""Thinned cells for the encoder, beside genes of the whole cell that are to be decoded from its embedding."""

# C cells of all groups, M micro-batches, Q queries of a cell, T tokens

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from cytoray.corpus.streaming.batches import Ragged
from cytoray.tokens.cells import Int64, UInt64
from cytoray.tokens.keys import Purpose, combine, uniform
from cytoray.tokens.packed import PackedCells
from cytoray.tokens.thinning import draw_queries, thin
from cytoray.tokens.tokenizer import CellTokenizer, TokenBuffers, TokenPlan

QUERIES, SECOND_VIEW = "queries", "second_view"  # names in ``StepBatch.modalities``


@dataclass(frozen=True, eq=False)
class WholeCells:
    """Cells before thinning, with their draws (epochs, another one for each repetition) and places."""

    cells: PackedCells
    draws: Int64
    places: Int64  # among the C cells of a chunk


@dataclass(frozen=True)
class WholeCellOptions:
    """The panel to decode, and the depth at which the encoder sees a cell."""

    panel: tuple[int, ...]  # ids of genes, ascending
    num_queries: int  # genes per cell, half of them zeros
    thinning: tuple[float, float] | None = None  # smallest and largest share of molecules kept; None keeps all
    second_view: bool = False  # also the tokens of another thinning of each cell

    def undisturbed(self) -> Self:
        """Return the options of cells that are seen at their full depth, once."""
        return replace(self, thinning=None, second_view=False)

    def thin(self, cells: PackedCells, draws: Int64, *, seed: int, purpose: Purpose = Purpose.THINNING) -> PackedCells:
        """Return each cell at a depth drawn for it."""
        assert self.thinning is not None, "these options keep all molecules"
        low, high = self.thinning
        keys = combine(seed, int(purpose), draws, cells.cell_ids)
        return thin(cells, keys=keys, shares=low + (high - low) * uniform(keys))

    def fields(self, groups: Sequence[WholeCells], borders: Int64, tokenizer: CellTokenizer) -> dict[str, Ragged]:
        """Return the queries of each cell and, if wanted, the tokens of its second view, as fields of a chunk."""
        fields = self._queries(groups, borders, seed=tokenizer.config.seed)
        return fields | (self._second_views(groups, borders, tokenizer) if self.second_view else {})

    def _queries(self, groups: Sequence[WholeCells], borders: Int64, *, seed: int) -> dict[str, Ragged]:
        panel, most = np.array(self.panel, np.int32), self.num_queries // 2
        shape = (sum(len(group.places) for group in groups), 2 * most)
        gene_ids, values = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        weights, lengths = np.zeros(shape, np.float32), np.zeros(shape[0], np.int64)
        for group in groups:
            keys = combine(seed, int(Purpose.QUERIES), group.draws, group.cells.cell_ids)
            drawn, at = draw_queries(group.cells, panel, keys=keys, most=most), group.places
            gene_ids[at], values[at], weights[at], lengths[at] = (
                drawn.gene_ids,
                drawn.values,
                drawn.weights,
                drawn.lengths,
            )
        used = np.arange(shape[1]) < lengths[:, None]
        flat = {"feature_ids": gene_ids[used], "values": values[used], "weights": weights[used]}
        return _ragged(QUERIES, flat, lengths, borders)

    def _second_views(
        self, groups: Sequence[WholeCells], borders: Int64, tokenizer: CellTokenizer
    ) -> dict[str, Ragged]:
        seed, lengths = tokenizer.config.seed, np.zeros(sum(len(group.places) for group in groups), np.int64)
        views = [self.thin(group.cells, group.draws, seed=seed, purpose=Purpose.VIEWS) for group in groups]
        for group, view in zip(groups, views, strict=True):
            lengths[group.places] = tokenizer.num_tokens(view.num_genes_per_cell)[0]
        starts, size = np.cumsum(lengths) - lengths, int(lengths.sum())
        buffers = TokenBuffers(np.empty(size, tokenizer.id_dtype), np.empty(size, tokenizer.value_dtype))
        for group, view in zip(groups, views, strict=True):
            at, rows = group.places, np.arange(view.num_cells)
            # Keys of their own: the two views of a cell share neither a sample of genes nor how ties are broken.
            keys: UInt64 = combine(seed, int(Purpose.VIEWS), group.draws, view.cell_ids)
            tokenizer.fill_as(view, rows, keys, TokenPlan(starts[at], lengths[at]), buffers)
        return _ragged(SECOND_VIEW, {"feature_ids": buffers.gene_ids, "values": buffers.values}, lengths, borders)


def _ragged(name: str, flat: dict[str, npt.NDArray[Any]], lengths: Int64, borders: Int64) -> dict[str, Ragged]:
    """Return arrays that stand cell after cell as fields of a modality of a chunk."""
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)[borders]
    fields = {f"modalities/{name}/{field}": Ragged(array, ends) for field, array in flat.items()}
    return fields | {f"modalities/{name}/lengths": Ragged(lengths.astype(np.int32), borders)}
