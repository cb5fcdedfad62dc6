"""Training runs of a store as they stand: status, steps, best figures, speed and last sign of life; and compared."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cytoray import storage
from cytoray.errors import CytorayError, NotFoundError, TrainingError
from cytoray.runs import run_folder
from cytoray.stages.settings import flatten
from cytoray.tracking.journal import read_events
from cytoray.tracking.server import TrackingConfig, connect, explained
from cytoray.training.record import RunRecord

Status = Literal["finished", "running", "silent", "stopped", "started"]
SILENT_S = 60.0  # without a beat, after which a run's lease may be taken over
READERS = 8  # runs read at a time
PLACES = ("store", "tracking", "cache_folder", "allow_changes")
RUN_UUID_TAG = "cytoray.run_uuid"
_COMMIT, _STATE = "/COMMIT.json", "state.json"


@dataclass(frozen=True)
class RunSummary:
    """A run as its store shows it.

    Attributes:
        name: Name of the run.
        kind: The stage that trains it.
        status: ``finished``; ``running`` (a beat within a minute); ``silent`` (its process gave no sign and did not
            end); ``stopped`` (it ended before its last step and can be continued); ``started`` (no checkpoint yet).
        step: Steps of its newest checkpoint.
        num_steps: Steps to be done.
        loss: Loss at that checkpoint.
        best: Lowest validation error of the checkpoints that are kept; None without validation.
        best_name: Name of this error.
        steps_per_s: Mean speed so far; None before the first checkpoint.
        heartbeat_s: Unix time of the last sign of life: beat, checkpoint or journal.
        corpus: The corpus, as configured.
        bundle_digest: Digest of its exported bundle; None if it has none yet.
        mlflow: Status of its MLflow run, if MLflow was asked.
        record: Its record.
        state: The figures of its newest checkpoint.
    """

    name: str
    kind: str
    status: Status
    step: int
    num_steps: int
    loss: float | None
    best: float | None
    best_name: str
    steps_per_s: float | None
    heartbeat_s: float | None
    corpus: str
    bundle_digest: str | None
    mlflow: str | None = None
    record: RunRecord = field(repr=False, kw_only=True)
    state: dict[str, Any] = field(repr=False, kw_only=True)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON data, without record and state."""
        return {name: value for name, value in vars(self).items() if name not in ("record", "state")}


def list_summaries(store: str, *, tracking: TrackingConfig | None = None) -> list[RunSummary]:
    """Summarise every run of a store, in the order of their names; damaged records are left out with nothing said."""
    objects = storage.list_objects(storage.join(store, "runs"))
    root = _root_of(store)
    by_run: dict[str, list[storage.ObjectInfo]] = {}
    for entry in objects:
        name, _, rest = entry.uri.removeprefix(root).partition("/")
        if rest:
            by_run.setdefault(name, []).append(entry)
    named = [name for name in sorted(by_run) if f"{root}{name}/run.json" in {entry.uri for entry in by_run[name]}]
    with ThreadPoolExecutor(READERS, "runs") as pool:
        found = list(pool.map(lambda name: _summarise(store, name, by_run[name]), named))
    return _with_mlflow(found, tracking) if tracking is not None else found


def summarise_run(store: str, run: str, *, tracking: TrackingConfig | None = None) -> RunSummary:
    """Summarise one run; TrainingError that lists the others if it is unknown."""
    objects = storage.list_objects(run_folder(store, run))
    try:
        found = _summarise(store, run, objects)
    except NotFoundError as error:
        names = [each.name for each in list_summaries(store)]
        raise TrainingError(
            f"Unknown run {run!r} in {store}.", remedy=f"Runs there: {', '.join(names) or 'none'}."
        ) from error
    return _with_mlflow([found], tracking)[0] if tracking is not None else found


def _root_of(store: str) -> str:
    root = storage.join(store, "runs")
    return f"{root if storage.is_remote(root) else storage.local_path(root)}/"


def _summarise(store: str, name: str, objects: Sequence[storage.ObjectInfo]) -> RunSummary:
    folder = run_folder(store, name)
    record = RunRecord.model_validate_json(storage.read_bytes(storage.join(folder, "run.json")))
    commits = sorted(entry.uri.removesuffix(_COMMIT) for entry in objects if entry.uri.endswith(_COMMIT))
    state = _load(storage.join(commits[-1], _STATE)) if commits else {}
    errors = [error for uri in commits if (error := _load(f"{uri}{_COMMIT}").get("metric")) is not None]
    history = state.get("history") or [{}]
    bundle = _load(storage.join(folder, "BUNDLE.json"))
    signs = [entry.modified_s for entry in objects if "/leases/" in entry.uri or "/checkpoints/" in entry.uri]
    heartbeat = max(signs, default=None)
    elapsed, step = state.get("elapsed_s") or 0.0, int(state.get("step", 0))
    return RunSummary(
        name=name,
        kind=str(record.config["kind"]),
        status=_status(objects, heartbeat, has_checkpoint=bool(commits)),
        step=step,
        num_steps=int(record.config["train"]["num_steps"]),
        loss=history[-1].get("loss"),
        best=min(errors, default=None),
        best_name=str(state.get("selected_by", "")),
        steps_per_s=step / elapsed if elapsed and step else None,
        heartbeat_s=heartbeat,
        corpus=str(record.config["corpus"]),
        bundle_digest=bundle.get("digest"),
        record=record,
        state=state,
    )


