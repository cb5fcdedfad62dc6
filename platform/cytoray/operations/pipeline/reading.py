"""Read a pipeline file: the configuration of each stage, checked as a whole before anything starts.

What a stage takes from another one (a corpus, a model, scores) is not known yet; a name that could stand there is put
in its place, so that every other key is checked with its line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cytoray import storage
from cytoray.config import Config, read_tree, subtree, validate_tree
from cytoray.corpus.config import IngestConfig
from cytoray.errors import ConfigError
from cytoray.stages.config import PromoteConfig, stage_configs
from cytoray.stages.pipeline_config import PipelineConfig, PipelineStage
from cytoray.stages.rollout import RolloutStageConfig
from cytoray.tasks import task_stages
from cytoray.tasks.config import FromModelConfig
from cytoray.training.config import PretrainConfig, RunConfig

NOT_JOBS = ("pipeline", "serve")
CORPUS_KEYS = ("corpus", "baseline_corpus")


@dataclass(frozen=True)
class Stage:
    """A stage with its checked configuration, and the stages before it that it takes something from, by what it is.

    In ``config``, what it takes is a placeholder.
    """

    name: str
    kind: str
    config: Config
    takes: Mapping[str, str]
    is_continued: bool = False  # whether a training that is repeated starts from the model that it made before

    @property
    def model_key(self) -> str | None:
        """The key of its configuration that names a model; None if it has none."""
        return _model_key(type(self.config))


@dataclass(frozen=True)
class Pipeline:
    """A pipeline: its own settings, and its stages in order."""

    config: PipelineConfig
    stages: tuple[Stage, ...]

    @property
    def folder(self) -> str:
        """Folder in the store with its records, reports and page."""
        return storage.join(self.config.store, "pipelines", self.config.name)


def read_pipeline(path: str | Path, *, overrides: Sequence[str] = ()) -> Pipeline:
    """Read a pipeline and the configurations of its stages.

    An override ``STAGE.a.b=c`` changes a key of a stage, ``a=b`` one of the pipeline itself. Raises ConfigError that
    lists every mistake in the first file or stage that has one.
    """
    names = _names(read_tree(path).data)
    own = [text for text in overrides if text.partition(".")[0] not in names]
    tree = read_tree(path, overrides=own)
    config = validate_tree(PipelineConfig, tree, source=str(path))
    shared = {key: tree.data[key] for key in ("store", "tracking") if tree.data.get(key) is not None}
    stages: list[Stage] = []
    for number, entry in enumerate(config.stages):
        mine = [text.removeprefix(f"{entry.name}.") for text in overrides if text.startswith(f"{entry.name}.")]
        part = subtree(tree, ("stages", number, "config"), overrides=[*entry.set, *mine])
        stages.append(_check_stage(entry, part, shared, stages, where=f"{path}, stage {entry.name}"))
    return Pipeline(config, tuple(stages))


def _names(data: Mapping[str, Any]) -> set[str]:
    """Return the names of the stages of a file that has not been checked."""
    stages = data.get("stages")
    rows = stages if isinstance(stages, list) else []
    return {str(row["name"]) for row in rows if isinstance(row, dict) and "name" in row}


def _check_stage(
    entry: PipelineStage, part: Any, shared: Mapping[str, Any], before: Sequence[Stage], *, where: str
) -> Stage:
    """Check the configuration of one stage, and find what it takes from the stages before it."""
    kinds = {kind: found for kind, found in stage_configs().items() if kind not in NOT_JOBS}
    kind = part.data.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise ConfigError(
            f"{where}: kind: expected one of {', '.join(kinds)}, got {kind!r}.",
            remedy="Name the configuration file of a stage, or give its `kind`.",
        )
    part.data.update({key: value for key, value in shared.items() if key in kinds[kind].model_fields})
    takes = _find_takes(entry, kinds[kind], part.data, before, where=where)
    by_name = {stage.name: stage for stage in before}
    _put_placeholders(part.data, kinds[kind], {key: by_name[name] for key, name in takes.items()})
    config = validate_tree(kinds[kind], part, source=where)
    is_continued = entry.retrain == "continue"
    if is_continued and not isinstance(config, FromModelConfig):
        raise ConfigError(f"{where}: retrain: only fine-tuning can be continued.", remedy="Write `retrain: new`.")
    return Stage(entry.name, kind, config, takes, is_continued)


def _model_key(kind: type[Config]) -> str | None:
    if issubclass(kind, RunConfig):
        return "initial" if issubclass(kind, FromModelConfig) else None
    return "model" if "model" in kind.model_fields else None


def _find_takes(
    entry: PipelineStage, kind: type[Config], data: Mapping[str, Any], before: Sequence[Stage], *, where: str
) -> dict[str, str]:
    """Return the stage before this one that each thing is taken from: named by the user, or the nearest."""
    wanted: dict[str, list[str]] = {}
    if any(key in kind.model_fields for key in CORPUS_KEYS) and not issubclass(kind, IngestConfig):
        wanted["corpus"] = [stage.name for stage in before if isinstance(stage.config, IngestConfig)]
    model_key = _model_key(kind)
    if model_key is not None and not (model_key in data and data[model_key] is None):
        wanted["model"] = [stage.name for stage in before if _gives_model(stage, kind, data)]
    if issubclass(kind, PromoteConfig) and data.get("gate") is not None:
        wanted["scores"] = [stage.name for stage in before if is_evaluation(stage.kind)]
    takes: dict[str, str] = {}
    for key in ("corpus", "model", "scores"):
        named, possible = getattr(entry, key), wanted.get(key, [])
        if named is not None and named not in possible:
            others = ", ".join(possible) or "none"
            raise ConfigError(
                f"{where}: {key}: the stage {named!r} gives nothing that this one takes.",
                remedy=f"Stages before it that do: {others}.",
            )
        if key == "scores" and named is None:
            possible = [
                each.name for each in before if each.name in possible and each.takes.get("model") == takes.get("model")
            ]
        if found := named or (possible[-1] if possible else None):
            takes[key] = found
    return takes


def _gives_model(stage: Stage, taker: type[Config], data: Mapping[str, Any]) -> bool:
    """Whether a stage makes a model that a stage of the class ``taker`` can take without being asked to."""
    is_promoted, is_trained = isinstance(stage.config, PromoteConfig), isinstance(stage.config, RunConfig)
    if issubclass(taker, RolloutStageConfig) or data.get("record"):
        return is_promoted
    if issubclass(taker, FromModelConfig):
        return isinstance(stage.config, PretrainConfig)
    return is_trained if issubclass(taker, PromoteConfig) else is_trained or is_promoted


def is_evaluation(kind: str) -> bool:
    """Return whether stages of a kind write a table of scores that a gate can read."""
    return kind in task_stages() and not issubclass(stage_configs()[kind], RunConfig)


def _put_placeholders(data: dict[str, Any], kind: type[Config], taken: Mapping[str, Stage]) -> None:
    """Put names into the data of a stage where it takes something that is not made yet."""
    if "corpus" in taken:
        corpus = taken["corpus"].config
        assert isinstance(corpus, IngestConfig), "only an ingest gives a corpus"
        data.update({key: corpus.corpus for key in CORPUS_KEYS if key in kind.model_fields})
    if "model" in taken:
        key, giver = _model_key(kind), taken["model"].config
        assert key is not None, "it takes a model"
        data.pop("initial_run", None)
        data[key] = f"run:{giver.run}" if isinstance(giver, RunConfig) else f"models:/{getattr(giver, 'name', '')}/1"
    gate = data.get("gate") if issubclass(kind, PromoteConfig) else None
    if isinstance(gate, dict) and ("scores" in taken or "model" in taken):
        gate["scores"] = storage.join(str(data["store"]), "scores.json")
