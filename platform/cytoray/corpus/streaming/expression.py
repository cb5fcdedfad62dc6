"""Pairs as a perturbation model sees them: log-normalised expression of a panel, and flags of the perturbed genes.

A cell and its control have the same tokens: the panel, or of a larger one a sample by (seed, epoch, cell) that always
has the perturbed genes. There is no ``<cls>``.
"""

# R cells, G genes of the panel, W tokens per cell, P values of the perturbation's column

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cytoray.tokens.cells import Float32, Int32, Int64, UInt64
from cytoray.tokens.keys import Purpose, combine
from cytoray.tokens.packed import PackedCells, packed_counts, packed_gene_ids

TARGET_SUM = 1e4
Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class ExpressionArrays:
    """Flat buffers, of which each cell has W elements from its start on."""

    gene_ids: Array
    values: Array
    perturbations: Array
    source_values: Array


@dataclass(frozen=True, eq=False)
class ExpressionView:
    """The panel of a stream of perturbed cells, and the genes that each perturbation hits."""

    panel: Int32  # (G,) ascending
    perturbed: npt.NDArray[np.bool_]  # (P, G)
    max_tokens: int
    seed: int

    @staticmethod
    def of(
        panel: Sequence[int],
        perturbed: Mapping[str, Sequence[int]],
        values: Sequence[str],
        *,
        max_tokens: int,
        seed: int,
    ) -> ExpressionView:
        """Build the view of a ``panel``; ``values`` are those of the column, in the order of their codes."""
        genes = np.array(sorted(panel), np.int32)
        flags = np.stack([np.isin(genes, np.asarray(perturbed[name], np.int32)) for name in values])
        for name, row in zip(values, flags, strict=True):
            assert row.sum() == len(set(perturbed[name])) <= max_tokens, f"the panel lacks genes that {name} hits"
        return ExpressionView(genes, flags, max_tokens, seed)

    @property
    def num_tokens(self) -> int:
        """Number of tokens of every cell, W."""
        return min(len(self.panel), self.max_tokens)

    def fill(
        self,
        pair: tuple[PackedCells, PackedCells],
        codes: Int32,
        draws: Int64,
        starts: Int64,
        arrays: ExpressionArrays,
    ) -> None:
        """Write the tokens of R cells and of their controls; ``draws`` are the epochs of their random numbers."""
        own, sources = pair
        flags_RG = self.perturbed[codes]
        kept_RW = self._choose(combine(self.seed, int(Purpose.SAMPLING), draws, own.cell_ids), flags_RG)
        places_RW = starts[:, None] + np.arange(self.num_tokens)
        arrays.gene_ids[places_RW] = self.panel[kept_RW]
        arrays.perturbations[places_RW] = np.take_along_axis(flags_RG, kept_RW, axis=1)
        arrays.values[places_RW] = np.take_along_axis(self._dense(own), kept_RW, axis=1)
        arrays.source_values[places_RW] = np.take_along_axis(self._dense(sources), kept_RW, axis=1)

    def _choose(self, identities: UInt64, flags_RG: npt.NDArray[np.bool_]) -> Int64:
        """Return the places in the panel (R, W) of each cell's tokens, ascending; perturbed genes are among them."""
        width, size = self.num_tokens, len(self.panel)
        if width == size:
            return np.broadcast_to(np.arange(size), (len(identities), size))
        keys = combine(identities[:, None], self.panel.astype(np.uint64)[None, :])
        keys[flags_RG] = 0
        return np.sort(np.argpartition(keys, width - 1, axis=1)[:, :width], axis=1)

    def _dense(self, cells: PackedCells) -> Float32:
        """Return the values (R, G) of cells that have genes of the panel alone."""
        dense = np.zeros((cells.num_cells, len(self.panel)), np.float32)
        rows = np.repeat(np.arange(cells.num_cells), cells.num_genes_per_cell)
        dense[rows, np.searchsorted(self.panel, packed_gene_ids(cells))] = cells.values
        return dense


def total_counts(cells: PackedCells) -> npt.NDArray[np.float64]:
    """Return the sum of each cell's counts, (C,)."""
    sums = np.concatenate([[0.0], np.cumsum(packed_counts(cells), dtype=np.float64)])
    return np.diff(sums[cells.indptr])


def log_normalised(cells: PackedCells, totals: npt.NDArray[np.float64]) -> PackedCells:
    """Return log(1 + counts per 10,000 of ``totals``); expression other than counts is returned as it is."""
    if not cells.holds_counts:
        return cells
    depths = np.repeat(np.maximum(totals, 1), cells.num_genes_per_cell)
    values = np.log1p(packed_counts(cells) * (TARGET_SUM / depths)).astype(np.float32)
    empty, starts = np.empty(0, np.uint32), np.zeros(cells.num_cells + 1, np.int64)
    return replace(cells, values=values, large=empty, large_starts=starts, bins=None)
