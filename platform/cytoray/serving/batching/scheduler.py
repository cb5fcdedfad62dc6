"""Decide which cells are the next batch, which requests are admitted, and which are given up; no threads, no clock."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any, Generic, TypeVar

from cytoray.serving.batching.config import BatchingConfig
from cytoray.serving.batching.costs import Costs, Pace, Sample
from cytoray.serving.batching.fairness import Group
from cytoray.serving.batching.forming import Batch, Take
from cytoray.serving.batching.outlook import Outlook
from cytoray.serving.batching.queues import Ticket, bucket_of
from cytoray.serving.batching.refusals import overloaded, queue_full, too_long

Item = TypeVar("Item")

#: Share of the time until its deadline that a request may be predicted to wait. OVERTAKING is for later requests that
#: are computed along with it, the rest for predictions that are wrong: given up, it would have been computed in vain.
ADMITTED_SHARE = 0.5


class Scheduler(Generic[Item]):
    """The queue of a replica.

    An admitted cell waits for a bounded time: its class gets its share of the model, its caller an equal part of that,
    and among the cells of a caller, those that waited for ``max_wait_s`` come first, the oldest of them at the head.
    """

    def __init__(self, config: BatchingConfig) -> None:
        self.costs = Costs()
        self.lost: list[Ticket[Item]] = []  # requests given up since their owner last looked
        self._config = config
        self._pace = Pace(parallel_batches=config.parallel_batches)
        self._groups: dict[bool, Group[Item]] = {
            False: Group(config, self.costs, share=config.interactive_share),
            True: Group(config, self.costs, share=1 - config.interactive_share),
        }
        self._read: dict[Outlook, float] = {}  # predicted seconds of requests that are being read
        self._parts: deque[Batch[Item]] = deque()  # of batches that failed
        self._was_part = False
        self._clock = 0.0  # ``served`` of the class that had the last batch, before it
        self._out: dict[Batch[Item], float] = {}  # predicted seconds of batches that were handed out

    @property
    def cells(self) -> int:
        """Number of cells that wait."""
        return self._groups[False].cells + self._groups[True].cells

    @property
    def tokens(self) -> int:
        """Number of tokens that wait."""
        return self._groups[False].tokens + self._groups[True].tokens

    @property
    def has_work(self) -> bool:
        """Whether something waits."""
        return self.cells > 0 or bool(self._parts)

    @property
    def is_busy(self) -> bool:
        """Whether a further request would wait for others."""
        return self.has_work or bool(self._read)

    def admit(self, ticket: Ticket[Any], now: float) -> None:
        """Raise RequestError (`overloaded`, `deadline_exceeded`) for a request that would not be answered in time."""
        work = ticket.work
        model, left = self.costs.of(work.kind), work.deadline - now
        own = model.predict(ticket.tokens, ticket.squares) / self._config.parallel_batches
        if own > left and model.is_fresh(now):
            raise too_long(own, left, num_cells=ticket.cells)
        waiting = self.tokens
        if waiting and waiting + ticket.tokens > self._config.max_queued_tokens:
            raise queue_full(self.wait_s(work.key, work.bulk, own))
        self._admit(work.key, work.bulk, own, left)

    def expect(self, outlook: Outlook, now: float) -> None:
        """Count a request until ``forget``; raises RequestError (`overloaded`) if it would wait for too long."""
        model = self.costs.of(outlook.kind)
        own = model.predict(outlook.tokens, outlook.squares) / self._config.parallel_batches if outlook.tokens else 0.0
        self._admit(outlook.key, outlook.bulk, own, outlook.deadline - now)
        self._read[outlook] = own

    def forget(self, outlook: Outlook) -> None:
        """Count a request no longer that has been read."""
        del self._read[outlook]

    def _admit(self, key: str, bulk: bool, own: float, left: float) -> None:
        """Raise RequestError (`overloaded`) if a request would wait for too long.

        ``own``: its predicted seconds; ``left``: seconds until its deadline.
        """
        most = min(self._config.max_backlog_s, (left - own) * ADMITTED_SHARE)
        before = self.backlog_s() + sum(self._read.values()) if self.is_busy else 0.0
        if before * self._pace.value <= max(most, 0.0):
            return
        if (wait := self.wait_s(key, bulk, own)) > most:
            raise overloaded(wait, excess=wait - most)

    def wait_s(self, key: str, bulk: bool, own: float) -> float:
        """Predict how many seconds of other work come before the end of a request of ``own`` seconds."""
        group, other = self._groups[bulk], self._groups[not bulk]
        before = group.backlog_before(key, own)
        before += sum(own for other, own in self._read.items() if (other.key, other.bulk) == (key, bulk))
        between = min(other.backlog(), (before + own) * other.share / group.share)
        return (before + between + sum(self._out.values())) * self._pace.value

    def add(self, ticket: Ticket[Item]) -> None:
        """Queue a request."""
        group = self._groups[ticket.work.bulk]
        if not group.cells:
            group.served = max(group.served, self._clock)
        group.add(ticket)

    def drop(self, ticket: Ticket[Item]) -> None:
        """Forget a request: its cells that wait are not computed any more."""
        self._groups[ticket.work.bulk].remove(ticket)
        self.release(ticket)

    def release(self, ticket: Ticket[Item]) -> None:
        """Let go of a request that is over; its cells and segments refer to each other."""
        ticket.is_over = True
        ticket.segments = ()

    def next(self, now: float) -> Batch[Item] | None:
        """Take the next batch off the queue; None if nothing waits."""
        batch = self._next_part()
        self._was_part = batch is not None
        if batch is None:
            batch = self._next_whole(now) or self._next_part()
        if batch is not None:
            self._out[batch] = batch.predicted_s
            self._pace.begin(now)
        return batch

    def done(self, batch: Batch[Item], seconds: float, now: float) -> None:
        """Learn from a batch that was answered in ``seconds``."""
        del self._out[batch]
        predicted_s = self.costs.of(batch.kind).marginal(batch.tokens, batch.squares)
        self._pace.count(predicted_s, now, is_busy=self.has_work or bool(self._out))
        sample = Sample(batch.tokens, batch.squares, seconds)
        self.costs.learn(batch.kind, sample, bucket=bucket_of(batch.longest), now=now)

    def retry(self, batch: Batch[Item], *, is_too_large: bool) -> bool:
        """Queue the halves of a batch that failed; False if it cannot be divided.

        A batch that was too large for the memory is divided by cells, any other by requests: a request whose cell
        fails has no answer, and its other cells need none.
        """
        del self._out[batch]
        takes = batch.takes
        if is_too_large:
            self.costs.of(batch.kind).shrink(batch.tokens)
        if len(takes) > 1:
            middle = len(takes) // 2
            halves = (takes[:middle], takes[middle:])
        elif is_too_large and batch.cells > 1:
            first, second = _halved(takes[0])
            halves = ((first,), (second,))
        else:
            return False
        for half in reversed(halves):
            self._parts.appendleft(replace(batch, takes=half, predicted_s=batch.predicted_s / 2))
        return True

    def oldest(self) -> float | None:
        """Return when the oldest request that waits arrived."""
        return min((since for group in self._groups.values() if (since := group.oldest()) is not None), default=None)

    def backlog_s(self, *, bulk: bool | None = None) -> float:
        """Return the predicted seconds of what waits of a class, or of all that waits and runs."""
        if bulk is not None:
            return self._groups[bulk].backlog()
        running = sum(self._out.values()) if self._out else 0.0
        return self._groups[False].backlog() + self._groups[True].backlog() + running

    def _next_part(self) -> Batch[Item] | None:
        """Return a part of a batch that failed; only every other batch is one, so that they delay others little."""
        while self._parts and not self._was_part:
            batch = self._parts.popleft()
            takes = tuple(take for take in batch.takes if not take.ticket.is_over)
            if takes:
                return replace(batch, takes=takes)
        return None

    def _next_whole(self, now: float) -> Batch[Item] | None:
        """Return a batch of the class that had less of its share; interactive requests have a batch in advance."""
        advance = self._config.target_batch_s / self._config.interactive_share
        safe = now + self.backlog_s() + self.costs.most_fixed()  # no request takes longer than all that waits

        def is_lost(ticket: Ticket[Any]) -> bool:
            """Whether a request cannot be answered in time any more."""
            return ticket.work.deadline <= safe and self._is_lost(ticket, now)

        while waiting := [group for group in self._groups.values() if group.cells]:
            group = min(waiting, key=lambda group: group.served - (0.0 if group is self._groups[True] else advance))
            start = group.served
            if (batch := group.form(now, is_lost)) is not None:
                self._clock = max(self._clock, start)
                return batch
        return None

    def _is_lost(self, ticket: Ticket[Any], now: float) -> bool:
        """Give up a request whose deadline has passed or, by a fresh prediction, will have passed before its answer."""
        model, left = self.costs.of(ticket.work.kind), ticket.work.deadline - now
        own = model.predict(ticket.tokens, ticket.squares)
        if left <= 0 or (own > left * self._config.parallel_batches and model.is_fresh(now)):
            self.drop(ticket)
            self.lost.append(ticket)
            return True
        return False


def _halved(take: Take[Item]) -> tuple[Take[Item], Take[Item]]:
    middle = len(take.rows) // 2
    lengths = take.ticket.work.tokens[take.rows]
    sides = ((take.rows[:middle], lengths[:middle]), (take.rows[middle:], lengths[middle:]))
    first, second = (Take(take.ticket, rows, int(own.sum()), int((own**2).sum())) for rows, own in sides)
    return first, second
