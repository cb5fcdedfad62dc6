"""The service without HTTP and Ray: one model behind a batcher, from the bytes of a request to those of its answer."""

# C cells, K labels, D width

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import pydantic_core

from cytoray.errors import ModelError, RequestError, ServingError
from cytoray.model.predictor import Predictions
from cytoray.serving.batcher import Batcher, Done
from cytoray.serving.config import Limits
from cytoray.serving.parsing import SAMPLE, ParsedRequest, parse_request, select_cells
from cytoray.serving.schemas import EmptyCells, GeneSummary, ModelInfo, Task
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.vocabulary import SPECIAL_TOKENS, GeneMapping, GeneVocabulary

BATCH_TOKENS = 65536  # a few minibatches of the predictor: enough cells to sort by length, and still a short wait
CANARY_GENES = 8
CANARY_TOLERANCE = 1e-3  # far above float noise between thread counts, far below the difference to another model


class Predictor(Protocol):
    """Interface of a model in the service; CellPredictor implements it."""

    def predict(self, cells: SparseCells) -> Predictions:
        """Predict for C cells, in their order; NaN for a cell without genes."""


@dataclass(frozen=True)
class Reply:
    """An encoded answer and the duration of each step in seconds."""

    content: bytes
    timings: dict[str, float]


class CellService:
    """A service for one model version; its construction tests that the model can answer."""

    def __init__(self, predictor: Predictor, *, vocabulary: GeneVocabulary, model: ModelInfo, limits: Limits) -> None:
        """Run the model on one cell; raises ModelError if it cannot answer."""
        self.model = model
        self.limits = limits
        self._predictor = predictor
        self._map_genes = lru_cache(maxsize=16)(vocabulary.map_genes)  # clients send the same genes again and again
        self._batcher = Batcher(self._predict_each, cost=_num_tokens, budget=BATCH_TOKENS)
        self._canary = _build_canary(vocabulary)
        self._expected = self._predict(self._canary)

    @property
    def labels(self) -> tuple[str, ...]:
        """Cell types that the model predicts; empty if it only embeds."""
        return self._expected.labels

    @property
    def width(self) -> int:
        """Length of an embedding."""
        return int(self._expected.embeddings.shape[1])

    async def answer(self, task: Task, body: bytes) -> Reply:
        """Answer one request body; raises RequestError if the request is invalid or takes too long."""
        if task == "annotate" and not self.labels:
            raise RequestError(
                f"Model {self.model.name} version {self.model.version} was not trained to label cells.",
                remedy="Use /v1/embed, or serve a model fine-tuned for annotation.",
                code="no_labels",
            )
        try:
            async with asyncio.timeout(self.limits.deadline_s):
                return await self._answer(task, body)
        except TimeoutError as error:
            raise RequestError(
                f"No answer within {self.limits.deadline_s:g} s.",
                remedy="Send fewer cells in one request, or try again later.",
                code="deadline_exceeded",
            ) from error

    async def check(self, *, timeout_s: float) -> None:
        """Check the model by a forward pass of one cell outside the batcher; raises ServingError if that fails."""
        self._batcher.check(max_age_s=2 * self.limits.deadline_s)
        try:
            seen = await asyncio.wait_for(asyncio.to_thread(self._predict, self._canary), timeout_s)
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

    async def _answer(self, task: Task, body: bytes) -> Reply:
        start = time.perf_counter()
        request, mapping, cells = await asyncio.to_thread(self._prepare, task, body)
        prepared = time.perf_counter()
        done: Done[Predictions] = await self._batcher.submit(cells)
        genes = GeneSummary(
            matched=int((mapping.ids >= 0).sum()), total=len(request.genes), unknown=list(mapping.unknown[:SAMPLE])
        )
        members = {"model": self.model, "genes": genes, "warnings": _warnings(cells)}
        content = await asyncio.to_thread(encode_answer, done.result, request=request, task=task, members=members)
        return Reply(content, {"tok": prepared - start, "queue": done.queued_s, "fwd": done.ran_s})

    def _prepare(self, task: Task, body: bytes) -> tuple[ParsedRequest, GeneMapping, SparseCells]:
        request = parse_request(body, task=task, limits=self.limits)
        mapping = self._map_genes(request.genes, ensembl_ids=request.ensembl_ids, genomes=request.genomes)
        return request, mapping, select_cells(request, mapping, min_gene_overlap=self.limits.min_gene_overlap)

    def _predict_each(self, parts: Sequence[SparseCells]) -> list[Predictions]:
        """Predict several requests as one."""
        whole = self._predict(SparseCells.concatenate(parts))
        bounds = np.cumsum([0, *(part.num_cells for part in parts)])
        probabilities = whole.probabilities
        return [
            Predictions(
                whole.embeddings[start:stop],
                None if probabilities is None else probabilities[start:stop],
                whole.labels,
            )
            for start, stop in pairwise(bounds)
        ]

    def _predict(self, cells: SparseCells) -> Predictions:
        predictions = self._predictor.predict(cells)
        if not np.isfinite(predictions.embeddings[cells.num_genes_per_cell > 0]).all():
            raise ModelError("The model returned embeddings that are not finite.", remedy="Serve another version.")
        return predictions


def encode_answer(predictions: Predictions, *, request: ParsedRequest, task: Task, members: dict[str, Any]) -> bytes:
    """Write the answer for C cells as JSON, after ``members``; that of a cell whose embedding is NaN is null.

    Floats are written as the shortest decimals of their float64 value, so reading them as float32 is exact.
    """
    columns: dict[str, list[Any]] = {}
    if task == "annotate":
        assert predictions.probabilities is not None, "annotation needs a model with labels"
        best_C = predictions.probabilities.argmax(axis=1)
        columns["label"] = [predictions.labels[best] for best in best_C]
        columns["probability"] = predictions.probabilities.max(axis=1).tolist()
        rows = predictions.probabilities.tolist()
        columns["probabilities"] = [dict(zip(predictions.labels, row, strict=True)) for row in rows]
    if task == "embed" or request.include_embedding:
        columns["embedding"] = predictions.embeddings.tolist()
    for row in np.flatnonzero(~np.isfinite(predictions.embeddings[:, 0])):
        for column in columns.values():
            column[row] = None
    columns = {"id": list(request.cell_ids), **columns}
    cells = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return pydantic_core.to_json({**members, "cells": cells})


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


def _num_tokens(cells: SparseCells) -> int:
    return len(cells.gene_ids) + cells.num_cells  # one <cls> per cell


def _build_canary(vocabulary: GeneVocabulary) -> SparseCells:
    """Build one artificial cell; mapping its gene names also builds the look-up tables before the first request."""
    genes = [token for token in vocabulary.tokens if token not in SPECIAL_TOKENS][:CANARY_GENES]
    columns = np.arange(len(genes))
    mapping = vocabulary.map_genes(genes)
    return mapping.apply(columns + 1.0, columns, np.array([0, len(genes)]), np.zeros(1, np.uint64))
