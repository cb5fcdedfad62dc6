"""What a run is, written once when it first starts: a later start must be the same, but for keys that may change."""

from __future__ import annotations

import json
import uuid
from typing import Any

from pydantic import ValidationError

from cytoray import storage
from cytoray.config import Config
from cytoray.errors import ConflictError, TrainingError
from cytoray.training.config import RunConfig


class RunRecord(Config):
    """``run.json``: what a run is; written once, when it first starts."""

    run_uuid: str
    manifest_digest: str
    config: dict[str, Any]


def load_run_record(store: str, run: str) -> RunRecord:
    """What ``run`` was started as; NotFoundError if it never was."""
    return RunRecord.model_validate_json(storage.read_bytes(storage.join(store, "runs", run, "run.json")))


def claim_run(config: RunConfig, manifest_digest: str) -> RunRecord:
    """Record what this run is, or find that it is the same; TrainingError naming the keys that differ."""
    uri = storage.join(config.store, "runs", config.run, "run.json")
    mine = RunRecord(run_uuid=uuid.uuid4().hex, manifest_digest=manifest_digest, config=config.model_dump(mode="json"))
    try:
        storage.put_if_absent(uri, mine.model_dump_json().encode())
    except ConflictError:
        there = RunRecord.model_validate_json(storage.read_bytes(uri))
        started_as = _complete(there.config, type(config))
        differing = [key for key in _differences(started_as, mine.config, "") if not _may_differ(config, key)]
        allowed = f", or allow it: --set 'allow_changes=[{', '.join(differing)}]'"
        if there.manifest_digest != manifest_digest:
            differing.append("corpus (its manifest digest)")
            allowed = f"; a corpus that has grown is still there as {config.corpus.partition('@')[0]}@VERSION"
        if differing:
            raise TrainingError(
                f"Run {config.run!r} was started with other settings: {', '.join(differing)}.",
                remedy=f"Use another run name, or the settings it was started with{allowed}.",
                keys=differing,
            ) from None
        return there
    return mine


def _complete(kept: dict[str, Any], kind: type[RunConfig]) -> dict[str, Any]:
    """A kept configuration with the defaults of keys that came to be since; as it is where it no longer is one."""
    try:
        return kind.model_validate_json(json.dumps(kept)).model_dump(mode="json")
    except ValidationError:
        return kept


def _differences(there: dict[str, Any], here: dict[str, Any], prefix: str) -> list[str]:
    """Key paths whose values differ."""
    keys: list[str] = []
    for key in sorted(there.keys() | here.keys()):
        path, old, new = f"{prefix}{key}", there.get(key), here.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            keys.extend(_differences(old, new, f"{path}."))
        elif old != new:
            keys.append(path)
    return keys


def _may_differ(config: RunConfig, key: str) -> bool:
    """Whether a run may go on with another value of ``key``: it changes no result, or the user allows it."""
    allowed = config.places | config.free | set(config.allow_changes)
    return any(key == name or key.startswith(f"{name}.") for name in allowed)
