"""Cut steps into micro-batches, and find the places of their tokens: lengths are known before any token is made."""

# T steps, B cells of a share, C = T * B cells, M micro-batches

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cytoray.corpus.streaming.options import StreamOptions
from cytoray.tokens.cells import Int64


@dataclass(frozen=True, eq=False)
class Slots:
    """The places of tokens, for each cell (C,) and each micro-batch (M + 1,)."""

    starts: Int64
    widths: Int64
    borders: Int64

    def at(self, cells: Int64) -> Slots:
        """Return the slots of some cells."""
        return Slots(self.starts[cells], self.widths[cells], self.borders)


def cut_steps(steps: Int64, tokens: Int64, options: StreamOptions) -> tuple[Int64, Int64]:
    """Return heads (M, 3) and borders (M + 1,) of the micro-batches; ``tokens`` (T, B) ascend within each step."""
    if options.token_budget is None:
        heads = np.stack([steps, np.zeros_like(steps), np.ones_like(steps)], axis=1)
        return heads, np.arange(len(steps) + 1, dtype=np.int64) * tokens.shape[1]
    cut: list[tuple[int, int, int]] = []
    sizes = [0]
    for step, row in zip(steps.tolist(), tokens, strict=True):
        parts = _cut_step(row, options.token_budget, options)
        cut += [(step, part, len(parts)) for part in range(len(parts))]
        sizes += parts
    return np.array(cut, np.int64).reshape(-1, 3), np.cumsum(sizes, dtype=np.int64)


def find_slots(lengths: Int64, borders: Int64, options: StreamOptions) -> Slots:
    """Return slots for cells of ``lengths`` (C,) in micro-batches with ``borders`` (M + 1,)."""
    if options.layout == "packed":
        ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return Slots(ends[:-1], lengths, ends[borders])
    sizes = np.diff(borders)
    if not len(lengths):
        return Slots(lengths, lengths, np.zeros_like(borders))
    longest = np.maximum.reduceat(lengths, borders[:-1])
    widths = -(-longest // options.pad_to_multiple) * options.pad_to_multiple
    ends = np.concatenate([[0], np.cumsum(widths * sizes)]).astype(np.int64)
    within = np.arange(len(lengths)) - np.repeat(borders[:-1], sizes)
    cell_widths = np.repeat(widths, sizes)
    return Slots(np.repeat(ends[:-1], sizes) + within * cell_widths, cell_widths, ends)


def _cut_step(tokens: Int64, budget: int, options: StreamOptions) -> list[int]:
    """Sizes of the micro-batches of one step, from the longest cells down: each as many as the budget holds."""
    sizes, stop = [], len(tokens)
    before = np.concatenate([[0], np.cumsum(tokens)])
    while stop > 0:
        if options.layout == "packed":
            size = stop - int(np.searchsorted(before, before[stop] - budget))
        else:
            widest = int(tokens[stop - 1]) + 2 * (options.pad_to_multiple - 1)  # both widths are rounded up
            size = min(stop, budget // widest)
        sizes.append(max(1, size))
        stop -= sizes[-1]
    return sizes[::-1] or [0]
