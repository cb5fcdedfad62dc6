"""Sessions of the explorer: one folder for each uploaded file, so that every replica of a service can show it."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from cytoray.drafts import replace_file
from cytoray.errors import RequestError
from cytoray.serving.explorer.config import ExplorerConfig
from cytoray.tasks.messages import Message, ModelInfo

Stage = Literal["upload", "reading", "answering", "layout", "ready", "failed"]
SESSION_ID = re.compile(r"[A-Za-z0-9_-]{22}")
STATE, UPLOAD, CHARGED = "state.json", "upload", "charged"
CLOCK_STEP_S = 30.0  # a session's folder is touched at most this often


class Column(Message):
    """One value per cell that the page can colour by."""

    key: str
    group: str = Field(description="Where it comes from: an endpoint, obs or quality.")
    name: str
    kind: Literal["category", "number"]
    categories: list[str] = Field([], description="Texts of the codes of a category.")
    counts: list[int] = Field([], description="Cells of each category.")
    low: float | None = Field(None, description="Smallest value of a number, and the largest.")
    high: float | None = None
    missing: int = Field(0, description="Cells without a value.")
    part_of: str = Field("", description="Name of the answer that this is one of many numbers of: probabilities.")


class Finding(Message):
    """One line of the data check."""

    level: Literal["good", "note", "warning"]
    title: str
    detail: str


class Trouble(Message):
    """Why a session failed, and the remedy."""

    detail: str
    remedy: str


class SessionState(BaseModel):
    """Everything that the page needs to know about a session, besides its columns of numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    id: str
    name: str
    num_bytes: int
    received: int = 0
    stage: Stage = "upload"
    done: int = 0
    total: int = 0
    model: ModelInfo
    findings: list[Finding] = []
    num_cells: int = 0
    answered: int = Field(0, description="Cells that were answered, once for each kind of forward pass.")
    values: Literal["counts", "expression"] = "counts"
    columns: list[Column] = []
    layouts: list[str] = []
    answered_by: list[str] = []
    notes: list[str] = []
    trouble: Trouble | None = None
    demo_uri: str | None = Field(None, description="The file, if it was not uploaded.")


class NewSession(Message):
    """A session to open: a file of this size that is about to be sent, or one of the demos."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=255)] = "cells"
    num_bytes: int = Field(0, ge=0)
    demo: str | None = None


class Session:
    """A session's folder; ``state`` is read and written as a whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def upload(self) -> Path:
        """The file that was sent."""
        return self.folder / UPLOAD

    @property
    def state(self) -> SessionState:
        """The state as last written; while a file arrives, ``received`` is its size on disk."""
        state = SessionState.model_validate_json((self.folder / STATE).read_bytes())
        if state.stage == "upload" and self.upload.exists():
            return state.model_copy(update={"received": self.upload.stat().st_size})
        return state

    def write(self, state: SessionState) -> None:
        """Replace the state."""
        replace_file(self.folder / STATE, state.model_dump_json().encode())

    def update(self, **changes: Any) -> SessionState:
        """Change some members of the state."""
        state = self.state.model_copy(update=changes)
        self.write(state)
        return state

    def column(self, key: str) -> Path:
        """The file of a column's values."""
        return self.folder / "columns" / f"{key}.bin"

    def charge(self) -> int:
        """Return the cells answered since this was last asked: who watches a session pays for them."""
        path = self.folder / CHARGED
        before, now = int(path.read_text()) if path.exists() else 0, self.state.answered
        if now != before:
            replace_file(path, str(now).encode())
        return max(now - before, 0)

    def reset(self) -> None:
        """Forget all answers, and keep the file."""
        for folder in ("cells", "answers", "columns"):
            shutil.rmtree(self.folder / folder, ignore_errors=True)
        for path in self.folder.glob("*.*"):
            if path.name != STATE:
                path.unlink()
        (self.folder / "columns").mkdir(mode=0o700)
        kept = {"id", "name", "num_bytes", "received", "model", "answered", "demo_uri"}
        state = self.state.model_dump(include=kept) | {"stage": "reading"}
        self.write(SessionState.model_validate(state))

    def touch(self) -> None:
        """Note that the session is in use."""
        if time.time() - self.folder.stat().st_mtime > CLOCK_STEP_S:
            os.utime(self.folder)

    def delete(self) -> None:
        """Remove everything that belongs to the session."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Sessions:
    """The open sessions: folders below one that only this user can read, by the model for which they were opened."""

    def __init__(self, config: ExplorerConfig) -> None:
        self._config = config
        self._root = session_root(config)

    def open(self, *, name: str, num_bytes: int, model: ModelInfo) -> Session:
        """Open a session for a file; RequestError if the file is too large or too many sessions are open."""
        limit = self._config.max_file_bytes
        if num_bytes > limit:
            raise RequestError(
                f"The file has {num_bytes:,} bytes; the explorer takes files up to {limit:,}.",
                remedy="Take part of its cells, or answer the whole file by a job: `cytoray annotate`.",
                code="too_large",
                what="bytes",
                seen=num_bytes,
                limit=limit,
            )
        self.sweep()
        if sum(1 for _ in self._folders()) >= self._config.max_sessions:
            raise RequestError(
                f"All {self._config.max_sessions} sessions of the explorer are in use.",
                remedy="Close one (the button at the top right of its page), or try again later.",
                code="too_many_sessions",
            )
        parent = self._root / hashlib.sha256(model.digest.encode()).hexdigest()[:16]
        session = Session(parent / secrets.token_urlsafe(16))
        state = SessionState(id=session.folder.name, name=Path(name).name, num_bytes=num_bytes, model=model)
        try:
            (session.folder / "columns").mkdir(parents=True, mode=0o700)
            for folder in (self._root, parent, session.folder):
                folder.chmod(0o700)
            session.write(state)
        except OSError:  # such as a full disk: no session, and none that counts as open
            session.delete()
            raise
        return session

    def find(self, session_id: str) -> Session:
        """Find an open session; RequestError if it is unknown, has been closed or is too old."""
        found = (folder for folder in self._folders() if folder.name == session_id and (folder / STATE).exists())
        folder = next(found, None)
        if folder is None:
            raise RequestError(
                "This session does not exist, or was closed.", remedy="Open the file again.", code="not_found"
            )
        session = Session(folder)
        session.touch()
        return session

    def sweep(self) -> None:
        """Delete sessions that nobody has used for ``max_age_s``."""
        for folder in self._root.glob("*/*"):  # of all models: nobody else sweeps those of former ones
            if time.time() - folder.stat().st_mtime > self._config.max_age_s:
                Session(folder).delete()

    def _folders(self) -> Iterator[Path]:
        yield from (folder for folder in self._root.glob("*/*") if SESSION_ID.fullmatch(folder.name))


def session_root(config: ExplorerConfig) -> Path:
    """The folder below which all sessions lie."""
    if config.folder is not None:
        return Path(config.folder)
    return Path(tempfile.gettempdir()) / f"cytoray-explorer-{os.getuid()}"
