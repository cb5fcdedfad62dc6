"""Share the model's time between callers: start-time fair queueing, a form of deficit round robin.

Each caller has the seconds that its cells took, as predicted. The caller with the fewest is next: its waiting cells
choose the length of the batch, and those of other callers fill it. A caller that comes back starts where the others
are, so that nobody saves up time, and one that got more than its share in a batch waits until the others have caught
up. Two callers with enough work differ by at most two batches.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Hashable
from typing import Generic, TypeVar

from cytoray.serving.batching.config import BatchingConfig
from cytoray.serving.batching.costs import Costs
from cytoray.serving.batching.forming import Batch, Draft, IsLost, fill
from cytoray.serving.batching.queues import Flow, LengthQueue, Ticket

Item = TypeVar("Item")
COMPANIONS = 64  # callers beyond the first whose cells may fill a batch


class Group(Generic[Item]):
    """The requests of one class, interactive or bulk."""

    def __init__(self, config: BatchingConfig, costs: Costs, *, share: float) -> None:
        """``share``: of the model's time, while requests of both classes wait."""
        self.share = share
        self.served = 0.0  # seconds over the share, comparable between classes
        self.cells = self.tokens = 0  # that wait
        self._config, self._costs = config, costs
        self._loads: dict[Hashable, list[int]] = {}  # tokens and squares that wait, by kind
        self._flows: dict[str, Flow[Item]] = {}
        self._order: list[tuple[float, int, Flow[Item]]] = []  # a heap of flows with cells
        self._numbers = itertools.count()
        self._clock = 0.0  # ``served`` of the flow that was first in the last batch

    def add(self, ticket: Ticket[Item]) -> None:
        """Queue a request."""
        key, kind = ticket.work.key, ticket.work.kind
        flow = self._flows.get(key)
        if flow is None:
            flow = self._flows[key] = Flow(key)
        for segment in ticket.segments:
            flow.add(segment, kind)
        load = self._loads.setdefault(kind, [0, 0])
        load[0] += ticket.tokens
        load[1] += ticket.squares
        self.cells += ticket.cells
        self.tokens += ticket.tokens
        if not flow.is_active:
            flow.served = max(flow.served, self._clock)
            self._activate(flow)

    def remove(self, ticket: Ticket[Item]) -> None:
        """Forget the cells of a request that still wait."""
        queues = self._flows[ticket.work.key].queues if ticket.cells else {}
        for segment in ticket.segments:
            if segment.cells:
                queue = queues[ticket.work.kind, segment.bucket]
                queue.cells -= segment.cells
                queue.tokens -= segment.tokens
                queue.squares -= segment.squares
                segment.clear()
        self._uncount(ticket.work.kind, ticket.cells, ticket.tokens, ticket.squares)
        ticket.cells = ticket.tokens = ticket.squares = 0

    def form(self, now: float, is_lost: IsLost) -> Batch[Item] | None:
        """Form the next batch; None if nothing waits."""
        while self.cells:
            batch = self._form(now, is_lost)
            if batch is not None:
                self.served += batch.predicted_s / self.share
                return batch
        self._flows.clear()  # nobody waits, so that nobody has a claim; and names of callers do not pile up
        self._order.clear()
        return None

    def backlog(self) -> float:
        """Return the predicted seconds of all that waits."""
        seconds = 0.0
        if self.cells:
            for kind, (tokens, squares) in self._loads.items():
                seconds += self._costs.of(kind).marginal(tokens, squares)
        return seconds

    def backlog_before(self, key: str, own: float) -> float:
        """Return the predicted seconds until a further request of ``own`` seconds begins its last batch.

        While it waits, no other caller gets more than this one.
        """
        flows = [flow for _, _, flow in self._order]
        waiting = {flow.key: self._seconds(flow) for flow in flows}
        mine = waiting.pop(key, 0.0)
        return mine + sum(min(theirs, mine + own) for theirs in waiting.values())

    def oldest(self) -> float | None:
        """Return when the oldest request that waits arrived."""
        heads = [queue.head() for _, _, flow in self._order for queue in flow.waiting()]
        return min((head.ticket.since for head in heads if head is not None), default=None)

    def _form(self, now: float, is_lost: IsLost) -> Batch[Item] | None:
        """Form a batch of the flow whose turn it is; None if its cells were of requests that are lost."""
        first = self._next_flow()
        if first is None:
            return None
        start = first.served
        queues, _ = first.next()
        seed = self._seed(queues, now)
        draft: Draft[Item] = Draft(seed, self._costs.of(seed.kind), self._config)

        def draw(flow: Flow[Item], seconds: float) -> None:
            """Fill the draft with cells of one caller, and count their time as its."""
            queues, until = flow.next()
            near = _by_distance(queues, seed)
            flow.served += fill(draft, near, seconds, until=until, is_lost=is_lost, remove=self._uncount)

        flows = [first]
        draw(first, draft.budget / (1 + len(self._order)))
        while not draft.is_full and len(flows) <= COMPANIONS and (flow := self._next_flow()) is not None:
            flows.append(flow)
            draw(flow, draft.budget / (len(flows) + len(self._order)))
        for is_strict in (True, False):  # what is left is for those who come first
            draft.is_strict = is_strict
            for flow in flows:
                if not draft.is_full:
                    draw(flow, draft.budget)
        for flow in flows:
            self._activate(flow)
        if not draft.cells:
            return None
        self._clock = max(self._clock, start)
        return draft.finish()

    def _seed(self, queues: list[LengthQueue[Item]], now: float) -> LengthQueue[Item]:
        """Choose whose lengths the batch has: the oldest cells if they are overdue, else old ones that fill it."""

        def score(queue: LengthQueue[Item]) -> tuple[bool, float]:
            """Overdue cells first; age and fill both count up to 1."""
            head = queue.head()
            assert head is not None, "a queue with cells has a first segment"
            age = (now - head.ticket.since) / self._config.max_wait_s
            if age >= 1:
                return True, age
            seconds = self._costs.of(queue.kind).marginal(queue.tokens, queue.squares)
            return False, age + min(seconds / self._config.target_batch_s, 1.0)

        return queues[0] if len(queues) == 1 else max(queues, key=score)

    def _next_flow(self) -> Flow[Item] | None:
        """Take the flow whose turn it is off the heap."""
        while self._order:
            _, _, flow = heapq.heappop(self._order)
            flow.is_active = False
            if flow.waiting():
                return flow
            if flow.served <= self._clock:
                self._flows.pop(flow.key, None)
        return None

    def _activate(self, flow: Flow[Item]) -> None:
        """Put a flow on the heap, if it is not there."""
        if not flow.is_active:
            flow.is_active = True
            heapq.heappush(self._order, (flow.served, next(self._numbers), flow))

    def _seconds(self, flow: Flow[Item]) -> float:
        return sum(self._costs.of(queue.kind).marginal(queue.tokens, queue.squares) for queue in flow.queues.values())

    def _uncount(self, kind: Hashable, cells: int, tokens: int, squares: int) -> None:
        """Subtract cells that are taken or forgotten."""
        load = self._loads[kind]
        load[0] -= tokens
        load[1] -= squares
        self.cells -= cells
        self.tokens -= tokens


def _by_distance(queues: list[LengthQueue[Item]], seed: LengthQueue[Item]) -> list[LengthQueue[Item]]:
    """Order the queues of the seed's kind by how far their lengths are from it, shorter ones first."""
    same = [queue for queue in queues if queue.kind == seed.kind]
    return sorted(same, key=lambda queue: (abs(queue.bucket - seed.bucket), queue.bucket > seed.bucket))
