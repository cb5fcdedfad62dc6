"""Training runs from outside: the folder of each in the store, and the record of the bundle that it has exported."""

from __future__ import annotations

import re
from typing import Literal

from cytoray import storage
from cytoray.config import Config
from cytoray.errors import NotFoundError, TrainingError

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Which = Literal["best", "last"]  # best by validation error; without validation, the last
_RECORDS: dict[Which, str] = {"best": "BUNDLE.json", "last": "BUNDLE-last.json"}
MAX_SHOWN = 20  # runs in a message


class BundleRecord(Config):
    """Location, digest and lineage of a run's bundle."""

    uri: str
    digest: str
    lineage: dict[str, str]
    mlflow_run_id: str | None


class Done(Config):
    """``DONE.json``: written when a run finishes, and again when it finishes after an extension."""

    mlflow_run_id: str | None
    hardware: tuple[dict[str, str], ...] = ()
    events: tuple[str, ...] = ()


def done_uri(store: str, run: str) -> str:
    """Return the URI of the record that a run has finished."""
    return storage.join(run_folder(store, run), "DONE.json")


def run_folder(store: str, run: str) -> str:
    """Return the folder of a run; TrainingError if ``run`` cannot be the name of one."""
    if re.fullmatch(NAME, run) is None:
        raise TrainingError(
            f"{run!r} is not a run name.",
            remedy="Write letters, digits, '.', '_' and '-', beginning with a letter or a digit.",
            run=run,
        )
    return storage.join(store, "runs", run)


def record_uri(store: str, run: str, *, which: Which = "best") -> str:
    """Return the URI of the record of a run's bundle."""
    return storage.join(run_folder(store, run), _RECORDS[which])


def find_bundle(store: str, run: str, *, which: Which = "best") -> BundleRecord:
    """Find the bundle that a run has exported; TrainingError that lists the runs with one if it has none."""
    try:
        return BundleRecord.model_validate_json(storage.read_bytes(record_uri(store, run, which=which)))
    except NotFoundError as error:
        raise TrainingError(
            f"Run {run!r} has exported no bundle in {store}.",
            remedy=f"Let its training finish first, or name another run: {describe_runs(store)}.",
        ) from error


def list_runs(store: str) -> list[str]:
    """Return the names of the runs that have exported a bundle, sorted."""
    root = storage.join(store, "runs")
    prefix = f"{root if storage.is_remote(root) else storage.local_path(root)}/"
    names = (uri.removeprefix(prefix).split("/") for uri in storage.list_files(root))
    return sorted(parts[0] for parts in names if parts[1:] == [_RECORDS["best"]])


def describe_runs(store: str) -> str:
    """Return the names of the runs with a bundle for a message."""
    names = list_runs(store)
    return ", ".join(names[:MAX_SHOWN]) + (", …" if len(names) > MAX_SHOWN else "") if names else "no run has one yet"
