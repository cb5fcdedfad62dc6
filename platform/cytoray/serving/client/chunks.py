"""Answers to cells that have arrived, and the error that keeps them if others are missing."""

# C cells

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from cytoray.errors import CytorayError, RequestError, ServingError

if TYPE_CHECKING:
    import pyarrow as pa

Model = tuple[str, str, str]  # name, version, digest


@dataclass(frozen=True, eq=False)
class Chunk:
    """The answer to some neighbouring cells."""

    rows: range
    head: dict[str, Any]  # the answer without its cells
    table: pa.Table  # a row per cell

    @property
    def model(self) -> Model:
        """The model that answered."""
        model = self.head["model"]
        return str(model["name"]), str(model["version"]), str(model["digest"])

    @property
    def empty_cells(self) -> list[int]:
        """Rows of cells without a gene that the model knows."""
        found = [one["indices"] for one in self.head["warnings"] if one["code"] == "empty_cells"]
        return [self.rows.start + place for places in found for place in places]


class AnsweredChunk(Protocol):
    """Interface of a chunk; its table may be on disk."""

    @property
    def rows(self) -> range:
        """The cells."""

    @property
    def head(self) -> dict[str, Any]:
        """The answer without its cells."""

    @property
    def model(self) -> Model:
        """The model that answered."""

    @property
    def table(self) -> pa.Table:
        """The answers, a row per cell."""

    @property
    def empty_cells(self) -> list[int]:
        """Rows of cells without a gene that the model knows."""


class Keeper(Protocol):
    """Interface of what keeps the chunks of a call; ``Kept`` does in memory."""

    def add(self, chunk: Chunk) -> AnsweredChunk:
        """Keep a chunk."""

    def drop(self, chunk: AnsweredChunk) -> None:
        """Forget a chunk."""

    def chunks(self) -> list[AnsweredChunk]:
        """Return the chunks in the order of their cells."""


@dataclass(eq=False)
class Kept:
    """Chunks in memory."""

    found: dict[int, AnsweredChunk] = field(default_factory=dict)

    def add(self, chunk: Chunk) -> AnsweredChunk:
        """Keep a chunk."""
        self.found[chunk.rows.start] = chunk
        return chunk

    def drop(self, chunk: AnsweredChunk) -> None:
        """Forget a chunk."""
        del self.found[chunk.rows.start]

    def chunks(self) -> list[AnsweredChunk]:
        """Return the chunks in the order of their cells."""
        return [self.found[start] for start in sorted(self.found)]


def missing_rows(keeper: Keeper, num_cells: int) -> Iterator[range]:
    """Yield the ranges of cells without an answer."""
    start = 0
    for chunk in keeper.chunks():
        if chunk.rows.start > start:
            yield range(start, chunk.rows.start)
        start = chunk.rows.stop
    if start < num_cells:
        yield range(start, num_cells)


@dataclass(frozen=True, eq=False)
class Partial:
    """The answers to some of the cells of a call that failed; give it to the same call again as ``resume``."""

    endpoint: str
    num_cells: int
    asked: str  # identifies what was asked about
    kept: Keeper

    @property
    def rows(self) -> list[int]:
        """Positions of the answered cells."""
        return [row for chunk in self.kept.chunks() for row in chunk.rows]

    @property
    def missing(self) -> list[int]:
        """Positions of the cells without an answer."""
        return [row for rows in missing_rows(self.kept, self.num_cells) for row in rows]

    @property
    def model_version(self) -> str:
        """The version that answered first."""
        return self.kept.chunks()[0].model[1]

    def table(self) -> pa.Table:
        """Return the answers as a table: the columns of the endpoint's answers, after ``row``, each cell's position."""
        import pyarrow as pa

        whole = pa.concat_tables((chunk.table for chunk in self.kept.chunks()), promote_options="permissive")
        return whole.add_column(0, "row", pa.array(self.rows, pa.int64())).replace_schema_metadata(None)


class IncompleteError(CytorayError):
    """A call that failed after some cells had been answered.

    ``partial`` holds their answers: ``client.embed(adata, resume=error)`` asks about the other cells only. If the
    service refused cells, it is a RequestError as well, otherwise a ServingError.
    """

    partial: Partial
    cause: CytorayError  # the error about the first cells that were not answered


class _RefusedLater(IncompleteError, RequestError):
    """A later part of the cells was refused."""


class _LostLater(IncompleteError, ServingError):
    """The service stopped answering."""


def incomplete(cause: CytorayError, partial: Partial, at: range) -> CytorayError:
    """Return the error for a call that failed at some cells: ``cause`` itself if no others were answered."""
    if not partial.kept.chunks():
        return cause
    kind = _RefusedLater if isinstance(cause, RequestError) else _LostLater
    answered = len(partial.rows)
    problem = f"{cause.problem} This is about cells {at.start:,} to {at.stop - 1:,} of those sent."
    remedy = f"{cause.remedy} {answered:,} of {partial.num_cells:,} cells were answered: error.partial has them; "
    error = kind(
        problem, remedy=f"{remedy}the same call with resume=error asks about the others.".strip(), **cause.details
    )
    error.partial, error.cause = partial, cause
    return error
