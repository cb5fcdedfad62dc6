"""What a run is, written when it first starts: a later start must be the same, except for keys that may change."""

from __future__ import annotations

import hashlib
import json
import uuid
from typing import Any

from pydantic import Field, ValidationError

from cytoray import provenance, storage
from cytoray.config import Config
from cytoray.errors import ConflictError, TrainingError
from cytoray.runs import run_folder
from cytoray.training.config import RunConfig


class RunRecord(Config):
    """``run.json``: the settings of a run, those of its first start until a change is allowed."""

    run_uuid: str
    manifest_digest: str
    config: dict[str, Any]
    initial_digest: str = ""  # of the model that it started from; empty without one, and in older records
    input_digests: dict[str, str] = Field({}, description="SHA-256 of the file that each key of `inputs` names.")
    environment: dict[str, str] = Field({}, description="Code and packages at the first start; empty in older records.")


def load_run_record(store: str, run: str) -> RunRecord:
    """The record of ``run``; NotFoundError if it was never started."""
    return RunRecord.model_validate_json(storage.read_bytes(_record_uri(store, run)))


def claim_run(config: RunConfig, manifest_digest: str, *, initial_digest: str = "") -> RunRecord:
    """Record what this run is, or find that it is the same; TrainingError naming the keys that differ.

    ``initial_digest`` is that of the model the run starts from; if it is empty, it is not compared.
    """
    mine = RunRecord(
        run_uuid=uuid.uuid4().hex,
        manifest_digest=manifest_digest,
        config=_settings(config),
        initial_digest=initial_digest,
        input_digests=_input_digests(config),
        environment=provenance.environment(),
    )
    try:
        storage.put_if_absent(_record_uri(config.store, config.run), mine.model_dump_json().encode())
    except ConflictError:
        there = load_run_record(config.store, config.run)
        _refuse_other_settings(config, there, mine)
        return there
    return mine


def record_changes(config: RunConfig, record: RunRecord, *, initial_digest: str = "") -> list[str]:
    """Record settings that the user allows to differ, so that a later start continues with them.

    Returns a line for each key that changes results from here on.
    """
    started_as, here = _complete(record.config, type(config)), _settings(config)
    differing = _differences(started_as, here, "")
    changed = [key for key in differing if _is_in(key, config.allow_changes)]
    replaced = _has_other_initial(record, initial_digest)
    inputs = _input_digests(config)
    edited = [key for key in _edited(record.input_digests, inputs) if key not in changed]
    if changed or replaced or edited:
        update = {"config": here, "initial_digest": initial_digest or record.initial_digest, "input_digests": inputs}
        data = record.model_copy(update=update).model_dump_json().encode()
        storage.write_bytes(_record_uri(config.store, config.run), data)
    redrawn = [key for key in differing if _is_in(key, config.redrawing) and config.has_dropout]
    lines = [f"{key} was changed from {_value(started_as, key)} to {_value(here, key)}" for key in changed]
    lines += [f"the content of {key} ({_value(here, key)}) was changed" for key in edited]
    if replaced:
        lines.append(f"the initial model was changed from {record.initial_digest} to {initial_digest}")
    return lines + [
        f"{key} differs from the first start ({_value(started_as, key)}, now {_value(here, key)}): "
        "dropout masks are drawn differently from here on"
        for key in redrawn
        if key not in changed
    ]


def _record_uri(store: str, run: str) -> str:
    return storage.join(run_folder(store, run), "run.json")


def _settings(config: RunConfig) -> dict[str, Any]:
    """The configuration as plain data, without the permission to change it."""
    return config.model_dump(mode="json") | {"allow_changes": []}


def _input_digests(config: RunConfig) -> dict[str, str]:
    """Return the digest of each file that a key of ``inputs`` names; a missing file is left to its reader."""
    files = {key: storage.find_bytes(uri) for key in sorted(config.inputs) if (uri := getattr(config, key)) is not None}
    return {key: hashlib.sha256(data).hexdigest() for key, data in files.items() if data is not None}


def _edited(there: dict[str, str], here: dict[str, str]) -> list[str]:
    """Return the inputs whose digests are both known, and differ."""
    return [key for key in sorted(there.keys() & here.keys()) if there[key] != here[key]]


def _has_other_initial(record: RunRecord, digest: str) -> bool:
    """Whether both digests of the initial model are known, and differ."""
    return bool(record.initial_digest and digest and record.initial_digest != digest)


def _refuse_other_settings(config: RunConfig, there: RunRecord, mine: RunRecord) -> None:
    """Raise TrainingError if settings differ that must not."""
    may_differ = config.places | config.free | config.redrawing | set(config.allow_changes)
    if mine.initial_digest and mine.initial_digest == there.initial_digest:
        may_differ |= {"initial"}  # another name of the same model
    edited = _edited(there.input_digests, mine.input_digests)
    may_differ |= there.input_digests.keys() & mine.input_digests.keys() - set(edited)  # another name of the same file
    keys = _differences(_complete(there.config, type(config)), _settings(config), "")
    differing = [key for key in dict.fromkeys([*keys, *edited]) if not _is_in(key, may_differ) and key != "corpus"]
    names = ", ".join(differing)
    allowed = (
        f", or allow the change with `allow_changes: [{names}]` in the file, --set 'allow_changes=[{names}]', or "
        f"{' '.join(f'--allow {key}' for key in differing)} for `cytoray train resume`"
    )
    if _has_other_initial(there, mine.initial_digest) and "initial" not in config.allow_changes:
        differing.append(
            f"initial (the run started from the model {there.initial_digest}, now it is {mine.initial_digest})"
        )
        allowed = ", or allow the change with --set 'allow_changes=[initial]'"
    if there.manifest_digest != mine.manifest_digest:  # the cells; two names of the same ones do not differ
        differing.append("corpus (its manifest digest)")
        allowed = f"; earlier versions of a corpus that has grown are corpus: {config.corpus.partition('@')[0]}@VERSION"
    if differing:
        shown = [f"{key} (the content of the file)" if key in edited and key not in keys else key for key in differing]
        raise TrainingError(
            f"Run {config.run!r} has other settings: {', '.join(shown)}.",
            remedy=f"Use another run name, or the settings it has{allowed}.",
            keys=differing,
        ) from None


def _complete(kept: dict[str, Any], kind: type[RunConfig]) -> dict[str, Any]:
    """A kept configuration with the defaults of keys that are newer; unchanged if it is no longer valid."""
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


def _is_in(key: str, names: frozenset[str] | set[str] | tuple[str, ...]) -> bool:
    """Whether ``key`` is one of ``names`` or lies in such a section."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _value(settings: dict[str, Any], key: str) -> Any:
    """The value at a key path; None if it is missing."""
    found: Any = settings
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found
