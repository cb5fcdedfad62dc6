"""The stage that ingests, which needs no model: its process starts without torch, and without Ray if it is small."""

from __future__ import annotations

from typing import Any

from cytoray import progress, storage
from cytoray.corpus.config import IngestConfig
from cytoray.corpus.ingest import ingest, plan_in_tasks


def run_ingest(config: IngestConfig) -> dict[str, Any]:
    """Ingest the sources of a configuration; returns what the command prints."""
    plan = plan_in_tasks(config)
    with progress.stage("ingest", total=plan.num_cells, unit="cells") as advance:
        result = ingest(config, plan=plan, advance=advance)
    manifest = result.manifest
    report_key = manifest.increments[-1].report_key
    return {
        "corpus": result.uri,
        "version": manifest.version,
        "manifest_digest": manifest.digest,
        "content_digest": manifest.content_digest,
        "num_cells": manifest.num_cells,
        "num_shards": len(manifest.shards),
        "num_bytes": manifest.num_bytes,
        "quarantined": [record.uri for record in manifest.quarantined],
        "report": storage.join(result.uri, report_key, "report.html") if report_key else None,
        "skipped": result.skipped,
    }
