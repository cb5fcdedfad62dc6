"""Requests to endpoints as work of the batcher: divided into cells, answered in parts, and joined again."""

# C cells

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cytoray.serving.batching.batcher import Done, Part
from cytoray.serving.batching.queues import Work
from cytoray.tasks.endpoint import Endpoint, Question, ServedModel

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Caller:
    """The sender of a request; ``is_bulk`` is None if the size of the request decides."""

    key: str = ""
    is_bulk: bool | None = None


@dataclass(frozen=True, eq=False)
class Asked:
    """A question to an endpoint."""

    endpoint: Endpoint[Any, Any]
    question: Question[Any]
    caller: Caller = Caller()

    def work(self, model: ServedModel, *, deadline: float, interactive_cells: int) -> Work[Asked]:
        """Return the request as work of the batcher; ``deadline`` is by the batcher's clock."""
        endpoint, question = self.endpoint, self.question
        lengths = _num_tokens(model, question)
        if endpoint.join is not None and len(lengths) and endpoint.divides(model, question):
            tokens, squares = lengths, None
        else:
            tokens = np.array([max(endpoint.cost(question), 1)], np.int64)
            squares = int(np.square(lengths).sum()) or None
        is_bulk = self.caller.is_bulk
        if is_bulk is None:
            is_bulk = question.cells.num_cells > interactive_cells
        return Work(self, endpoint.run, tokens, squares, key=self.caller.key, bulk=is_bulk, deadline=deadline)

    def join(self, done: Done[Any]) -> Any:
        """Return the result of the request from those of its parts."""
        (rows, result), *others = done.parts
        if rows is None:
            assert not others, "a result for all cells is the only one"
            return result
        assert self.endpoint.join is not None, "only divided requests have parts"
        order = np.argsort(np.concatenate([part for part, _ in done.parts if part is not None]))
        return self.endpoint.join([result for _, result in done.parts], order)


def run_parts(model: ServedModel, run: Callable[..., Sequence[Any]], parts: Sequence[Part[Asked]]) -> Sequence[Any]:
    """Run parts of requests to endpoints with the same ``run``."""
    questions = [part.item.question if part.rows is None else part.item.question.take(part.rows) for part in parts]
    return run(model, questions)


def _num_tokens(model: ServedModel, question: Question[Any]) -> Int64:
    """Return the number of tokens of each cell (C,), <cls> included."""
    num_genes = question.cells.num_genes_per_cell
    return np.minimum(num_genes + 1, model.part(_max_length))


def _max_length(model: ServedModel) -> int:
    return model.bundle.tokenizer().max_length
