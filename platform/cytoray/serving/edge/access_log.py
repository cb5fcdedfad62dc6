"""The access log: one JSON line per request, without keys, names of genes or cells, or values."""

from __future__ import annotations

import json
import logging
import logging.handlers
import sys
from datetime import UTC, datetime
from pathlib import Path

from cytoray.serving.edge.exchange import Exchange

NAME = "cytoray.access"


class _Stderr(logging.Handler):
    """Writes to the stderr of the moment, which may have been replaced since the log was opened."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        sys.stderr.write(self.format(record) + "\n")


class AccessLog:
    """Writes a line per request to a file, which may be rotated under it, or to stderr, which Ray keeps."""

    def __init__(self, path: str | None) -> None:
        """Open the log; raises OSError if the file cannot be written."""
        self._logger = logging.Logger(NAME, logging.INFO)  # not in the tree: what others configure does not apply
        self._handler: logging.Handler = _Stderr()
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._handler = logging.handlers.WatchedFileHandler(path, encoding="utf-8")
        self._logger.addHandler(self._handler)

    def write(self, exchange: Exchange, *, seconds: float) -> None:
        """Write what is known about a request that has been answered."""
        record = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "request_id": exchange.request_id,
            "method": exchange.method[:16],
            "route": exchange.route,
            "status": exchange.status,
            "code": exchange.code or None,
            "key": exchange.key_id or None,
            "class": exchange.kind,
            "cells": exchange.cells,
            "bytes_in": exchange.bytes_in,
            "bytes_out": exchange.bytes_out,
            "seconds": round(seconds, 6),
            "retries": exchange.retries,
        }
        self._logger.info(json.dumps(record))

    def close(self) -> None:
        """Close the file."""
        self._handler.close()
