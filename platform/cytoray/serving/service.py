"""The service without HTTP and Ray: one model behind a batcher, from the bytes of a request to those of its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pydantic_core

from cytoray.errors import RequestError, ServingError
from cytoray.serving.batcher import Batcher, Done
from cytoray.serving.config import Limits
from cytoray.serving.parsing import SAMPLE, parse_request, select_cells, validate_body
from cytoray.tasks import task_endpoints
from cytoray.tasks.endpoint import Endpoint, Question, ServedModel
from cytoray.tasks.messages import CellsRequest, EmptyCells, GeneSummary, ModelInfo
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.vocabulary import SPECIAL_TOKENS, GeneVocabulary

BATCH_TOKENS = 65536  # a few minibatches of the predictor: enough cells to sort by length, and still a short wait
CANARY_GENES = 8
CANARY_TOLERANCE = 1e-3  # far above float noise between thread counts, far below the difference to another model


@dataclass(frozen=True)
class Reply:
    """An encoded answer and the duration of each step in seconds."""

    content: bytes
    timings: dict[str, float]


@dataclass(frozen=True)
class _Item:
    """A request in the batcher."""

    endpoint: Endpoint[Any, Any]
    question: Question[Any]

    def cost(self) -> int:
        """Return the cost of the request in tokens."""
        return self.endpoint.cost(self.question)


class CellService:
    """A service for one model version; its construction tests that the model can answer."""

    def __init__(self, served: ServedModel, *, limits: Limits) -> None:
        """Run the model on one cell, and load what endpoints need; raises ModelError if it cannot answer."""
        self.limits = limits
        self._served = served
        for endpoint in task_endpoints().values():
            served.part(endpoint.load)
        vocabulary = served.bundle.vocabulary
        self._map_genes = lru_cache(maxsize=16)(vocabulary.map_genes)  # clients send the same genes again and again
        self._batcher = Batcher(self._run_together, cost=_Item.cost, budget=BATCH_TOKENS)
        self._canary = _build_canary(vocabulary)
        self._expected = served.predict(self._canary)

    @property
    def model(self) -> ModelInfo:
        """Identity of the model."""
        return self._served.info

    @property
    def served(self) -> ServedModel:
        """The model that answers."""
        return self._served

    @property
    def labels(self) -> tuple[str, ...]:
        """Cell types that the model predicts; empty if it only embeds."""
        return self._expected.labels

    @property
    def width(self) -> int:
        """Length of an embedding."""
        return int(self._expected.embeddings.shape[1])

    async def answer(self, endpoint: Endpoint[Any, Any], body: bytes) -> Reply:
        """Answer one request body; raises RequestError if the request is invalid or takes too long."""
        endpoint.check(self._served)
        try:
            async with asyncio.timeout(self.limits.deadline_s):
                return await self._answer(endpoint, body)
        except TimeoutError as error:
            raise RequestError(
                f"No answer within {self.limits.deadline_s:g} s.",
                remedy="Send fewer cells in one request, or try again later.",
                code="deadline_exceeded",
            ) from error

    async def ask(self, endpoint: Endpoint[Any, Any], question: Question[Any]) -> Any:
        """Answer a question about cells over the model's vocabulary; raises RequestError if it is refused."""
        endpoint.check(self._served)
        await asyncio.to_thread(endpoint.admit, self._served, question)
        done: Done[Any] = await self._batcher.submit(_Item(endpoint, question))
        return done.result

    async def check(self, *, timeout_s: float) -> None:
        """Check the model by a forward pass of one cell outside the batcher; raises ServingError if that fails."""
        self._batcher.check(max_age_s=2 * self.limits.deadline_s)
        try:
            seen = await asyncio.wait_for(asyncio.to_thread(self._served.predict, self._canary), timeout_s)
        except TimeoutError as error:
            raise ServingError(f"One cell took more than {timeout_s:g} s.", remedy="Replace this replica.") from error
        if not np.allclose(seen.embeddings, self._expected.embeddings, atol=CANARY_TOLERANCE):
            raise ServingError("The model answers differently than when it was loaded.", remedy="Replace this replica.")

    def check_ready(self) -> None:
        """Raise ServingError if requests would not be answered."""
        self._batcher.check(max_age_s=2 * self.limits.deadline_s)

    async def close(self) -> None:
        """Stop answering."""
        await self._batcher.close()

    async def _answer(self, endpoint: Endpoint[Any, Any], body: bytes) -> Reply:
        start = time.perf_counter()
        question, members = await asyncio.to_thread(self._prepare, endpoint, body)
        prepared = time.perf_counter()
        done: Done[Any] = await self._batcher.submit(_Item(endpoint, question))
        content = await asyncio.to_thread(_encode, endpoint, question, done.result, members)
        return Reply(content, {"tok": prepared - start, "queue": done.queued_s, "fwd": done.ran_s})

    def _prepare(self, endpoint: Endpoint[Any, Any], body: bytes) -> tuple[Question[Any], dict[str, Any]]:
        """Parse a request; returns the question, and the members of its answer that all endpoints share."""
        members: dict[str, Any] = {"model": self.model}
        if not issubclass(endpoint.request, CellsRequest):
            asked = Question(validate_body(body, kind=endpoint.request), SparseCells.concatenate([]))
            endpoint.admit(self._served, asked)
            return asked, members
        request = parse_request(body, kind=endpoint.request, limits=self.limits)
        mapping = self._map_genes(request.genes, ensembl_ids=request.ensembl_ids, genomes=request.genomes)
        cells = select_cells(request, mapping, min_gene_overlap=self.limits.min_gene_overlap)
        genes = GeneSummary(
            matched=int((mapping.ids >= 0).sum()), total=len(request.genes), unknown=list(mapping.unknown[:SAMPLE])
        )
        members |= {"genes": genes, "warnings": _warnings(cells)}
        measured = np.unique(mapping.ids[mapping.ids >= 0])
        question = Question(request.asked, cells, request.cell_ids, measured)
        endpoint.admit(self._served, question)
        return question, members

    def _run_together(self, items: Sequence[_Item]) -> list[Any]:
        """Run several requests, those of endpoints with the same ``run`` as one."""
        results: list[Any] = [None] * len(items)
        for run in dict.fromkeys(item.endpoint.run for item in items):
            places = [place for place, item in enumerate(items) if item.endpoint.run is run]
            found = run(self._served, [items[place].question for place in places])
            for place, result in zip(places, found, strict=True):
                results[place] = result
        return results


