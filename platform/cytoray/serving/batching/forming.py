"""Form one batch, up to a predicted time and a number of tokens: cells of similar length, then whatever else waits.

The model sorts the cells of a batch by length and computes a few thousand tokens at a time, so that few cells of all
lengths in one batch have little padding and save the fixed cost of further batches.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from cytoray.serving.batching.config import BatchingConfig
from cytoray.serving.batching.costs import CostModel
from cytoray.serving.batching.queues import Int64, LengthQueue, Segment, Ticket, lowest_length

Item = TypeVar("Item")
PADDING = 0.1  # share of the rectangle of the cells of similar length that may be padding
MINIBATCH_TOKENS = 4096  # that the model computes at a time
IsLost = Callable[[Ticket[Any]], bool]  # whether a request is over; if it can no longer be answered, it becomes so
Remove = Callable[[Hashable, int, int, int], None]  # subtract cells, tokens and squares of a kind from sums


class Take(NamedTuple, Generic[Item]):
    """Cells of a request in a batch."""

    ticket: Ticket[Item]
    rows: Int64
    tokens: int
    squares: int

    @property
    def all_or_rows(self) -> Int64 | None:
        """The rows, None for all cells of the request."""
        return None if len(self.rows) == len(self.ticket.work.tokens) else self.rows


@dataclass(frozen=True, eq=False)
class Batch(Generic[Item]):
    """Cells that the model is given together."""

    kind: Hashable
    takes: tuple[Take[Item], ...]
    longest: int
    predicted_s: float = 0.0

    @cached_property
    def cells(self) -> int:
        """Number of cells."""
        return sum(len(take.rows) for take in self.takes)

    @cached_property
    def tokens(self) -> int:
        """Number of tokens, without padding."""
        return sum(take.tokens for take in self.takes)

    @cached_property
    def squares(self) -> int:
        """Sum of the squares of the tokens of each cell."""
        return sum(take.squares for take in self.takes)

    @property
    def padded_tokens(self) -> int:
        """Number of tokens, with the padding of the model's minibatches."""
        lengths = np.sort(np.concatenate([take.ticket.work.tokens[take.rows] for take in self.takes]))
        padded = start = 0
        while start < len(lengths):
            sizes = np.arange(1, len(lengths) - start + 1) * lengths[start:]
            count = max(int(np.searchsorted(sizes, MINIBATCH_TOKENS, side="right")), 1)
            padded += int(sizes[count - 1])
            start += count
        return padded


