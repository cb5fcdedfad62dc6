"""What waits: requests, their cells by length, and the cells of each caller.

A request of many cells is not one object per cell: it has a segment for each range of lengths, from which batches take
cells. Lengths of one bucket differ by at most a twentieth, so that a rectangle of its cells has at most 5 % padding.
"""

# C cells of a request

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

Item = TypeVar("Item")
Int64 = npt.NDArray[np.int64]
#: Share of the time from the arrival of a request to its deadline. What arrives later than that is not computed before
#: it, however well it would fill the batches of its cells.
OVERTAKING = 0.25
RATIO = 1.05  # of the lengths of a bucket; neighbouring buckets share batches as far as padding allows
NONE: Int64 = np.empty(0, np.int64)


def _edges() -> list[int]:
    edges = [2]
    while edges[-1] < 2**31:
        edges.append(max(edges[-1] + 1, int(edges[-1] * RATIO)))
    return edges


EDGES = _edges()  # the lowest length of each bucket but the first
_EDGES = np.array(EDGES)


def bucket_of(length: int) -> int:
    """Return the bucket of cells of a length in tokens."""
    return bisect.bisect_right(EDGES, length)


def lowest_length(bucket: int) -> int:
    """Return the smallest length of a bucket."""
    return EDGES[bucket - 1] if bucket else 1


@dataclass(frozen=True, eq=False)
class Work(Generic[Item]):
    """A request: an item of C cells that can be answered apart, or a single entry if it is answered as a whole."""

    item: Item
    kind: Hashable  # only work of one kind shares a batch
    tokens: Int64  # (C,) of each cell, at least 1
    whole_squares: int | None = None  # of work that is not divided: the sum of the squares of its cells' tokens
    key: str = ""  # of the caller
    bulk: bool = False
    deadline: float = float("inf")  # by the batcher's clock


class Ticket(Generic[Item]):
    """A request that was admitted; ``cells``, ``tokens`` and ``squares`` are of its cells that wait."""

    __slots__ = ("cells", "is_over", "segments", "since", "squares", "tokens", "work")

    def __init__(self, work: Work[Item], *, now: float) -> None:
        self.work = work
        self.since = now
        self.is_over = False  # answered, failed, or of no interest any more
        self.segments: tuple[Segment[Item], ...]
        if len(work.tokens) == 1:  # most requests under load: plain numbers are faster than arrays
            length = work.tokens.item()
            squares = length * length if work.whole_squares is None else work.whole_squares
            self.cells, self.tokens, self.squares = 1, length, squares
            self.segments = (
                Segment(self, bisect.bisect_right(EDGES, length), (_FIRST, work.tokens), (length, squares)),
            )
        else:
            self.segments = tuple(_split(self, work.tokens))
            self.cells = len(work.tokens)
            self.tokens = sum([segment.tokens for segment in self.segments])
            self.squares = sum([segment.squares for segment in self.segments])

    @property
    def last_companion(self) -> float:
        """When the last request arrives that may be computed before this one."""
        return self.since + OVERTAKING * (self.work.deadline - self.since)


