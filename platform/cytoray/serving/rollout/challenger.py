"""A challenger beside the version that serves: it answers or recomputes a share of the requests, and is compared."""

# C cells, D width, K labels

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import numpy as np

from cytoray.errors import RequestError
from cytoray.serving.cell_work import Caller
from cytoray.serving.rollout.config import ChallengerConfig
from cytoray.serving.rollout.status import ChallengerStatus
from cytoray.serving.service import CellService, Reply

logger = logging.getLogger(__name__)
COPIES = Caller("challenger", is_bulk=True)  # requests of others come first
MOST_COPIES = 2  # at the same time
TAIL_BYTES = 4096  # of a body, which its sample depends on
OWN_FAULT = ("overloaded", "deadline_exceeded")  # refusals that another version may not have


@dataclass
class Comparison:
    """Counts of requests, and sums over cells, since a challenger was loaded."""

    answered: int = 0
    replaced: int = 0
    compared: int = 0
    dropped: int = 0
    failed: int = 0
    cells: int = 0
    cosine_sum: float = 0.0
    min_cosine: float = 1.0
    labelled: int = 0
    same_label: int = 0

    def add(self, one: Any, other: Any) -> None:
        """Compare two results of an endpoint; only embeddings and labels of cells are compared."""
        self.compared += 1
        left, right = getattr(one, "embeddings", None), getattr(other, "embeddings", None)
        if left is None or right is None or left.shape != right.shape:
            return
        cosine_C = (left * right).sum(axis=1)  # both are of unit length
        has_genes = np.isfinite(cosine_C)
        if not has_genes.any():
            return
        self.cells += int(has_genes.sum())
        self.cosine_sum += float(cosine_C[has_genes].sum())
        self.min_cosine = min(self.min_cosine, float(cosine_C[has_genes].min()))
        if getattr(one, "probabilities", None) is None or getattr(other, "probabilities", None) is None:
            return
        names = [
            [found.labels[best] for best in found.probabilities[has_genes].argmax(axis=1)] for found in (one, other)
        ]
        self.labelled += len(names[0])
        self.same_label += sum(a == b for a, b in zip(*names, strict=True))


class Challenger:
    """A version that is compared with the one that serves."""

    def __init__(self, service: CellService, config: ChallengerConfig) -> None:
        self.service, self.config = service, config
        self.seen = Comparison()
        self._copies: set[asyncio.Task[Any]] = set()

    def is_chosen(self, body: bytes) -> bool:
        """Return whether the challenger gets a request: always the same for the same body."""
        digest = hashlib.blake2b(body[-TAIL_BYTES:] + len(body).to_bytes(8), digest_size=8).digest()
        return int.from_bytes(digest) < self.config.share * 2**64

    async def try_answer(self, answer: Coroutine[Any, Any, Reply]) -> Reply | None:
        """Return the challenger's answer; None if the other version must answer.

        Raises RequestError for a request that is not valid.
        """
        task = asyncio.create_task(answer)
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()
        error = task.exception()
        if error is None:
            self.seen.answered += 1
            return task.result()
        if isinstance(error, RequestError) and error.code not in OWN_FAULT:
            raise error
        self.seen.replaced += 1
        logger.warning("the challenger failed, the serving version answers: %s", error)
        return None

    def compare(self, reply: Reply, other: CellService, *, release: Callable[[], None]) -> None:
        """Have ``other`` compute a copy of a request that was answered, and compare, unless the service is busy.

        ``release`` is called when ``other`` is no longer needed.
        """
        if reply.asked is None or len(self._copies) >= MOST_COPIES or other.stats.gauges()["queued_cells"]:
            self.seen.dropped += 1
            release()
            return
        asked, result = reply.asked, reply.result

        def done(task: asyncio.Task[Any]) -> None:
            """Compare what was computed."""
            self._copies.discard(task)
            release()
            if task.cancelled() or (error := task.exception()) is not None:
                self.seen.failed += 1
                if not task.cancelled():
                    logger.warning("a copy of a request for the challenger failed: %s", error)
                return
            self.seen.add(result, task.result())

        task = asyncio.create_task(other.ask(asked.endpoint, asked.question, COPIES))
        self._copies.add(task)
        task.add_done_callback(done)

    async def finish(self) -> None:
        """Wait for the copies that are being computed."""
        while self._copies:
            await asyncio.wait(self._copies)
            await asyncio.sleep(0)  # until they have been compared

    def status(self) -> ChallengerStatus:
        """Return the comparison so far."""
        seen = self.seen
        return ChallengerStatus(
            model=self.service.model,
            share=self.config.share,
            shadow=self.config.shadow,
            answered=seen.answered,
            replaced=seen.replaced,
            compared=seen.compared,
            dropped=seen.dropped,
            failed=seen.failed,
            cells=seen.cells,
            mean_cosine=seen.cosine_sum / seen.cells if seen.cells else None,
            min_cosine=seen.min_cosine if seen.cells else None,
            label_agreement=seen.same_label / seen.labelled if seen.labelled else None,
        )