def _status(objects: Sequence[storage.ObjectInfo], heartbeat: float | None, *, has_checkpoint: bool) -> Status:
    names = {entry.uri.rpartition("/")[2]: entry for entry in objects}
    leases = sorted(name for name in names if name.endswith(".json") and name[:6].isdigit())
    if leases and f"{leases[-1][:6]}.ended" not in names:
        is_alive = heartbeat is not None and time.time() - heartbeat < SILENT_S
        return "running" if is_alive else "silent"
    if "DONE.json" in names:
        return "finished"
    return "stopped" if has_checkpoint else "started"


def _load(uri: str) -> dict[str, Any]:
    """Read a JSON object; empty if it is missing or is being replaced."""
    data = storage.find_bytes(uri)
    with contextlib.suppress(ValueError):
        return dict(json.loads(data)) if data is not None else {}
    return {}


def _with_mlflow(runs: list[RunSummary], tracking: TrackingConfig) -> list[RunSummary]:
    """Add the status of each run's MLflow run; ``missing`` if MLflow has none."""
    client = connect(tracking.uri)
    found = []
    with explained(tracking.uri):
        experiments = [each.experiment_id for each in client.search_experiments()]
        for run in runs:
            there = client.search_runs(experiments, f"tags.`{RUN_UUID_TAG}` = '{run.record.run_uuid}'", max_results=1)
            found.append(replace(run, mlflow=there[0].info.status if there else "missing"))
    return found


def read_journal(run: RunSummary) -> dict[str, Any] | None:
    """Summarise a run's journal, if it lies on this machine: steps recorded, the last one's figures and time."""
    folder = Path(run.record.config["tracking"]["journal_folder"])
    path = folder / f"{run.record.run_uuid}.jsonl"
    if not path.is_file():
        return None
    step, values, seen, ended, time_ms = 0, {}, 0, None, 0
    for event, _ in read_events(path):
        time_ms = event.get("time_ms", time_ms)
        if event["kind"] == "metrics":
            step, values, seen = event["step"], event["values"], seen + 1
        ended = event.get("status") if event["kind"] == "finish" else None
    return {
        "journal": str(path),
        "step": step,
        "num_steps_recorded": seen,
        "values": values,
        "ended": ended,
        "time_s": time_ms / 1000,
    }


def compare_runs(runs: Sequence[RunSummary]) -> dict[str, Any]:
    """Put runs side by side: the settings that differ, and their figures; JSON data."""
    settings = [dict(flatten({k: v for k, v in run.record.config.items() if k not in PLACES})) for run in runs]
    keys = dict.fromkeys(key for each in settings for key in each if key != "run")
    values = {key: [each.get(key) for each in settings] for key in keys}
    differing = {key: row for key, row in values.items() if any(value != row[0] for value in row)}
    figures = {
        "status": [run.status for run in runs],
        "step": [run.step for run in runs],
        "loss": [run.loss for run in runs],
        **{f"best {name}": [run.best if run.best_name == name else None for run in runs] for name in _errors(runs)},
        **_last_validation(runs),
        "steps_per_s": [run.steps_per_s for run in runs],
        "elapsed_s": [run.state.get("elapsed_s") for run in runs],
        "corpus_manifest_digest": [run.record.manifest_digest for run in runs],
        "bundle_digest": [run.bundle_digest for run in runs],
    }
    return {"runs": [run.name for run in runs], "config": differing, "figures": figures}


def _errors(runs: Sequence[RunSummary]) -> list[str]:
    return sorted({run.best_name for run in runs if run.best_name})


def _last_validation(runs: Sequence[RunSummary]) -> dict[str, list[float | None]]:
    last = [(run.state.get("validation") or [{}])[-1] for run in runs]
    names = sorted({name for each in last for name in each} - {"step"})
    return {f"last {name}": [each.get(name) for each in last] for name in names}


def run_lines(runs: Sequence[RunSummary], *, now_s: float) -> Iterator[str]:
    """Format runs as the lines of a table."""
    head = ["run", "stage", "status", "steps", "loss", "best", "steps/s", "last sign"]
    rows = [[*head, *(["MLflow"] if any(run.mlflow for run in runs) else [])]]
    for run in runs:
        best = "" if run.best is None else f"{run.best_name} {run.best:.4g}".strip()
        speed = "" if run.steps_per_s is None else f"{run.steps_per_s:.3g}"
        sign = "" if run.heartbeat_s is None else f"{ago(now_s - run.heartbeat_s)} ago"
        loss = "" if run.loss is None else f"{run.loss:.4g}"
        cells = [run.name, run.kind, run.status, f"{run.step:,}/{run.num_steps:,}", loss, best, speed, sign]
        rows.append([*cells, *([run.mlflow] if run.mlflow else [])])
    yield from table(rows)


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Align columns."""
    widths = [max(len(row[column]) if column < len(row) else 0 for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)).rstrip()


def ago(seconds: float) -> str:
    """Format a time span briefly: 40 s, 5 min, 3 h, 2 d."""
    for limit, unit, each in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{max(seconds, 0) / each:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def compare_lines(found: dict[str, Any]) -> Iterator[str]:
    """Format a comparison as the lines of a table."""
    rows = [["", *found["runs"]]]
    rows += [[key, *map(_shown, values)] for key, values in found["config"].items()]
    rows.append(["" for _ in rows[0]])
    figures = {key: values for key, values in found["figures"].items() if any(value is not None for value in values)}
    rows += [[key, *map(_shown, values)] for key, values in figures.items()]
    yield from table(rows)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.5g}"
    return value[:16] if isinstance(value, str) and len(value) == 64 else str(value)


def explain_missing(store: str) -> CytorayError:
    """Return the error for a store without runs."""
    return TrainingError(
        f"{store}: this store does not exist or has no run.",
        remedy="Check --store (or CYTORAY_STORE, or cytoray.yaml), or start one with `cytoray pretrain`.",
        uri=store,
    )
