"""Cells to a padded minibatch, and the split into known and unknown genes that generative pretraining learns from."""

# B cells, L tokens a cell after padding, T tokens over all cells, G unknown genes a cell after padding

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from cytoray.tokens.cells import Int64, UInt64
from cytoray.tokens.keys import Purpose, combine
from cytoray.tokens.tokenizer import TokenizedCells, rank_by_key


@dataclass(frozen=True, eq=False)
class Minibatch:
    """Padded cells; ``cell_ids`` stay on the host."""

    gene_ids: torch.Tensor  # int64 (B, L)
    values: torch.Tensor  # float32 (B, L)
    padding_mask: torch.Tensor  # bool (B, L), True where padded
    cell_ids: UInt64  # (B,)

    def to(self, device: torch.device | str) -> Minibatch:
        """The same cells with their tensors on ``device``."""
        return Minibatch(
            self.gene_ids.to(device, non_blocking=True),
            self.values.to(device, non_blocking=True),
            self.padding_mask.to(device, non_blocking=True),
            self.cell_ids,
        )


@dataclass(frozen=True, eq=False)
class GenerativeMinibatch:
    """Padded cells in two parts: the known tokens, and genes whose expression is to be told from them."""

    known: Minibatch
    unknown_gene_ids: torch.Tensor  # int64 (B, G)
    unknown_targets: torch.Tensor  # float32 (B, G)
    unknown_padding_mask: torch.Tensor  # bool (B, G), True where padded

    def to(self, device: torch.device | str) -> GenerativeMinibatch:
        """The same cells with their tensors on ``device``."""
        return GenerativeMinibatch(
            self.known.to(device),
            self.unknown_gene_ids.to(device, non_blocking=True),
            self.unknown_targets.to(device, non_blocking=True),
            self.unknown_padding_mask.to(device, non_blocking=True),
        )


def collate(tokens: TokenizedCells, *, pad_id: int, pad_value: float) -> Minibatch:
    """Pad every cell of ``tokens`` to the longest one."""
    everything = np.ones(len(tokens.gene_ids), bool)
    return Minibatch(*_pad(tokens, everything, pad_id=pad_id, pad_value=pad_value), tokens.cell_ids)


def collate_generative(
    tokens: TokenizedCells, *, unknown_ratio: float, epoch: int, seed: int, pad_id: int, pad_value: float
) -> GenerativeMinibatch:
    """Hold back ``int(n * unknown_ratio)`` of each cell's n genes, by (seed, epoch, cell id); never ``<cls>``."""
    assert 0 <= unknown_ratio <= 1, "a share of the genes"
    keys = combine(seed, epoch, tokens.cell_ids, Purpose.SPLIT)
    unknown = _choose_genes(tokens, keys, unknown_ratio)
    known = Minibatch(*_pad(tokens, ~unknown, pad_id=pad_id, pad_value=pad_value), tokens.cell_ids)
    return GenerativeMinibatch(known, *_pad(tokens, unknown, pad_id=pad_id, pad_value=pad_value))


def _choose_genes(tokens: TokenizedCells, keys: UInt64, ratio: float) -> npt.NDArray[np.bool_]:
    """Which tokens (bool, shape (T,)) are the ``int(n * ratio)`` genes of their cell with the smallest keyed hash."""
    num_chosen = ((tokens.lengths - 1) * ratio).astype(np.int64)
    is_gene = np.ones(len(tokens.gene_ids), bool)
    is_gene[tokens.indptr[:-1]] = False
    rows = _rows(tokens)[is_gene]
    chosen = np.zeros(len(tokens.gene_ids), bool)
    chosen[is_gene] = rank_by_key(rows, combine(keys[rows], tokens.gene_ids[is_gene])) < num_chosen[rows]
    return chosen


def _pad(
    tokens: TokenizedCells, chosen: npt.NDArray[np.bool_], *, pad_id: int, pad_value: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gene ids, values and padding mask (each (B, L)) of the ``chosen`` tokens (bool, shape (T,))."""
    rows = _rows(tokens)[chosen]
    lengths = np.bincount(rows, minlength=tokens.num_cells)
    columns = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    shape = (tokens.num_cells, int(lengths.max(initial=0)))
    gene_ids, values, padding = (
        np.full(shape, pad_id, np.int64),
        np.full(shape, pad_value, np.float32),
        np.ones(shape, bool),
    )
    gene_ids[rows, columns], values[rows, columns] = tokens.gene_ids[chosen], tokens.values[chosen]
    padding[rows, columns] = False
    return torch.from_numpy(gene_ids), torch.from_numpy(values), torch.from_numpy(padding)


def _rows(tokens: TokenizedCells) -> Int64:
    """Row of each token, shape (T,)."""
    return np.repeat(np.arange(tokens.num_cells), tokens.lengths)
