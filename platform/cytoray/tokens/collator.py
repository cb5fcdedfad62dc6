"""Tokens as the padded tensors that the model takes."""

# B cells, L tokens a cell after padding, G unknown genes a cell after padding

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cytoray.tokens.cells import UInt64
from cytoray.tokens.tokenizer import TokenizedCells


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
    rows = np.repeat(np.arange(tokens.num_cells), tokens.lengths)
    columns = np.arange(len(rows)) - tokens.indptr[rows]
    shape = (tokens.num_cells, int(tokens.lengths.max(initial=0)))
    gene_ids, values = np.full(shape, pad_id, np.int64), np.full(shape, pad_value, np.float32)
    gene_ids[rows, columns], values[rows, columns] = tokens.gene_ids, tokens.values
    return widen(gene_ids, values, pad_id=pad_id, cell_ids=tokens.cell_ids)


def widen(gene_ids: npt.NDArray[np.integer], values: npt.NDArray[Any], *, pad_id: int, cell_ids: UInt64) -> Minibatch:
    """Padded narrow tokens (B, L), as ``CellTokenizer.fill`` writes them, as a minibatch; padding is ``pad_id``."""
    ids = torch.from_numpy(gene_ids.astype(np.int64))
    return Minibatch(ids, torch.from_numpy(values.astype(np.float32)), ids == pad_id, cell_ids)
