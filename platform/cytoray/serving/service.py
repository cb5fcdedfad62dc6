"""The service without HTTP and Ray: one model behind a batcher, from the bytes of a request to those of its answer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from cytoray.errors import RequestError, ServingError
from cytoray.serving.batching.batcher import Batcher, Done
from cytoray.serving.batching.config import BatchingConfig
from cytoray.serving.batching.outlook import Lengths, Outlook
from cytoray.serving.batching.stats import BatcherStats
from cytoray.serving.cell_work import Asked, Caller, run_parts
from cytoray.serving.config import Limits
from cytoray.serving.hosting.asking import check_asked
from cytoray.serving.payloads import h5ad_cells
from cytoray.serving.payloads.answering import encode_answer
from cytoray.serving.payloads.counting import count_cells
from cytoray.serving.payloads.json_cells import warm_up
from cytoray.serving.payloads.media import H5AD, JSON, JSON_FORM, Form
from cytoray.serving.payloads.parsed import SAMPLE
from cytoray.serving.payloads.parsing import parse, parse_message
from cytoray.serving.payloads.selecting import GeneCache, find_warnings, select_cells
from cytoray.serving.payloads.stopping import Stop
from cytoray.serving.rollout.status import RolloutStatus
from cytoray.tasks import task_endpoints
from cytoray.tasks.endpoint import Endpoint, Question, ServedModel
from cytoray.tasks.messages import CellsRequest, GeneSummary, ModelInfo
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.vocabulary import SPECIAL_TOKENS, GeneVocabulary

SMALL_ANSWER = (
    4096  # numbers, encoded within a millisecond: less than it takes to hand them to another thread under load
)
CANARY_GENES = 8
CANARY_WAIT_S = 4.0  # of one check
CANARY_TOLERANCE = 1e-3  # far above float noise between thread counts, far below the difference to another model


@dataclass(frozen=True)
class Reply:
    """An encoded answer and the duration of each step in seconds."""

    content: bytes
    timings: dict[str, float]
    model: ModelInfo  # that answered
    num_cells: int = 0  # that were answered
    media_type: str = JSON
    asked: Asked | None = None  # what was asked, and the result before it was encoded
    result: Any = None


class CellService:
    """A service for one model version; its construction tests that the model can answer."""

    def __init__(
        self,
        served: ServedModel,
        *,
        limits: Limits,
        batching: BatchingConfig = BatchingConfig(),  # noqa: B008 - frozen
    ) -> None:
        """Run the model on one cell, and load what endpoints need; raises ModelError if it cannot answer."""
        import torch  # the model has it; a client's tools import this module without

        self.limits = limits
        self._served = served
        for endpoint in task_endpoints().values():
            served.part(endpoint.load)
        vocabulary = served.bundle.vocabulary
        self._genes = GeneCache(vocabulary.map_genes)
        self._uploads = ThreadPoolExecutor(h5ad_cells.AT_ONCE, thread_name_prefix="h5ad")
        self._batching, self._lengths = batching, Lengths()
        self._batcher: Batcher[Asked] = Batcher(
            partial(run_parts, served), config=batching, too_large=(MemoryError, torch.OutOfMemoryError)
        )
        self._canary_thread = ThreadPoolExecutor(1, thread_name_prefix="cytoray-canary")
        self._canary_job: asyncio.Future[Any] | None = None
        self._canary_since = 0.0
        self._canary = _build_canary(vocabulary)
        self._expected = served.predict(self._canary)
        warm_up()

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

    @property
    def stats(self) -> BatcherStats:
        """Counters of the batcher, for metrics."""
        return self._batcher.stats

    def status(self) -> RolloutStatus:
        """Return the version, which never changes."""
        return RolloutStatus(model=self.model)

    @contextlib.contextmanager
    def hold(self) -> Iterator[CellService]:
        """Give the service itself, as a slot gives that of one version."""
        yield self

    async def answer(
        self,
        endpoint: Endpoint[Any, Any],
        body: bytes,
        form: Form = JSON_FORM,
        caller: Caller = Caller(),  # noqa: B008
    ) -> Reply:
        """Answer one request body; raises RequestError if the request is invalid or takes too long."""
        endpoint.check(self._served)
        stop = Stop()
        try:
            async with asyncio.timeout(self.limits.deadline_s):
                return await self._answer(endpoint, body, form, caller, stop)
        except TimeoutError as error:
            raise RequestError(
                f"No answer within {self.limits.deadline_s:g} s.",
                remedy="Send fewer cells in one request, or try again later.",
                code="deadline_exceeded",
            ) from error
        finally:
            stop.set()  # threads cannot be cancelled: they look at this

    async def ask(self, endpoint: Endpoint[Any, Any], question: Question[Any], caller: Caller = Caller()) -> Any:  # noqa: B008
        """Answer a question about cells over the model's vocabulary; raises RequestError if it is refused."""
        endpoint.check(self._served)
        await asyncio.to_thread(endpoint.admit, self._served, question)
        asked = Asked(endpoint, question, caller)
        return asked.join(await self._submit(asked, self._batcher.clock() + self.limits.deadline_s))

    async def check(self, *, timeout_s: float) -> None:
        """Check progress, and the model by a forward pass of one cell; raises ServingError if one of them fails.

        The cell has a thread of its own: neither waiting requests nor the parsing of others delay it. On a busy machine
        it may take longer than a check does; a later check then sees its end, or that ``timeout_s`` are over.
        """
        self._batcher.check()
        if self._canary_job is None:
            self._canary_job = asyncio.wrap_future(self._canary_thread.submit(self._served.predict, self._canary))
            self._canary_since = time.monotonic()
        job = self._canary_job
        await asyncio.wait([job], timeout=min(timeout_s, CANARY_WAIT_S))
        if not job.done():
            if time.monotonic() - self._canary_since < timeout_s:
                return
            raise ServingError(f"One cell took more than {timeout_s:g} s.", remedy="Replace this replica.")
        self._canary_job = None
        seen = job.result()
        if not np.allclose(seen.embeddings, self._expected.embeddings, atol=CANARY_TOLERANCE):
            raise ServingError("The model answers differently than when it was loaded.", remedy="Replace this replica.")

    def check_ready(self) -> None:
        """Raise ServingError if requests would not be answered."""
        self._batcher.check()

    async def drain(self) -> None:
        """Accept no further requests, and wait until those in the queue are computed."""
        await self._batcher.drain()

    async def close(self) -> None:
        """Stop answering."""
        await self._batcher.close()
        self._uploads.shutdown(wait=False, cancel_futures=True)
        self._canary_thread.shutdown(wait=False, cancel_futures=True)

    async def _answer(self, endpoint: Endpoint[Any, Any], body: bytes, form: Form, caller: Caller, stop: Stop) -> Reply:
        start = time.perf_counter()
        deadline = self._batcher.clock() + self.limits.deadline_s
        prepare = partial(self._prepare, endpoint, body, form, stop)
        pool = self._uploads if form.media_type == H5AD else None
        with self._batcher.expecting(self._outlook(endpoint, body, form, caller, deadline)):
            question, members = await asyncio.get_running_loop().run_in_executor(pool, prepare)
        prepared = time.perf_counter()
        asked = Asked(endpoint, question, caller)
        done = await self._submit(asked, deadline)
        encode = partial(_join_and_encode, asked, done, members, form.answer)
        is_small = endpoint.join is not None and question.cells.num_cells * self.width <= SMALL_ANSWER
        content, result = encode() if is_small else await asyncio.to_thread(encode)
        timings = {"tok": prepared - start, "queue": done.queued_s, "fwd": done.ran_s}
        return Reply(content, timings, members["model"], question.cells.num_cells, form.answer, asked, result)

    async def _submit(self, asked: Asked, deadline: float) -> Done[Any]:
        """Have the batcher run a request by ``deadline``, a time of its clock."""
        few = self._batching.interactive_cells
        work = asked.work(self._served, deadline=deadline, interactive_cells=few)
        tokens = int(work.tokens.sum())
        squares = int(np.square(work.tokens).sum()) if work.whole_squares is None else work.whole_squares
        cells = asked.question.cells.num_cells
        self._lengths.learn(asked.endpoint.run, cells=cells, tokens=tokens, squares=squares)
        return await self._batcher.submit(work)

    def _outlook(
        self, endpoint: Endpoint[Any, Any], body: bytes, form: Form, caller: Caller, deadline: float
    ) -> Outlook:
        """Return what is known of a request before it is read; not more than its caller, if it need not wait."""
        outlook = Outlook(endpoint.run, caller.key, bool(caller.is_bulk), deadline)
        is_about_cells = issubclass(endpoint.request, CellsRequest)
        cells = count_cells(body, form) if is_about_cells and self._batcher.is_busy else None
        if cells is None:
            return outlook
        is_bulk = cells > self._batching.interactive_cells if caller.is_bulk is None else caller.is_bulk
        return self._lengths.expect(replace(outlook, bulk=is_bulk), cells=cells)

    def _prepare(
        self, endpoint: Endpoint[Any, Any], body: bytes, form: Form, stop: Stop
    ) -> tuple[Question[Any], dict[str, Any]]:
        """Parse a request; returns the question, and the members of its answer that all endpoints share."""
        stop.check()  # it may have waited for a thread
        members: dict[str, Any] = {"model": self.model}
        if not issubclass(endpoint.request, CellsRequest):
            message = parse_message(body, form, kind=endpoint.request, limits=self.limits, stop=stop)
            check_asked(message.model, form)
            asked = Question(message, SparseCells.concatenate([]))
            endpoint.admit(self._served, asked)
            return asked, members
        request = parse(body, form, kind=endpoint.request, limits=self.limits, stop=stop)
        check_asked(request.asked.model, form)
        stop.check()
        mapping = self._genes.map(request)
        stop.check()
        cells = select_cells(request, mapping, min_gene_overlap=self.limits.min_gene_overlap)
        genes = GeneSummary(
            matched=mapping.num_matched, total=len(request.genes), unknown=list(mapping.unknown[:SAMPLE])
        )
        members |= {"genes": genes, "warnings": find_warnings(request, mapping, cells)}
        question = Question(request.asked, cells, request.cell_ids, mapping.measured)
        endpoint.admit(self._served, question)
        return question, members


def _join_and_encode(asked: Asked, done: Done[Any], members: dict[str, Any], media_type: str) -> tuple[bytes, Any]:
    """Write the answer to a request whose parts are done; returns it and the result."""
    result = asked.join(done)
    return encode_answer(asked.endpoint, asked.question, result, members=members, media_type=media_type), result


def _build_canary(vocabulary: GeneVocabulary) -> SparseCells:
    """Build one artificial cell; mapping its gene names also builds the look-up tables before the first request."""
    genes = [token for token in vocabulary.tokens if token not in SPECIAL_TOKENS][:CANARY_GENES]
    columns = np.arange(len(genes))
    mapping = vocabulary.map_genes(genes)
    return mapping.apply(columns + 1.0, columns, np.array([0, len(genes)]), np.zeros(1, np.uint64))