class Segment(Generic[Item]):
    """Cells of one request and of similar length that wait, the shortest first."""

    __slots__ = ("_lengths", "_rows", "_start", "bucket", "cells", "longest", "squares", "ticket", "tokens")

    def __init__(self, ticket: Ticket[Item], bucket: int, cells: tuple[Int64, Int64], sums: tuple[int, int]) -> None:
        """``cells``: their rows and lengths; ``sums``: of their tokens and of their squares."""
        self.ticket = ticket
        self.bucket = bucket
        self._rows, self._lengths = cells
        self._start = 0
        self.tokens, self.squares = sums
        self.cells = len(self._rows)
        self.longest = self.tokens if self.cells == 1 else int(self._lengths[-1])

    @property
    def lengths(self) -> Int64:
        """Tokens of the cells that wait, ascending."""
        return self._lengths[self._start :]

    def take(self, count: int) -> tuple[Int64, int, int]:
        """Remove the first ``count`` cells, here and from what waits of the request.

        Returns their rows in the request, the sum of tokens and of squares.
        """
        rows = self._rows
        if count == self.cells:
            rows = rows[self._start :] if self._start else rows
            tokens, squares = self.tokens, self.squares
        else:
            rows = rows[self._start : self._start + count]
            lengths = self.lengths[:count]
            tokens, squares = int(lengths.sum()), int(np.square(lengths).sum())
        ticket = self.ticket
        self._start += count
        self.cells -= count
        self.tokens -= tokens
        self.squares -= squares
        ticket.cells -= count
        ticket.tokens -= tokens
        ticket.squares -= squares
        return rows, tokens, squares

    def clear(self) -> None:
        """Forget the cells, and the request: it may stay in its queue for a while."""
        self._rows = self._lengths = NONE
        self.cells = self.tokens = self.squares = 0
        del self.ticket


class LengthQueue(Generic[Item]):
    """Cells of one kind and bucket, in the order of arrival, with their sums."""

    __slots__ = ("bucket", "cells", "kind", "segments", "squares", "tokens")

    def __init__(self, kind: Hashable, bucket: int) -> None:
        self.kind, self.bucket = kind, bucket
        self.segments: deque[Segment[Item]] = deque()
        self.cells = self.tokens = self.squares = 0

    def head(self) -> Segment[Item] | None:
        """Return the oldest segment that has cells."""
        segments = self.segments
        while segments and not segments[0].cells:
            segments.popleft()
        return segments[0] if segments else None


class Flow(Generic[Item]):
    """The waiting work of one caller, and how much of the model's time the caller had."""

    __slots__ = ("is_active", "key", "queues", "served")

    def __init__(self, key: str) -> None:
        self.key = key
        self.served = 0.0  # virtual time, see ``fairness``
        self.is_active = False
        self.queues: dict[tuple[Hashable, int], LengthQueue[Item]] = {}

    def add(self, segment: Segment[Item], kind: Hashable) -> None:
        """Queue a segment."""
        name = (kind, segment.bucket)
        queue = self.queues.get(name)
        if queue is None:
            queue = self.queues[name] = LengthQueue(kind, segment.bucket)
        queue.segments.append(segment)
        queue.cells += segment.cells
        queue.tokens += segment.tokens
        queue.squares += segment.squares

    def waiting(self) -> list[LengthQueue[Item]]:
        """Return the queues with cells; others are forgotten."""
        empty = [name for name, queue in self.queues.items() if not queue.cells]
        for name in empty:
            del self.queues[name]
        return list(self.queues.values())

    def next(self) -> tuple[list[LengthQueue[Item]], float]:
        """Return the queues whose first cells may be computed now, and when their request arrived at the latest.

        Whatever comes later would delay a request that waits for longer than its deadline allows for.
        """
        heads = [(queue, segment.ticket) for queue in self.waiting() if (segment := queue.head()) is not None]
        until = min((ticket.last_companion for _, ticket in heads), default=0.0)
        return [queue for queue, ticket in heads if ticket.since <= until], until


def _split(ticket: Ticket[Any], tokens: Int64) -> Iterator[Segment[Any]]:
    rows = np.argsort(tokens, kind="stable")
    lengths = tokens[rows]
    buckets = np.searchsorted(_EDGES, lengths, side="right")
    bounds = [0, *(np.flatnonzero(np.diff(buckets)) + 1).tolist(), len(rows)]
    for start, stop in pairwise(bounds):
        own = lengths[start:stop]
        sums = int(own.sum()), int(np.square(own).sum())
        yield Segment(ticket, int(buckets[start]), (rows[start:stop], own), sums)


_FIRST: Int64 = np.zeros(1, np.int64)
