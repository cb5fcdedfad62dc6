"""The explorer of a service: its sessions, the work on them in this process, and their cells."""

from __future__ import annotations

import asyncio
import logging
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cytoray
from cytoray.errors import RequestError
from cytoray.serving.explorer.answering import NOBODY, Asker, can_answer
from cytoray.serving.explorer.cells import StoredCells
from cytoray.serving.explorer.config import ExplorerConfig
from cytoray.serving.explorer.downloads import ANNOTATED, CSV, write_csv
from cytoray.serving.explorer.sessions import NewSession, Session, Sessions, SessionState, Trouble
from cytoray.serving.explorer.work import WRITING, Worker
from cytoray.tasks import task_endpoints

logger = logging.getLogger(__name__)
PART_BYTES = 4 * 2**20  # of an upload, in one request: below the limits of servers in front, also of time


class Explorer:
    """Opens, works on and closes sessions; a session whose state is on disk can be shown by any replica."""

    def __init__(self, service: Asker, config: ExplorerConfig) -> None:
        self.service, self.config = service, config
        self.sessions = Sessions(config)
        self._worker = Worker(service, config)
        self._work: dict[str, asyncio.Task[None]] = {}
        self._owned: dict[str, Session] = {}
        self._writing = asyncio.Lock()
        self._open_cells = lru_cache(maxsize=4)(_open_cells)

    def about(self) -> dict[str, Any]:
        """Return what the page needs to know before there is a session: the model, its tasks, the limits, the demos."""
        served, config = self.service.served, self.config
        bundle = served.bundle
        return {
            "cytoray": cytoray.__version__,
            "model": served.info.model_dump(),
            "labels": list(bundle.classes),
            "num_genes": len(bundle.vocabulary.index),
            "num_parameters": sum(parameter.numel() for parameter in bundle.model.parameters()),
            "context_length": bundle.tokenizer_config.max_length,
            "attached": sorted(bundle.attachments),
            "tasks": [name for name, endpoint in task_endpoints().items() if can_answer(endpoint, served)],
            "demos": [demo.model_dump(include={"name", "about"}) for demo in config.demos],
            "part_bytes": min(PART_BYTES, self.service.limits.max_body_bytes),
            "max_file_bytes": config.max_file_bytes,
            "max_cells": config.max_cells,
            "max_age_s": config.max_age_s,
        }

    def open(self, asked: NewSession, *, owner: str = NOBODY) -> SessionState:
        """Open a session: for a file whose parts follow, or for a demo, whose work begins at once."""
        if asked.demo is None:
            if asked.num_bytes == 0:
                raise RequestError("The file is empty.", remedy="Choose a file with cells.", pointer="/num_bytes")
            session = self.sessions.open(name=asked.name, num_bytes=asked.num_bytes, model=self.service.served.info)
            self._owned[session.folder.name] = session
            return session.state
        demo = next((demo for demo in self.config.demos if demo.name == asked.demo), None)
        if demo is None:
            raise RequestError("Unknown demo.", remedy="Choose one of the page.", code="not_found", pointer="/demo")
        session = self.sessions.open(name=demo.name, num_bytes=0, model=self.service.served.info)
        session.update(demo_uri=demo.uri)
        self.begin(session, owner=owner)
        return session.state

    def begin(self, session: Session, *, owner: str = NOBODY) -> None:
        """Begin the work on a session whose file is there; it takes the owner's share of the model's time."""
        name = session.folder.name
        self._owned[name] = session
        uri = session.state.demo_uri or str(session.upload)
        task = asyncio.create_task(self._worker.run(session, uri=uri, owner=owner), name=f"explorer-{name}")
        task.add_done_callback(partial(_report_failure, session))
        self._work[name] = task

    def again(self, session: Session, *, owner: str = NOBODY) -> SessionState:
        """Do the work on a session once more, by the version of the model that serves now."""
        if session.state.stage not in ("ready", "failed"):
            raise RequestError("The file is being worked on.", remedy="Wait for the map.", code="not_found")
        session.reset()
        self.begin(session, owner=owner)
        return session.state

    async def wait(self, session_id: str) -> SessionState:
        """Wait until the work on a session of this process is done."""
        await asyncio.wait([self._work[session_id]])
        return self.sessions.find(session_id).state

    async def remove(self, session: Session) -> None:
        """Close a session: stop the work on it and delete its files."""
        name = session.folder.name
        self._owned.pop(name, None)
        if task := self._work.pop(name, None):
            task.cancel()
            await asyncio.wait([task])
        session.delete()

    async def close(self) -> None:
        """Close the sessions that were opened here."""
        for session in list(self._owned.values()):
            await self.remove(session)

    def cells(self, session: Session) -> StoredCells:
        """Return the cells of a session; RequestError while its file is being read."""
        if session.state.num_cells == 0:
            raise RequestError("The file is still being read.", remedy="Wait for the map.", code="not_found")
        folder = session.folder / "cells"
        return self._open_cells(folder, (folder / "about.json").stat().st_mtime_ns)

    async def write_download(self, session: Session, name: str) -> Path:
        """Write a file to download if it is not there yet; returns its path."""
        state = session.state
        if state.stage != "ready":
            raise RequestError("The answers are not complete yet.", remedy="Wait for the map.", code="not_found")
        async with self._writing:  # one at a time: the page may ask twice
            path = session.folder / name
            if not path.exists() and name == CSV:
                await asyncio.to_thread(write_csv, session)
            elif not path.exists() and name == ANNOTATED:
                uri = state.demo_uri or str(session.upload)
                await self._worker.child(WRITING, session, lambda message: None, uri=uri)
        return path


def _open_cells(folder: Path, version: int) -> StoredCells:
    """Open the cells of a session; they are written again, as another ``version``, if the work is done again."""
    return StoredCells.open(folder)


def _report_failure(session: Session, task: asyncio.Task[None]) -> None:
    """Log an error that is not the user's, and let the session say that there was one."""
    if task.cancelled() or (error := task.exception()) is None:
        return
    logger.error("session %s of the explorer failed", session.folder.name, exc_info=error)
    remedy = "Try again; if it fails again, the log of the service has the cause."
    session.update(stage="failed", trouble=Trouble(detail="The service failed on this file.", remedy=remedy))
