"""Counters and gauges of a batcher, for metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields


@dataclass
class BatcherStats:
    """Counters since the start of a replica; ``snapshot`` adds gauges of this moment."""

    batches: int = 0  # that were answered
    cells: int = 0  # in these batches
    tokens: int = 0  # without padding
    padded_tokens: int = 0  # with the padding of the model's minibatches
    busy_s: float = 0.0  # measured seconds of these batches
    predicted_s: float = 0.0  # their predicted seconds
    prediction_error_s: float = 0.0  # sum of the absolute errors of these predictions
    failed_batches: int = 0
    split_batches: int = 0  # failed ones whose halves were tried
    out_of_memory: int = 0
    requests: int = 0  # admitted
    answered: int = 0
    failed: int = 0
    overloaded: int = 0  # refused on arrival
    deadline_exceeded: int = 0  # refused on arrival or given up in the queue
    cancelled: int = 0
    gauges: Callable[[], dict[str, float]] = field(default=dict, repr=False)  # set by the batcher

    def snapshot(self) -> dict[str, float]:
        """Return all counters, and the gauges.

        Gauges: ``queued_cells``, ``queued_tokens``, ``queue_age_s``, ``interactive_backlog_s``, ``bulk_backlog_s``,
        ``running_batches``.
        """
        counters = {entry.name: float(getattr(self, entry.name)) for entry in fields(self) if entry.name != "gauges"}
        return counters | self.gauges()