def _encode(endpoint: Endpoint[Any, Any], question: Question[Any], result: Any, members: dict[str, Any]) -> bytes:
    """Write an answer as JSON, after the ``members`` that all endpoints share.

    Floats are written as the shortest decimals of their float64 value, so reading them as float32 is exact.
    """
    return pydantic_core.to_json(members | endpoint.answer(question, result))


def _warnings(cells: SparseCells) -> list[EmptyCells]:
    """Return the warning about cells without any gene, if there are some."""
    empty = np.flatnonzero(cells.num_genes_per_cell == 0)
    if len(empty) == 0:
        return []
    problem = (
        f"{len(empty)} of {cells.num_cells} cells have no expressed gene that the model knows, the first is"
        f" /cells/{empty[0]}; their answers are null."
    )
    return [EmptyCells(code="empty_cells", detail=problem, indices=empty.tolist())]


def _build_canary(vocabulary: GeneVocabulary) -> SparseCells:
    """Build one artificial cell; mapping its gene names also builds the look-up tables before the first request."""
    genes = [token for token in vocabulary.tokens if token not in SPECIAL_TOKENS][:CANARY_GENES]
    columns = np.arange(len(genes))
    mapping = vocabulary.map_genes(genes)
    return mapping.apply(columns + 1.0, columns, np.array([0, len(genes)]), np.zeros(1, np.uint64))
