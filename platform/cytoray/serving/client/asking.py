"""Ask about cells: several requests in parallel, all answered by one version of the model.

If the version changes between requests, because an alias moved or a canary takes a share, the cells of the fewer
answers are asked about again; if none of these is answered by the version of the others any more, it is gone, and its
cells are asked about again. After some rounds without one version for all, the call fails: versions are never mixed.
"""

# C cells

from __future__ import annotations

import asyncio
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import pydantic_core

from cytoray.errors import CytorayError, ServingError
from cytoray.serving.client.chunks import AnsweredChunk, Chunk, Keeper, Kept, Model, Partial, incomplete, missing_rows
from cytoray.serving.client.connection import Connection, Sent
from cytoray.serving.client.failures import Failure
from cytoray.serving.client.pace import Pace
from cytoray.serving.client.questions import Asked
from cytoray.serving.client.settings import Progress, Wire
from cytoray.serving.client.wire import read_reply, write_request
from cytoray.serving.payloads.media import ARROW, JSON
from cytoray.tasks.endpoint import Endpoint

_MODELS = "/v1/models"
MOST_ROUNDS = 5  # of asking again after the version has changed


@dataclass(frozen=True, eq=False)
class Received:
    """The answers to one call."""

    asked: Asked
    chunks: list[AnsweredChunk]  # of all cells, in their order; none if the call is not about cells
    answer: dict[str, Any] = field(default_factory=dict)  # to a call that is not about cells
    about: dict[str, Any] = field(default_factory=dict)  # the service's /version, if no cell has an answer


