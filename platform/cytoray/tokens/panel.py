"""Tokens of a fixed panel of genes, optionally with zeros, as in scGPT's fine-tuning recipes; sampling is by cell."""

# C cells, G genes of the panel, T tokens

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cytoray.tokens.cells import Float32, Int32, Int64, UInt64
from cytoray.tokens.keys import Purpose, combine
from cytoray.tokens.tokenizer import TokenizedCells, TokenizerConfig


def tokenise_panel(
    values: npt.NDArray[Any],
    gene_ids: Int32,
    cell_ids: UInt64,
    *,
    config: TokenizerConfig,
    cls_id: int,
    include_zeros: bool = True,
    epoch: int = 0,
) -> TokenizedCells:
    """Tokenise dense ``values`` (C, G), such as bins, of the genes ``gene_ids`` (G,), unchanged, with ``<cls>`` first.

    A cell of more than ``config.max_length - 1`` genes is sampled without replacement, by (seed, epoch, cell, gene).
    """
    rows, columns = np.nonzero(np.ones_like(values, bool) if include_zeros else values != 0)
    keys = combine(config.seed, epoch, Purpose.SAMPLING, cell_ids[rows], gene_ids[columns])
    kept = _smallest(keys, rows, np.full(len(cell_ids), config.max_length - 1))
    rows, columns = rows[kept], columns[kept]
    lengths = np.bincount(rows, minlength=len(cell_ids)) + 1
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    places = np.arange(len(rows)) + rows + 1  # one <cls> before each cell's genes
    ids = np.full(indptr[-1], cls_id, np.int32)
    taken = np.full(indptr[-1], config.cls_value, np.float32)
    ids[places], taken[places] = gene_ids[columns], values[rows, columns]
    return TokenizedCells(ids, taken, indptr, cell_ids)


def mask_tokens(
    tokens: TokenizedCells, ratio: float, *, config: TokenizerConfig, epoch: int = 0, mask_cls: bool = False
) -> Float32:
    """Hide exactly ``int(n * ratio)`` of each cell's n tokens by (seed, epoch, cell, gene); returns the values (T,).

    n is the number of genes, or of all tokens with ``mask_cls``, as in the original.
    """
    rows = np.repeat(np.arange(tokens.num_cells), tokens.lengths)
    eligible = np.ones(len(rows), bool)
    if not mask_cls:
        eligible[tokens.indptr[:-1]] = False
    places = np.flatnonzero(eligible)
    counts = np.bincount(rows[places], minlength=tokens.num_cells)
    keys = combine(config.seed, epoch, Purpose.MASKING, tokens.cell_ids[rows[places]], tokens.gene_ids[places])
    hidden = places[_smallest(keys, rows[places], (counts * ratio).astype(np.int64))]
    values = tokens.values.copy()
    values[hidden] = config.mask_value
    return values


def _smallest(keys: UInt64, rows: Int64, limits: Int64) -> Int64:
    """Return the sorted positions of the ``limits[row]`` smallest keys of each row; ``rows`` must be sorted."""
    order = np.lexsort((keys, rows))
    counts = np.bincount(rows, minlength=len(limits))
    ranks = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(order[ranks < limits[rows]])
