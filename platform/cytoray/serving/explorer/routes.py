"""The routes of the explorer: the page at `/`, its files, and the API of its sessions below `/explorer/api`."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.resources
import os
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse

from cytoray.errors import RequestError
from cytoray.serving.config import Limits
from cytoray.serving.explorer.answering import NOBODY
from cytoray.serving.explorer.columns import KEY
from cytoray.serving.explorer.details import describe_cell, gene_expression, measured_genes
from cytoray.serving.explorer.downloads import ANNOTATED, CSV
from cytoray.serving.explorer.hub import Explorer
from cytoray.serving.explorer.sessions import NewSession, Session
from cytoray.serving.explorer.shifting import ShiftRequest, shift_cells
from cytoray.serving.payloads.json_cells import read_message
from cytoray.serving.problems import reply_headers

API = "/explorer/api"
LIMITS = Limits()  # of the messages of the page
MOST_BODY = 16_384  # bytes of a request that opens a session
NUMBERS = "application/octet-stream"
MEDIA_TYPES = {"index.html": "text/html; charset=utf-8", "explorer.js": "text/javascript", "explorer.css": "text/css"}
DOWNLOADS = {CSV: "text/csv; charset=utf-8", ANNOTATED: "application/x-hdf5"}
SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


async def admit_all(request: Request) -> None:
    """Admit any request."""


def add_explorer(api: FastAPI, explorer: Explorer, *, admit: Callable[[Request], Awaitable[None]] = admit_all) -> None:
    """Add the page and its API to the application; OpenAPI does not have them, as they may change with the page.

    ``admit`` raises RequestError for a request to the API whose key is not for the model.
    """
    _add_page(api)
    router = APIRouter(prefix=API, include_in_schema=False, dependencies=[Depends(admit)])
    _add_sessions(router, explorer)
    _add_contents(router, explorer)
    _add_downloads(router, explorer)
    api.include_router(router)


def _add_page(api: FastAPI) -> None:
    """Add the routes of the page's own files; browsers ask whether a file has changed, and keep it if not."""
    files = {name: _read_page_file(name) for name in MEDIA_TYPES}
    tags = {name: f'"{hashlib.sha256(content).hexdigest()[:32]}"' for name, content in files.items()}

    def reply(request: Request, name: str) -> Response:
        """Return one of the files, or 304 if the browser has it."""
        headers = {**SECURITY, "Cache-Control": "no-cache", "ETag": tags[name]}
        if request.headers.get("if-none-match") == tags[name]:
            return Response(status_code=304, headers=headers)
        return Response(files[name], media_type=MEDIA_TYPES[name], headers=headers)

    @api.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        """Return the page."""
        return reply(request, "index.html")

    @api.get("/assets/{name}", include_in_schema=False)
    async def asset(request: Request, name: str) -> Response:
        """Return the page's script or style sheet."""
        if name not in files:
            raise RequestError(f"/assets/{name[:80]} is not a file of the page.", code="not_found")
        return reply(request, name)


def _read_page_file(name: str) -> bytes:
    return (importlib.resources.files("cytoray.pages") / "explorer" / name).read_bytes()


def _add_sessions(router: APIRouter, explorer: Explorer) -> None:
    """Add the routes that open, fill, watch and close sessions."""

    @router.get("/about")
    async def about(request: Request) -> Response:
        """Return the model, its tasks, the limits and the demos."""
        return JSONResponse(explorer.about(), headers=reply_headers(request))

    @router.post("/sessions")
    async def open_session(request: Request) -> Response:
        """Open a session."""
        body = await _read(request, most=MOST_BODY)
        state = explorer.open(read_message(body, kind=NewSession, limits=LIMITS), owner=_owner(request))
        return JSONResponse(state.model_dump(), 201, headers=reply_headers(request))

    @router.put("/sessions/{session_id}/file")
    async def put_part(request: Request, session_id: str, offset: int) -> Response:
        """Append a part of the file; the work begins with the last one."""
        session = explorer.sessions.find(session_id)
        await _append(request, session, offset=offset)
        if session.state.received == session.state.num_bytes:
            explorer.begin(session, owner=_owner(request))
        return JSONResponse(session.state.model_dump(), headers=reply_headers(request))

    @router.get("/sessions/{session_id}")
    async def get_state(request: Request, session_id: str) -> Response:
        """Return the state of a session; the cells answered since the last time count in the quota of the key."""
        session = explorer.sessions.find(session_id)
        content = session.state.model_dump(exclude={"demo_uri", "answered"})
        return JSONResponse(content, headers=reply_headers(request) | _cells(session))

    @router.post("/sessions/{session_id}/again")
    async def answer_again(request: Request, session_id: str) -> Response:
        """Answer the file again, by the version of the model that serves now."""
        state = explorer.again(explorer.sessions.find(session_id), owner=_owner(request))
        return JSONResponse(state.model_dump(exclude={"demo_uri", "answered"}), 202, headers=reply_headers(request))

    @router.delete("/sessions/{session_id}")
    async def close_session(request: Request, session_id: str) -> Response:
        """Delete a session with its files."""
        session = explorer.sessions.find(session_id)
        cells = _cells(session)
        await explorer.remove(session)
        return Response(status_code=204, headers=reply_headers(request) | cells)


