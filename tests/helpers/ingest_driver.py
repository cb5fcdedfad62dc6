"""An ingest in a process of its own, that a test may kill: ``python ingest_driver.py CONFIG.json RESULT.json``.

With ``--without-ray`` the tasks run one after another in this process: they leave the same behind, in seconds.

The result is a JSON object: what was committed, or the error a user would see.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from cytoray.cluster import connected, prepare_auth
from cytoray.errors import CytorayError


def run(config_path: Path, *, with_ray: bool) -> dict[str, Any]:
    """Ingest, and say what became of it."""
    prepare_auth()
    from cytoray.corpus import ingest as module
    from cytoray.corpus.config import IngestConfig

    if not with_ray:
        module._map_tasks = lambda items, work, concurrency: map(work, items)
    config = IngestConfig.model_validate_json(config_path.read_text())
    started = time.monotonic()
    try:
        with connected(num_cpus=2) if with_ray else contextlib.nullcontext():
            result = module.ingest(config)
    except CytorayError as error:
        return {"error": type(error).__name__, "text": str(error), "details": error.details}
    manifest = result.manifest
    return {
        "digest": manifest.content_digest, "cells": manifest.num_cells, "skipped": result.skipped,
        "version": manifest.version, "seconds": time.monotonic() - started,
        "quarantined": [record.model_dump() for record in manifest.quarantined],
    }  # fmt: skip


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(
        json.dumps(run(Path(sys.argv[1]), with_ray="--without-ray" not in sys.argv), default=str)
    )