class Draft(Generic[Item]):
    """A batch that is being formed."""

    def __init__(self, seed: LengthQueue[Item], model: CostModel, config: BatchingConfig) -> None:
        self.kind, self.bucket = seed.kind, seed.bucket
        self._model = model
        fixed = model.coefficients.fixed
        self.budget = max(config.target_batch_s - fixed, fixed)  # seconds for cells: no less than any batch takes
        self._seconds_left = self.budget
        self.is_strict = True  # about padding
        self._most_tokens = min(config.max_batch_tokens, model.most_tokens)
        self.cells = self._tokens = self._squares = self._longest = 0
        self._takes: list[Take[Item]] = []

    @property
    def is_full(self) -> bool:
        """Whether a cell of the longest one's length would be too much."""
        return self.cells > 0 and (
            self._seconds_left <= 0 or (self.cells + 1) * self._longest > self._most_tokens
        )  # fmt: skip

    def accepts(self, queue: LengthQueue[Item]) -> bool:
        """Whether the length of the next cells of a queue fits those of the draft."""
        head = queue.head()
        return head is not None and self._within_padding(head, max(self._longest, head.longest)) > 0

    def draw(self, queue: LengthQueue[Item], seconds: float, *, until: float, is_lost: IsLost, remove: Remove) -> float:
        """Move cells from a queue to the draft for at most ``seconds``; returns the seconds that they take.

        ``until``: requests that arrived later are left out.
        """
        cells, tokens, squares = self.cells, self._tokens, self._squares
        left = seconds = min(seconds, self._seconds_left)
        _, per_token, per_square = self._model.coefficients
        while (segment := queue.head()) is not None:
            ticket = segment.ticket
            if ticket.since > until:
                break
            if is_lost(ticket):
                continue
            count = self._room(segment, left)
            if not count:
                break
            length = segment.longest if count == segment.cells else int(segment.lengths[count - 1])
            take = Take(ticket, *segment.take(count))
            left -= per_token * take.tokens + per_square * take.squares
            self.cells += count
            self._tokens += take.tokens
            self._squares += take.squares
            if length > self._longest:
                self._longest = length
            self._takes.append(take)
            if segment.cells:
                break
        self._seconds_left -= seconds - left
        cells, tokens, squares = self.cells - cells, self._tokens - tokens, self._squares - squares
        queue.cells -= cells
        queue.tokens -= tokens
        queue.squares -= squares
        remove(self.kind, cells, tokens, squares)
        return seconds - left

    def finish(self) -> Batch[Item]:
        """Return the batch."""
        cost = self._model.marginal(self._tokens, self._squares)
        return Batch(self.kind, _joined(self._takes), self._longest, self._model.coefficients.fixed + cost)

    def _room(self, segment: Segment[Item], seconds: float) -> int:
        """Return how many cells of a segment may be added; at least one to an empty draft."""
        longest = segment.longest if segment.longest > self._longest else self._longest
        if segment.cells == 1 and self.cells:  # most of what waits under load
            fits = (self.cells + 1) * longest <= self._most_tokens
            fits = fits and self._model.marginal(segment.tokens, segment.squares) <= seconds
            return int(fits and self._within_padding(segment, longest) > 0)
        most = min(segment.cells, self._most_tokens // longest - self.cells, self._within_padding(segment, longest))
        least = 0 if self.cells else 1
        if most <= least:
            return least
        if segment.cells == most and self._model.marginal(segment.tokens, segment.squares) <= seconds:
            return most
        _, per_token, per_square = self._model.coefficients
        lengths = segment.lengths[:most]
        costs = np.cumsum(per_token * lengths + per_square * np.square(lengths))
        return max(int(np.searchsorted(costs, seconds, side="right")), least)

    def _within_padding(self, segment: Segment[Item], longest: int) -> int:
        """Return how many cells keep padding within its share, all of them in a draft that is not strict."""
        if not self.cells or not self.is_strict:
            return segment.cells
        waste = self.cells * longest - self._tokens
        each = longest - lowest_length(segment.bucket)  # at most
        spare = PADDING * self.cells * longest - waste
        beyond = each - PADDING * longest
        if spare < 0:
            return 0
        return segment.cells if beyond <= 0 else min(int(spare / beyond), segment.cells)


def fill(
    draft: Draft[Item],
    queues: Iterable[LengthQueue[Item]],
    seconds: float,
    *,
    until: float,
    is_lost: IsLost,
    remove: Remove,
) -> float:
    """Draw from queues, the nearest in length first, as ``Draft.draw``; returns the seconds of the cells."""
    spent = 0.0
    closed: set[bool] = set()  # sides, shorter and longer, where cells would have too much padding
    for queue in queues:
        if draft.is_full or spent >= seconds or len(closed) == 2:
            break
        is_longer = queue.bucket > draft.bucket
        if is_longer in closed:
            continue
        if draft.accepts(queue):
            spent += draft.draw(queue, seconds - spent, until=until, is_lost=is_lost, remove=remove)
        elif queue.bucket != draft.bucket:
            closed.add(is_longer)
    return spent


def _joined(takes: list[Take[Item]]) -> tuple[Take[Item], ...]:
    """Return one take for each request."""
    by_ticket: dict[Ticket[Item], list[Take[Item]]] = {}
    if len({take.ticket for take in takes}) == len(takes):
        return tuple(takes)
    for take in takes:
        by_ticket.setdefault(take.ticket, []).append(take)
    return tuple(_sum(parts) for parts in by_ticket.values())


def _sum(parts: list[Take[Item]]) -> Take[Item]:
    if len(parts) == 1:
        return parts[0]
    rows = np.concatenate([part.rows for part in parts])
    tokens, squares = sum(part.tokens for part in parts), sum(part.squares for part in parts)
    return Take(parts[0].ticket, rows, tokens, squares)