class Asker:
    """Asks a service; keeps what it has learned about the service from call to call."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._wire: Wire = connection.settings.wire
        self._step = connection.settings.cells_per_request

    async def ask(self, asked: Asked, *, keeper: Keeper | None = None, progress: Progress | None = None) -> Received:
        """Ask an endpoint; raises the error of the service, or an IncompleteError if some cells were answered."""
        route = _route(asked.endpoint, asked.model)
        if asked.source is None:
            try:
                answer = await self.connection.post(route, pydantic_core.to_json(asked.members))
            except Failure as failure:
                raise failure.error from failure
            return Received(asked, [], answer)
        started = asked.started()
        kept = (started.kept if started else Kept()) if keeper is None else keeper
        call = _Call(self, asked, route, kept, progress)
        await call.run()
        chunks = kept.chunks()
        about = await self._describe(asked.model) if _none_answered(chunks, asked.source.num_cells) else {}
        return Received(asked, chunks, about=about)

    @property
    def step(self) -> int:
        """Number of cells of a request."""
        return self._step

    def shrink(self, num_cells: int, failure: Failure) -> None:
        """Send fewer cells in a request from now on: one of ``num_cells`` was too large."""
        details = failure.error.details
        limit = details.get("limit") if details.get("code") == "use_jobs" else None  # in cells
        most = limit if isinstance(limit, int) and limit < num_cells else num_cells // 2
        self._step = max(min(self._step, most), 1)

    async def send(self, asked: Asked, route: str, rows: range, pace: Pace) -> Chunk:
        """Return the answer to some cells; a service that does not read Arrow is sent JSON from then on."""
        assert asked.source is not None
        block = await asyncio.to_thread(asked.source.block, rows)
        while True:
            wire = self._wire
            content, headers = await asyncio.to_thread(write_request, block, asked.members, wire)
            media_type = ARROW if wire == "arrow" else JSON
            sent = Sent("POST", route, content, {**headers, "Accept": media_type}, len(rows))
            try:
                response = await self.connection.ask(sent, pace)
            except Failure as failure:
                if wire == "json" or failure.error.details.get("code") != "unsupported_media_type":
                    raise
                self._wire = "json"
                continue
            return await asyncio.to_thread(read_reply, asked.endpoint, rows, response)

    async def _describe(self, model: str | None) -> dict[str, Any]:
        try:
            return await self.connection.get("/version" if model is None else f"{_MODELS}/{quote(model, safe='/@')}")
        except Failure as failure:
            raise failure.error from failure


@dataclass(eq=False)
class _Call:
    """The state of one call about cells."""

    asker: Asker
    asked: Asked
    route: str
    kept: Keeper
    progress: Progress | None
    failed: tuple[CytorayError, range] | None = None

    def __post_init__(self) -> None:
        assert self.asked.source is not None
        self.num_cells = self.asked.source.num_cells
        self.pace = Pace(self.asker.connection.settings.parallel)
        self.is_whole = False  # the cells of a request are answered together, so that all must be in one

    async def run(self) -> None:
        """Ask about all cells without an answer, until one version has answered all."""
        await self._fill()
        for _ in range(MOST_ROUNDS):
            if (others := self._of_other_versions()) is None:
                return
            target, asked_again = others
            for chunk in asked_again:
                self.kept.drop(chunk)
            starts = {chunk.rows.start for chunk in asked_again}
            await self._fill()
            answered = [chunk for chunk in self.kept.chunks() if chunk.rows.start in starts]
            if all(chunk.model != target for chunk in answered):  # the version of the others is gone
                for chunk in [chunk for chunk in self.kept.chunks() if chunk.model == target]:
                    self.kept.drop(chunk)
                await self._fill()
        if self._of_other_versions() is not None:
            raise self._mixed()

    def _of_other_versions(self) -> tuple[Model, list[AnsweredChunk]] | None:
        """Return the version of most cells, and the chunks of others; None if there are no others."""
        chunks = self.kept.chunks()
        cells: Counter[Model] = Counter()
        for chunk in chunks:
            cells[chunk.model] += len(chunk.rows)
        if len(cells) < 2:
            return None
        target = cells.most_common(1)[0][0]
        return target, [chunk for chunk in chunks if chunk.model != target]

    async def _fill(self) -> None:
        """Ask about the cells without an answer, the first request alone: it shows whether there will be answers."""
        todo = deque(missing_rows(self.kept, self.num_cells))
        await self._work(todo, only_one=True)
        workers = [asyncio.create_task(self._work(todo)) for _ in range(self.asker.connection.settings.parallel)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
        if self.failed is not None:
            error, rows = self.failed
            raise incomplete(error, self._partial(), rows)

    async def _work(self, todo: deque[range], *, only_one: bool = False) -> None:
        """Take cells from the front of ``todo`` and ask about them."""
        while todo and self.failed is None:
            rows = todo.popleft()
            step = len(rows) if self.is_whole else self.asker.step
            if len(rows) > step:
                todo.appendleft(range(rows.start + step, rows.stop))
                rows = range(rows.start, rows.start + step)
            try:
                chunk = await self.asker.send(self.asked, self.route, rows, self.pace)
            except Failure as failure:
                if failure.for_cells(len(rows)) == "smaller" and not self.is_whole:
                    self.asker.shrink(len(rows), failure)
                    todo.appendleft(rows)
                    continue
                self.failed = self.failed or (failure.error, rows)
                return
            except CytorayError as error:  # of the file of the cells
                self.failed = self.failed or (error, rows)
                return
            if self._must_be_whole(chunk):
                todo.clear()
                todo.append(range(self.num_cells))
                self.is_whole = True
                continue
            self.kept.add(chunk)
            self._report()
            if only_one:
                return

    def _must_be_whole(self, chunk: Chunk) -> bool:
        """Return whether an answer depends on which cells are in the request, and some are not in this one."""
        return len(chunk.rows) < self.num_cells and self.asked.endpoint.together(chunk.head)

    def _report(self) -> None:
        if self.progress is not None:
            self.progress(sum(len(chunk.rows) for chunk in self.kept.chunks()), self.num_cells)

    def _partial(self) -> Partial:
        return Partial(self.asked.endpoint.name, self.num_cells, self.asked.identity, self.kept)

    def _mixed(self) -> CytorayError:
        versions = sorted({chunk.model[1] for chunk in self.kept.chunks()})
        cause = ServingError(
            f"The service changed its model while answering (versions {', '.join(versions)}), again and again.",
            remedy="Ask again later, or name one version as `model`: answers of two versions must not be mixed.",
        )
        others = self._of_other_versions()
        assert others is not None
        for chunk in others[1]:
            self.kept.drop(chunk)
        return incomplete(cause, self._partial(), others[1][0].rows)


def _route(endpoint: Endpoint[Any, Any], model: str | None) -> str:
    """Return the path of an endpoint of the default model, or of the one that is named."""
    return endpoint.route if model is None else f"{_MODELS}/{quote(model, safe='/@')}/{endpoint.name}"


def _none_answered(chunks: list[AnsweredChunk], num_cells: int) -> bool:
    """Return whether all cells are empty, so that only the service knows labels and widths."""
    return num_cells > 0 and sum(len(chunk.empty_cells) for chunk in chunks) == num_cells
