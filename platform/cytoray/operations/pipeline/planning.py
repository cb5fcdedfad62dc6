"""Plan a pipeline: which stages are done, which would run, and why. Nothing is started or written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cytoray import storage
from cytoray.corpus.config import IngestConfig
from cytoray.corpus.manifest import corpus_uri, version_uri
from cytoray.errors import ConfigError, NotFoundError, TrainingError
from cytoray.operations.pipeline.keys import find_key
from cytoray.operations.pipeline.reading import Pipeline, Stage
from cytoray.operations.pipeline.records import (
    StageFailure,
    StageKey,
    StageRecord,
    find_failure,
    find_latest,
    find_record,
    task_uri,
)
from cytoray.operations.pipeline.tasks import run_name, stage_folder
from cytoray.runs import find_bundle
from cytoray.stages.config import PromoteConfig
from cytoray.stages.rollout import RolloutStageConfig
from cytoray.training.config import RunConfig

SHOWN = 5  # keys or files in a reason


@dataclass(frozen=True)
class StagePlan:
    """The state of one stage.

    ``waits``: it runs if stages before it, that are to run, make something new.
    """

    stage: Stage
    state: Literal["done", "run", "waits"]
    reason: str
    key: StageKey | None = None
    record: StageRecord | None = None  # of a stage that is done
    taken: Mapping[str, StageRecord] | None = None
    failure: StageFailure | None = None  # of the last attempt
    is_lost: bool = False  # whether it is recorded as done, but its result is gone

    def as_dict(self) -> dict[str, Any]:
        """Return the state as JSON data."""
        record, failure = self.record, self.failure
        return {
            "stage": self.stage.name,
            "kind": self.stage.kind,
            "state": self.state,
            "reason": self.reason,
            "takes": dict(self.stage.takes),
            "key": None if self.key is None else self.key.digest,
            "started": None if record is None else record.started,
            "seconds": None if record is None else record.seconds,
            "result": None if record is None else record.result,
            "error": None if failure is None else failure.model_dump(),
        }


def plan(pipeline: Pipeline) -> list[StagePlan]:
    """Plan all stages, in order."""
    plans: dict[str, StagePlan] = {}
    for stage in pipeline.stages:
        plans[stage.name] = plan_stage(pipeline, stage, plans)
    return list(plans.values())


def plan_stage(pipeline: Pipeline, stage: Stage, before: Mapping[str, StagePlan]) -> StagePlan:
    """Plan one stage, given the plans of those before it; raises CytorayError if what it reads cannot be found."""
    taken: dict[str, StageRecord] = {}
    for thing, name in stage.takes.items():
        given = before[name].record
        if given is None:
            return StagePlan(stage, "waits", f"takes its {thing} from {name}")
        taken[thing] = given
    key = find_key(stage, taken)
    folder = stage_folder(pipeline, stage)
    record, latest = find_record(folder, key.digest), find_latest(folder)
    if isinstance(stage.config, IngestConfig):
        _refuse_other_settings(stage, key, latest)
    if record is None:
        reason = _why(key, latest, was_started=storage.exists(task_uri(folder, key.digest)))
        return StagePlan(stage, "run", reason, key, taken=taken, failure=find_failure(folder, key.digest))
    if (lost := _find_lost(stage, record)) is not None:
        return StagePlan(stage, "run", f"its result is missing: {lost}", key, taken=taken, is_lost=True)
    moves = isinstance(stage.config, PromoteConfig | RolloutStageConfig)
    if moves and latest is not None and latest.key.digest != key.digest:
        # An alias that was moved by hand since stays there; one that this stage has moved to another model does not.
        return StagePlan(stage, "run", _why(key, latest, was_started=False), key, taken=taken)
    return StagePlan(stage, "done", "done", key, record=record, taken=taken)


def _refuse_other_settings(stage: Stage, key: StageKey, latest: StageRecord | None) -> None:
    """Raise ConfigError if a corpus that exists would have to be made in another way: its versions only grow."""
    if latest is None or latest.key.settings["corpus"] != key.settings["corpus"]:
        return
    known = latest.key.settings
    added = key.settings["sources"].keys() - known["sources"].keys()
    here = key.settings | {"sources": {uri: one for uri, one in key.settings["sources"].items() if uri not in added}}
    if changed := differing_keys(known, here):
        raise ConfigError(
            f"{stage.name}: corpus {key.settings['corpus']!r} was made with other settings: {', '.join(changed)}.",
            remedy="Give the corpus another name (key `corpus`) to make it anew, or use the settings it has.",
            keys=changed,
        )


def _why(key: StageKey, latest: StageRecord | None, *, was_started: bool) -> str:
    """Describe why a stage has to run."""
    if was_started:
        return "was started and is not done"
    if latest is None:
        return "has never run"
    reasons = []
    if changed := differing_keys(latest.key.settings, key.settings):
        reasons.append(f"settings changed: {_shown(changed)}")
    if key.sources or latest.key.sources:
        reasons += _source_changes(latest.key.sources, key.sources)
    else:
        names = latest.key.inputs.keys() | key.inputs.keys()
        others = sorted(name for name in names if latest.key.inputs.get(name) != key.inputs.get(name))
        if others:
            reasons.append(f"{' and '.join(others)} changed")
    return "; ".join(reasons) or "was not done last"


def _source_changes(there: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    new, gone = sorted(here.keys() - there.keys()), sorted(there.keys() - here.keys())
    other = sorted(uri for uri in here.keys() & there.keys() if here[uri] != there[uri])
    rows = (("new source files", new), ("missing source files", gone), ("changed source files", other))
    return [f"{len(uris)} {what}: {_shown(uris)}" for what, uris in rows if uris]


def _shown(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def differing_keys(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the key paths whose values differ, sorted."""
    keys: list[str] = []
    for key in sorted(there.keys() | here.keys()):
        old, new = there.get(key), here.get(key)
        if (isinstance(old, dict) and isinstance(new, dict | None)) or (old is None and isinstance(new, dict)):
            keys += differing_keys(old or {}, new or {}, f"{prefix}{key}.")
        elif old != new:
            keys.append(f"{prefix}{key}")
    return keys


def _find_lost(stage: Stage, record: StageRecord) -> str | None:
    """Return what is missing of the result of a stage that was done; None if it is there."""
    config = stage.config
    if isinstance(config, IngestConfig):
        uri = version_uri(corpus_uri(config.store, config.corpus), record.result["version"])
        return None if storage.exists(uri) else uri
    if isinstance(config, RunConfig):
        try:
            found = find_bundle(config.store, run_name(record)).digest
        except (TrainingError, NotFoundError):
            found = ""
        return None if found == record.result["bundle_digest"] else f"bundle of run {run_name(record)}"
    return next((uri for uri in record.files if not storage.exists(uri)), None)
