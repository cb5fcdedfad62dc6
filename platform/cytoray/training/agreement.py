"""Tell errors that every rank has met, which end a run, from those of some ranks, which restart its workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from cytoray.errors import TrainingError

Result = TypeVar("Result")


class AgreedError(Exception):
    """Carries a TrainingError that all ranks agree on: restarted workers would meet it again."""

    def __init__(self, error: TrainingError) -> None:
        super().__init__(str(error))
        self.error = error


def run_together(action: Callable[[], Result]) -> Result:
    """Run ``action`` on every rank and return its result. Collective.

    Raises AgreedError if it raised a TrainingError on all ranks. If it did so on some of them only, every rank raises
    that error, and Ray Train restarts the workers.
    """
    error: TrainingError | None = None
    results: list[Result] = []
    try:
        results.append(action())
    except TrainingError as caught:
        error = caught
    errors: list[TrainingError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    found = [other for other in errors if other is not None]
    if found and len(found) == len(errors):
        raise AgreedError(found[0]) from error
    if found:
        raise error or found[0]
    return results[0]
