"""Work on a session: read its file, answer its cells, lay them out; each step updates the state that the page polls."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from cytoray.errors import CytorayError, RequestError
from cytoray.serving.explorer.answering import (
    EMBEDDED,
    NOBODY,
    Asker,
    answer_cells,
    answers_file,
    endpoints_by_run,
    header_of,
    one_version,
)
from cytoray.serving.explorer.cells import StoredCells
from cytoray.serving.explorer.child import run_child
from cytoray.serving.explorer.columns import columns_of_table, save_layout
from cytoray.serving.explorer.config import ExplorerConfig
from cytoray.serving.explorer.sessions import Column, Finding, Session, Trouble
from cytoray.tasks.endpoint import Endpoint

logger = logging.getLogger(__name__)
READING, LAYOUT, WRITING = (f"cytoray.serving.explorer.{name}" for name in ("reading", "layout", "writing"))
VOCABULARY = "vocabulary.json"
HIDDEN = ("embedding", "x", "y")  # columns of answers that are laid out instead of being colours


@dataclass(frozen=True)
class Worker:
    """Works on sessions with a service."""

    service: Asker
    config: ExplorerConfig

    async def run(self, session: Session, *, uri: str, owner: str = NOBODY) -> None:
        """Do all the work on a session whose file is at ``uri``; a failure becomes its state.

        One version of the model answers all of it, also if another one takes over meanwhile.
        """
        try:
            with one_version(self.service) as service:
                await _Work(service, self.config, session, owner).run(uri)
        except CytorayError as error:
            logger.info("session of the explorer failed: %s", error.problem)
            if session.folder.exists():
                trouble = Trouble(detail=error.problem, remedy=error.remedy)
                session.update(stage="failed", trouble=trouble)
        except FileNotFoundError:  # the session was closed, perhaps through another replica
            logger.info("session of the explorer was closed while it was worked on")
            session.delete()

    async def child(
        self, module: str, session: Session, report: Callable[[dict[str, Any]], None], **options: Any
    ) -> None:
        """Run a module on a session in a process of its own."""
        await _child(self.config, module, session, report, **options)


@dataclass(frozen=True)
class _Work:
    """The work on one session by one version of the model."""

    service: Asker
    config: ExplorerConfig
    session: Session
    owner: str

    async def run(self, uri: str) -> None:
        """Read the file, answer its cells and lay them out."""
        await self._read(uri)
        cells = await asyncio.to_thread(StoredCells.open, self.session.folder / "cells")
        for group in endpoints_by_run(self.service.served):
            await self._answer(cells, group)
        await self._lay_out()

    async def _read(self, uri: str) -> None:
        session = self.session
        state = session.update(stage="reading", done=0, total=0, model=self.service.served.info)
        vocabulary = self.service.served.bundle.vocabulary.to_json()
        (session.folder / VOCABULARY).write_text(vocabulary, encoding="utf-8")

        def report(message: dict[str, Any]) -> None:
            """Take over what the process reports."""
            changes: dict[str, Any] = {
                key: message[key] for key in ("done", "total", "num_cells", "values") if key in message
            }
            if "columns" in message:
                changes["columns"] = [Column(**column) for column in message["columns"]]
                changes["findings"] = [Finding(**finding) for finding in message["findings"]]
            session.update(**changes)

        options = {"uri": uri, "name": state.name, "max_cells": self.config.max_cells}
        await _child(self.config, READING, session, report, **options)

    async def _answer(self, cells: StoredCells, group: list[Endpoint[Any, Any]]) -> None:
        """Answer the cells by endpoints that share a run; only the embeddings are indispensable."""
        session = self.session
        names = [endpoint.name for endpoint in group]
        session.update(stage="answering", done=0, total=cells.num_cells)

        def advance(count: int) -> None:
            """Count answered cells."""
            state = session.state
            session.update(done=state.done + count, answered=state.answered + count)

        try:
            await answer_cells(self.service, group, cells, session.folder, advance, owner=self.owner)
        except RequestError as error:
            if EMBEDDED in names:
                raise
            session.update(notes=[*session.state.notes, f"{', '.join(names)}: {error}"])
            return
        columns = await asyncio.to_thread(_collect_columns, session, names)
        state = session.state
        session.update(
            columns=[*columns, *state.columns],
            answered_by=[*state.answered_by, *names],
            layouts=[*state.layouts, *_reference_layout(session, names)],
        )

    async def _lay_out(self) -> None:
        """Lay the cells out; the page shows each layout as soon as it is there."""
        session = self.session
        session.update(stage="layout", done=0, total=0)

        def report(message: dict[str, Any]) -> None:
            """Add a layout."""
            layouts = [name for name in session.state.layouts if name not in ("pca", "umap")]
            there = ["umap", "pca"] if message["layout"] == "umap" else [message["layout"]]
            session.update(layouts=[*there, *layouts])

        await _child(self.config, LAYOUT, session, report)
        session.update(stage="ready")


async def _child(
    config: ExplorerConfig, module: str, session: Session, report: Callable[[dict[str, Any]], None], **options: Any
) -> None:
    await run_child(
        module,
        session.folder,
        max_memory_bytes=config.max_memory_bytes,
        max_step_s=config.max_step_s,
        report=report,
        **options,
    )


def _collect_columns(session: Session, names: list[str]) -> list[Column]:
    """Save the columns of the answers of some endpoints; what two of them answer alike is taken from the last."""
    found: dict[str, list[Column]] = {}
    for name in names:
        table = pq.read_table(answers_file(session.folder, name))
        shown = table.drop_columns([column for column in HIDDEN if column in table.column_names])
        group = name.replace("-", "_")
        for column in columns_of_table(session, group, shown, header_of(table)):
            found.setdefault(f"{column.kind} {column.name}", []).append(column)
    return [columns[-1] for columns in found.values()]


def _reference_layout(session: Session, names: list[str]) -> list[str]:
    """Save the places on a reference's map, if an endpoint gives them; returns the names of the layouts."""
    for name in names:
        table = pq.read_table(answers_file(session.folder, name))
        if {"x", "y"} <= set(table.column_names) and table["x"].null_count < len(table):
            places = [table[axis].to_numpy().astype(np.float32) for axis in ("x", "y")]
            save_layout(session, "reference", np.stack(places, axis=1))
            return ["reference"]
    return []
