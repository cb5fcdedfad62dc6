"""The page of a pipeline: the chain from data to service, its stages, figures and reports; and pipeline.json."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import Any

from cytoray import storage
from cytoray.errors import GateError
from cytoray.failpoints import failpoint
from cytoray.operations.pipeline.figures import SHORT, find_chain, find_figures, find_reports
from cytoray.operations.pipeline.planning import StagePlan
from cytoray.operations.pipeline.reading import Pipeline
from cytoray.operations.pipeline.records import StageFailure
from cytoray.pages.frame import load_template

PAGE, STATE = "index.html", "pipeline.json"
WORDS = {"done": "done", "run": "to do", "waits": "waits"}


def write_page(pipeline: Pipeline, plans: list[StagePlan], *, is_changed: bool) -> str:
    """Write the page and the same for machines, unless nothing has changed since; returns the page's URI."""
    page, state = storage.join(pipeline.folder, PAGE), storage.join(pipeline.folder, STATE)
    document = {"name": pipeline.config.name, "stages": [one.as_dict() for one in plans]}
    data = (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()
    if not is_changed and storage.find_bytes(state) == data and storage.exists(page):
        return page
    failpoint("pipeline.before_page")
    storage.write_bytes(page, render_page(pipeline, plans).encode())
    storage.write_bytes(state, data)
    failpoint("pipeline.after_page")
    return page


def render_page(pipeline: Pipeline, plans: list[StagePlan]) -> str:
    """Render the page."""
    done = [one for one in plans if one.record is not None]
    failed = next((one for one in plans if one.failure is not None), None)
    seconds = sum(one.record.seconds for one in done if one.record is not None)
    return load_template("cytoray.operations.pipeline", "pipeline.html.j2").render(
        name=pipeline.config.name,
        folder=pipeline.folder,
        summary=_summary(plans),
        failed=None if failed is None else (failed.stage.name, failed.failure),
        refused=failed is not None and failed.failure is not None and _failed_word(failed.failure) == "refused",
        chain=find_chain(plans),
        tiles=[("stages done", f"{len(done)} of {len(plans)}"), ("time in jobs", _duration(seconds))],
        stages=[_row(pipeline, one) for one in plans],
        figures=find_figures(plans),
        digests=[_digests(one) for one in done],
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _summary(plans: list[StagePlan]) -> str:
    """Describe the state in a sentence."""
    if open_ := [one.stage.name for one in plans if one.state != "done"]:
        return f"Not done: {', '.join(open_)}."
    return "All stages are done for these cells and settings."


def _row(pipeline: Pipeline, planned: StagePlan) -> dict[str, Any]:
    """Return what the table shows of a stage."""
    record = planned.record
    reports = [] if record is None else find_reports(record)
    takes = ", ".join(f"{what} of {name}" for what, name in planned.stage.takes.items())
    return {
        "name": planned.stage.name,
        "kind": planned.stage.kind,
        "state": WORDS[planned.state] if planned.failure is None else _failed_word(planned.failure),
        "note": takes if planned.state == "done" else planned.reason,
        "started": "" if record is None else record.started.replace("T", " ").removesuffix("+00:00"),
        "time": "" if record is None else _duration(record.seconds),
        "reports": [(uri.rpartition("/")[2], _relative(uri, pipeline.folder), uri) for uri in reports],
    }


def _failed_word(failure: StageFailure) -> str:
    return "refused" if failure.kind == GateError.__name__ else "failed"


def _digests(planned: StagePlan) -> dict[str, Any]:
    """Return what identifies the result of a stage."""
    record = planned.record
    assert record is not None, "it is done"
    rows = {f"input: {name}": digest for name, digest in record.key.inputs.items()}
    shown = ("manifest_digest", "content_digest", "bundle_digest", "digest", "mlflow_run_id")
    rows |= {name.replace("_", " "): str(record.result[name]) for name in shown if record.result.get(name)}
    return {
        "name": planned.stage.name,
        "short": record.key.digest[:SHORT],
        "rows": rows | {"code": record.revision, "key": record.key.digest},
        "settings": json.dumps(record.key.settings, indent=1, ensure_ascii=False),
    }


def _relative(uri: str, folder: str) -> str:
    """Return a link from the page to a file: relative within the store, so that a copy of it works too."""
    if storage.is_remote(uri) != storage.is_remote(folder):
        return uri
    if not storage.is_remote(uri):
        return os.path.relpath(storage.local_path(uri), storage.local_path(folder))
    (bucket, path), (own, here) = (text.removeprefix("s3://").split("/", 1) for text in (uri, folder))
    return os.path.relpath(path, here) if bucket == own else uri


def _duration(seconds: float) -> str:
    """Format a duration for reading."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