def _add_contents(router: APIRouter, explorer: Explorer) -> None:
    """Add the routes for what the page shows: columns of numbers, genes and cells."""

    @router.get("/sessions/{session_id}/columns/{key}")
    async def column(request: Request, session_id: str, key: str) -> Response:
        """Return a column's values: uint16 codes or float32, little-endian, in the order of the cells."""
        session = explorer.sessions.find(session_id)
        path = session.column(key)
        if not KEY.fullmatch(key) or not path.exists():
            raise RequestError(f"The session has no column {key[:80]!r}.", code="not_found")
        return FileResponse(path, media_type=NUMBERS, headers=reply_headers(request))

    @router.get("/sessions/{session_id}/genes")
    async def genes(request: Request, session_id: str) -> Response:
        """Return the names of the genes that can be shown."""
        cells = explorer.cells(explorer.sessions.find(session_id))
        names = await asyncio.to_thread(measured_genes, explorer.service, cells)
        return JSONResponse(names, headers=reply_headers(request))

    @router.get("/sessions/{session_id}/genes/{gene}")
    async def expression(request: Request, session_id: str, gene: str) -> Response:
        """Return one gene's expression as float32, little-endian; its name in the model is in a header."""
        cells = explorer.cells(explorer.sessions.find(session_id))
        symbol, values = await asyncio.to_thread(gene_expression, explorer.service, cells, gene[:80])
        headers = reply_headers(request) | {"X-Gene": symbol.encode("ascii", "backslashreplace").decode()}
        return Response(np.asarray(values, "<f4").tobytes(), media_type=NUMBERS, headers=headers)

    @router.get("/sessions/{session_id}/cells/{row}")
    async def cell(request: Request, session_id: str, row: int) -> Response:
        """Return the answers to one cell, and its genes."""
        session = explorer.sessions.find(session_id)
        details = await describe_cell(explorer.service, session, explorer.cells(session), row)
        return JSONResponse(details, headers=reply_headers(request))

    @router.post("/sessions/{session_id}/shift")
    async def shift(request: Request, session_id: str) -> Response:
        """Return where some cells would move if a gene were perturbed."""
        session = explorer.sessions.find(session_id)
        asked = read_message(await _read(request, most=MOST_BODY), kind=ShiftRequest, limits=LIMITS)
        found = await shift_cells(explorer.service, session, explorer.cells(session), asked)
        return JSONResponse(found, headers=reply_headers(request))


def _add_downloads(router: APIRouter, explorer: Explorer) -> None:
    """Add the routes of files to download."""

    @router.get("/sessions/{session_id}/download/{name}")
    async def download(request: Request, session_id: str, name: str) -> Response:
        """Return the answers as CSV, or the h5ad with them."""
        if name not in DOWNLOADS:
            raise RequestError("Unknown file.", remedy=f"Known are {', '.join(DOWNLOADS)}.", code="not_found")
        session = explorer.sessions.find(session_id)
        path = await explorer.write_download(session, name)
        stem = session.state.name.partition(".")[0] or "cells"
        return FileResponse(path, media_type=DOWNLOADS[name], filename=f"{stem}.{name}", headers=reply_headers(request))


def _owner(request: Request) -> str:
    """Return the owner of the key of a request, as the edge found out."""
    return str(request.scope.get("state", {}).get("key_owner") or NOBODY)


def _cells(session: Session) -> dict[str, str]:
    """Return the header by which the edge charges cells to a key."""
    return {"X-Cells": str(session.charge())}


async def _read(request: Request, *, most: int) -> bytes:
    """Read a small body."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise RequestError(f"The body has more than {most} bytes.", code="too_large", pointer="")
    return body


async def _append(request: Request, session: Session, *, offset: int) -> None:
    """Append a part to the file of a session, which must have ``offset`` bytes; what arrives broken is cut off."""
    state = session.state
    if state.stage != "upload" or state.received != offset:
        raise RequestError(
            f"The file has {state.received:,} bytes so far, so a part cannot begin at {offset:,}.",
            remedy="Send the part that follows.",
            pointer="/offset",
            received=state.received,
        )
    whole = False
    try:
        with session.upload.open("ab") as file:
            async for chunk in request.stream():
                if file.tell() + len(chunk) > state.num_bytes:
                    raise _more_than_announced(state.num_bytes)
                file.write(chunk)
        whole = True
    finally:
        if not whole and session.upload.exists():
            os.truncate(session.upload, offset)  # when it is closed: a full disk fails that too


def _more_than_announced(num_bytes: int) -> RequestError:
    details: dict[str, Any] = {"what": "bytes", "limit": num_bytes}
    return RequestError(f"The file has more than the {num_bytes:,} bytes announced.", code="too_large", **details)
