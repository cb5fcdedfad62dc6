"""Answer the cells of a session by the endpoints that the model carries, in chunks through the service's batcher."""

# C cells

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.parquet as pq

from cytoray.drafts import draft_of
from cytoray.errors import RequestError
from cytoray.serving.cell_work import Caller
from cytoray.serving.config import Limits
from cytoray.serving.explorer.cells import StoredCells
from cytoray.tasks import task_offline
from cytoray.tasks.endpoint import Endpoint, Question, ServedModel
from cytoray.tasks.tables import HEADER

EMBEDDED = "embed"  # the endpoint whose answers are laid out
CHUNK_TOKENS = 16_384  # of one question
NOBODY = "explorer"  # owner of sessions without a key
RETRY_S = 2.0  # while the model is busy, or is being fitted to the genes of the file
MOST_RETRIES = 600
PASSING = ("fitting", "overloaded")  # codes of refusals that pass


class Asker(Protocol):
    """The part of a service that answers questions; CellService implements it."""

    @property
    def served(self) -> ServedModel:
        """The model."""

    @property
    def limits(self) -> Limits:
        """Limits of one request."""

    async def ask(self, endpoint: Endpoint[Any, Any], question: Question[Any], caller: Caller = ...) -> Any:
        """Answer a question with the result of the endpoint's ``run``; raises RequestError if it is refused."""


@runtime_checkable
class Changing(Protocol):
    """The part of a service whose model may change: ``hold`` gives the version of the moment while its block runs."""

    def hold(self) -> AbstractContextManager[Asker]:
        """Hold a version."""


def one_version(service: Asker) -> AbstractContextManager[Asker]:
    """Give what answers by one version of the model as long as the block runs."""
    return service.hold() if isinstance(service, Changing) else nullcontext(service)


def cell_endpoints(served: ServedModel) -> list[Endpoint[Any, Any]]:
    """Return the endpoints about cells of files that a model can answer."""
    loaded = (task.endpoint.load() for task in task_offline().values() if task.endpoint is not None)
    return [endpoint for endpoint in loaded if can_answer(endpoint, served)]


def can_answer(endpoint: Endpoint[Any, Any], served: ServedModel) -> bool:
    """Whether a model has what an endpoint needs."""
    try:
        endpoint.check(served)
    except RequestError:
        return False
    return True


def endpoints_by_run(served: ServedModel) -> Iterator[list[Endpoint[Any, Any]]]:
    """Yield the endpoints that are answered by the same forward passes together."""
    groups: dict[Any, list[Endpoint[Any, Any]]] = {}
    for endpoint in cell_endpoints(served):
        groups.setdefault(endpoint.run, []).append(endpoint)
    yield from groups.values()


def question_about(endpoint: Endpoint[Any, Any], cells: StoredCells, start: int, stop: int) -> Question[Any]:
    """Ask an endpoint about some neighbouring cells."""
    request = endpoint.request.model_construct(**endpoint.offline_members)
    return Question(request, cells.take(start, stop), tuple(cells.names[start:stop]), cells.genes)


async def answer_cells(
    service: Asker,
    group: Sequence[Endpoint[Any, Any]],
    cells: StoredCells,
    folder: Path,
    advance: Callable[[int], None],
    *,
    owner: str = NOBODY,
) -> None:
    """Answer all cells by a group of endpoints with one ``run``, and write a table of answers of each."""
    writers: dict[str, pq.ParquetWriter] = {}
    with _drafts(folder, group) as drafts:
        try:
            async for start, stop, result in _answer_chunks(service, group[0], cells, owner):
                for endpoint, draft in zip(group, drafts, strict=True):
                    question = question_about(endpoint, cells, start, stop)
                    table = await asyncio.to_thread(_table, endpoint, question, result, service.served)
                    if endpoint.name not in writers:
                        writers[endpoint.name] = pq.ParquetWriter(draft, table.schema, compression="zstd")
                    await asyncio.to_thread(writers[endpoint.name].write_table, table)
                advance(stop - start)
        finally:
            for writer in writers.values():
                writer.close()


async def _answer_chunks(
    service: Asker, endpoint: Endpoint[Any, Any], cells: StoredCells, owner: str
) -> AsyncIterator[tuple[int, int, Any]]:
    """Yield row ranges and their results; ranges shrink if the model cannot answer them within the deadline."""
    tokens, start = CHUNK_TOKENS, 0
    while start < cells.num_cells:
        stop = cells.end_of_chunk(start, tokens=tokens)
        try:
            result = await _ask(service, endpoint, question_about(endpoint, cells, start, stop), owner)
        except RequestError as error:
            if error.code != "deadline_exceeded" or stop - start == 1:
                raise
            tokens //= 2
            continue
        yield start, stop, result
        start = stop


def answers_file(folder: Path, endpoint: str) -> Path:
    """The table of an endpoint's answers to the cells of a session."""
    return folder / "answers" / f"{endpoint}.parquet"


def header_of(table: pa.Table) -> dict[str, Any]:
    """Return what holds for all answers of a table."""
    found: dict[str, Any] = json.loads((table.schema.metadata or {}).get(HEADER, b"{}"))
    return found


async def _ask(service: Asker, endpoint: Endpoint[Any, Any], question: Question[Any], owner: str) -> Any:
    """Ask, and ask again while the model is busy or is being fitted to the genes of the file.

    The question takes the owner's share of the model's time, after the requests that people wait for.
    """
    caller = Caller(owner, is_bulk=True)
    for attempt in range(MOST_RETRIES):
        try:
            return await service.ask(endpoint, question, caller)
        except RequestError as error:
            if error.code not in PASSING or attempt == MOST_RETRIES - 1:
                raise
        await asyncio.sleep(RETRY_S)
    raise AssertionError("unreachable")


def _table(endpoint: Endpoint[Any, Any], question: Question[Any], result: Any, served: ServedModel) -> pa.Table:
    table: pa.Table = endpoint.table.load()(endpoint, question, result, served.info)
    return table


@contextmanager
def _drafts(folder: Path, group: Sequence[Endpoint[Any, Any]]) -> Iterator[list[Path]]:
    """Give a path for each endpoint's table; they appear if the block does not raise."""
    with ExitStack() as stack:
        yield [stack.enter_context(draft_of(answers_file(folder, endpoint.name))) for endpoint in group]
