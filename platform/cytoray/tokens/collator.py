"""Collate tokens into the tensors that the model takes: padded to a rectangle, or packed without padding."""

# B cells, L tokens per cell after padding, G unknown genes per cell after padding, T tokens, U unknown genes in all

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from cytoray.tokens.cells import UInt64
from cytoray.tokens.packed import PackedCells
from cytoray.tokens.tokenizer import CellTokenizer, TokenBuffers, TokenizedCells, TokenPlan


@dataclass(frozen=True, eq=False)
class _OnDevice:
    """A dataclass of tensors that can be moved to a device."""

    def to(self, device: torch.device | str) -> Self:
        """Return the same cells with their tensors on ``device``; ``cell_ids`` and lengths stay on the host."""
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, torch.Tensor):
                moved[field.name] = value.to(device, non_blocking=True)
            elif isinstance(value, _OnDevice):
                moved[field.name] = value.to(device)
        return replace(self, **moved)


@dataclass(frozen=True, eq=False)
class PackedMinibatch(_OnDevice):
    """Concatenated cells; the first token of each is ``<cls>``, except in perturbation models."""

    gene_ids: torch.Tensor  # int64 (T,)
    values: torch.Tensor  # float32 (T,)
    lengths: tuple[int, ...]  # (B,) tokens of each cell
    cell_ids: UInt64  # (B,)
    batch_labels: torch.Tensor | None = None  # int64 (B,)
    modalities: torch.Tensor | None = None  # int64 (T,)
    perturbations: torch.Tensor | None = None  # int64 (T,)

    def packed(self) -> PackedMinibatch:
        """Itself."""
        return self

    def unmasked(self) -> PackedMinibatch:
        """Return itself, since it has no padding."""
        return self


@dataclass(frozen=True, eq=False)
class Minibatch(_OnDevice):
    """Padded cells."""

    gene_ids: torch.Tensor  # int64 (B, L)
    values: torch.Tensor  # float32 (B, L)
    padding_mask: torch.Tensor  # bool (B, L), True where padded
    cell_ids: UInt64  # (B,)
    batch_labels: torch.Tensor | None = None  # int64 (B,)
    modalities: torch.Tensor | None = None  # int64 (B, L)
    perturbations: torch.Tensor | None = None  # int64 (B, L)

    def packed(self) -> PackedMinibatch:
        """Return the same cells without padding, at any position."""
        real = ~self.padding_mask
        return PackedMinibatch(
            self.gene_ids[real],
            self.values[real],
            tuple(real.sum(dim=1).tolist()),
            self.cell_ids,
            self.batch_labels,
            None if self.modalities is None else self.modalities[real],
            None if self.perturbations is None else self.perturbations[real],
        )

    def unmasked(self) -> Minibatch:
        """Return the same cells with padding treated as ordinary tokens."""
        return replace(self, padding_mask=torch.zeros_like(self.padding_mask))


@dataclass(frozen=True, eq=False)
class PackedGenerativeMinibatch(_OnDevice):
    """Packed cells in two parts: the known tokens, and genes whose expression is to be predicted from them."""

    known: PackedMinibatch
    unknown_gene_ids: torch.Tensor  # int64 (U,)
    unknown_targets: torch.Tensor  # float32 (U,)
    unknown_lengths: tuple[int, ...]  # (B,)

    def packed(self) -> PackedGenerativeMinibatch:
        """Itself."""
        return self


@dataclass(frozen=True, eq=False)
class GenerativeMinibatch(_OnDevice):
    """Padded cells in two parts: the known tokens, and genes whose expression is to be predicted from them."""

    known: Minibatch
    unknown_gene_ids: torch.Tensor  # int64 (B, G)
    unknown_targets: torch.Tensor  # float32 (B, G)
    unknown_padding_mask: torch.Tensor  # bool (B, G), True where padded

    def packed(self) -> PackedGenerativeMinibatch:
        """Return the same cells without padding."""
        real = ~self.unknown_padding_mask
        return PackedGenerativeMinibatch(
            self.known.packed(),
            self.unknown_gene_ids[real],
            self.unknown_targets[real],
            tuple(real.sum(dim=1).tolist()),
        )


def collate(tokens: TokenizedCells, *, pad_id: int, pad_value: float) -> Minibatch:
    """Pad every cell of ``tokens`` to the longest one."""
    rows = np.repeat(np.arange(tokens.num_cells), tokens.lengths)
    columns = np.arange(len(rows)) - tokens.indptr[rows]
    shape = (tokens.num_cells, int(tokens.lengths.max(initial=0)))
    gene_ids, values = np.full(shape, pad_id, np.int64), np.full(shape, pad_value, np.float32)
    gene_ids[rows, columns], values[rows, columns] = tokens.gene_ids, tokens.values
    return widen(gene_ids, values, pad_id=pad_id, cell_ids=tokens.cell_ids)


def collate_packed(tokens: TokenizedCells) -> PackedMinibatch:
    """Concatenate the cells of ``tokens`` without padding."""
    return PackedMinibatch(
        torch.from_numpy(tokens.gene_ids.astype(np.int64)),
        torch.from_numpy(tokens.values.astype(np.float32)),
        tuple(tokens.lengths.tolist()),
        tokens.cell_ids,
    )


def collate_cells(
    tokenizer: CellTokenizer, packed: PackedCells, rows: npt.NDArray[np.int64], *, identities: UInt64
) -> PackedMinibatch:
    """Tokenise the cells at ``rows`` (B,) in one pass; ``identities`` (C,) are ``tokenizer.identities(packed)``."""
    known, _ = tokenizer.num_tokens(packed.num_genes_per_cell[rows])
    num_tokens = int(known.sum())
    buffers = TokenBuffers(np.empty(num_tokens, np.int64), np.empty(num_tokens, np.float32))
    tokenizer.fill_as(packed, rows, identities[rows], TokenPlan.packed(known), buffers)
    gene_ids, values = torch.from_numpy(buffers.gene_ids), torch.from_numpy(buffers.values)
    return PackedMinibatch(gene_ids, values, tuple(known.tolist()), packed.cell_ids[rows])


def widen(gene_ids: npt.NDArray[np.integer], values: npt.NDArray[Any], *, pad_id: int, cell_ids: UInt64) -> Minibatch:
    """Convert padded tokens (B, L) of narrow types (``CellTokenizer.fill``) to a minibatch; padding is ``pad_id``."""
    ids = torch.from_numpy(gene_ids.astype(np.int64))
    return Minibatch(ids, torch.from_numpy(values.astype(np.float32)), ids == pad_id, cell_ids)
