"""Positions of each cell's tokens in a packed minibatch: known ones cell by cell, then the unknown ones."""

# B cells, T tokens = all known ones, then all unknown ones; L, G the most known and unknown tokens of a cell

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segments:
    """Consecutive runs of rows, one per cell."""

    lengths: tuple[int, ...]  # (B,)
    device: torch.device

    @property
    def total(self) -> int:
        """Rows of all cells."""
        return sum(self.lengths)

    @property
    def longest(self) -> int:
        """Rows of the longest run."""
        return max(self.lengths, default=0)

    @cached_property
    def counts(self) -> Tensor:
        """Lengths as int64 (B,)."""
        counts = torch.tensor(self.lengths, dtype=torch.int64)
        if self.device.type == "cuda":
            counts = counts.pin_memory()  # otherwise the host would wait for all pending work of the device
        return counts.to(self.device, non_blocking=True)

    @cached_property
    def starts(self) -> Tensor:
        """First row of each cell, int64 (B,)."""
        return self.counts.cumsum(0) - self.counts

    @cached_property
    def offsets(self) -> Tensor:
        """Start of each cell and end of the last, int32 (B + 1,), as varlen kernels take them."""
        return torch.nn.functional.pad(self.counts.cumsum(0), (1, 0)).to(torch.int32)

    @cached_property
    def cells(self) -> Tensor:
        """The cell of each row, int64 (T,)."""
        numbers = torch.arange(len(self.lengths), device=self.device)
        return torch.repeat_interleave(numbers, self.counts, output_size=self.total)

    @cached_property
    def places(self) -> Tensor:
        """Position of each row among B x longest padded ones, int64 (T,)."""
        within = torch.arange(self.total, device=self.device) - self.starts[self.cells]
        return self.cells * self.longest + within

    @cached_property
    def real(self) -> Tensor:
        """bool (B, longest): True where a padded row is a real one."""
        return torch.arange(self.longest, device=self.device) < self.counts[:, None]

    @cached_property
    def are_equal(self) -> bool:
        """Whether all runs have one length, so that padding is a change of shape."""
        return len(set(self.lengths)) == 1

    def pad(self, rows_TD: Tensor) -> Tensor:
        """Return rows as (B, longest, …), zero at padding."""
        if self.are_equal:
            return rows_TD.view(len(self.lengths), self.longest, *rows_TD.shape[1:])
        padded = rows_TD.new_zeros(len(self.lengths) * self.longest, *rows_TD.shape[1:])
        padded = padded.index_copy(0, self.places, rows_TD)
        return padded.view(len(self.lengths), self.longest, *rows_TD.shape[1:])

    def unpad(self, padded_BLD: Tensor) -> Tensor:
        """Undo ``pad``."""
        rows_TD: Tensor = padded_BLD.flatten(0, 1)
        return rows_TD if self.are_equal else rows_TD.index_select(0, self.places)


@dataclass(frozen=True)
class Layout:
    """The rows of a packed minibatch: T = known.total + unknown.total."""

    known: Segments
    unknown: Segments | None = None

    @staticmethod
    def of(known: tuple[int, ...], unknown: tuple[int, ...] | None = None, *, device: torch.device) -> Layout:
        """Build the layout of cells with these numbers of known and unknown tokens."""
        return Layout(Segments(known, device), None if unknown is None else Segments(unknown, device))

    @cached_property
    def cls_known(self) -> Segments:
        """The known rows if only the first of each cell is needed."""
        return Segments(tuple(min(length, 1) for length in self.known.lengths), self.known.device)

    @cached_property
    def known_and_self(self) -> Segments:
        """The keys of unknown tokens: the known ones of their cell, and one more for themselves."""
        return Segments(tuple(length + 1 for length in self.known.lengths), self.known.device)

    @cached_property
    def cls_rows(self) -> Tensor:
        """Rows that the last layer must compute: the first of each cell, and every unknown one."""
        first = self.known.starts
        if not all(self.known.lengths):  # known to the host; selecting by a mask on a GPU waits for the device
            first = first[self.known.counts > 0]
        if self.unknown is None:
            return first
        known, unknown = self.known.total, self.unknown.total
        return torch.cat([first, torch.arange(known, known + unknown, device=first.device)])
