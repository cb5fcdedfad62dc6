"""Configurations of promote and of offline answers, and the configuration class for each ``kind`` of YAML file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, create_model, field_validator, model_validator

from cytoray import storage
from cytoray.config import Config, Location, read_tree, validate_tree
from cytoray.corpus.config import IngestConfig, SourceConfig
from cytoray.errors import ConfigError
from cytoray.registry.gate import AssessmentsConfig, GateConfig
from cytoray.runs import NAME
from cytoray.serving.config import ServeConfig
from cytoray.serving.deploy_file import DeployFile
from cytoray.stages.pipeline_config import PipelineConfig
from cytoray.stages.rollout import RolloutStageConfig
from cytoray.tasks import task_assessments, task_offline, task_stages
from cytoray.tasks.assessing import CACHE_FOLDER
from cytoray.tasks.config import CACHE, MODEL, ModelStageConfig
from cytoray.tasks.networks.config import InferNetworksConfig
from cytoray.tracking import TrackingConfig
from cytoray.training.config import ShapeConfig

CORPUS = "corpus:"  # of the URI of a corpus in the store


class PromoteConfig(ModelStageConfig):
    """Configuration of promote: register a bundle in MLflow and move an alias to it if it passes the gate."""

    kind: Literal["promote"] = Field("promote", description="Which stage this file configures.")
    name: str = Field(pattern=NAME, description="Name of the registered model.")
    alias: str = Field(
        "champion",
        pattern=r"^[A-Za-z][A-Za-z0-9_-]*$",
        description="Alias moved to the new version; `candidate` only registers it, without a gate.",
    )
    gate: GateConfig | None = Field(None, description="Conditions on its scores; without a gate all scores pass.")
    assessments: AssessmentsConfig = Field(
        AssessmentsConfig(), description="Conditions on the assessments that were recorded on the version."
    )

    @field_validator("assessments")
    @classmethod
    def _tasks_are_known(cls, assessments: AssessmentsConfig) -> AssessmentsConfig:
        known = task_assessments()
        if unknown := sorted({*assessments.require, *assessments.allow_loss} - known.keys()):
            raise ValueError(f"unknown task {unknown[0]!r}; tasks with an assessment are {', '.join(known)}")
        return assessments

    @field_validator("alias")
    @classmethod
    def _previous_is_ours(cls, alias: str) -> str:
        if alias == "previous":
            raise ValueError("the alias previous is set automatically; use `cytoray models rollback` to return to it")
        return alias


class OfflineConfig(Config):
    """Configuration of offline answers to the cells of files: embed, annotate and their siblings."""

    kind: str = Field(description="Which stage this file configures.")
    model: str = Field(min_length=1, description=MODEL)
    store: Location | None = Field(None, description="Root of all data of cytoray; required for run:NAME.")
    tracking: TrackingConfig | None = Field(None, description="MLflow and the run journal; required for models:/….")
    cache_folder: Location = Field(CACHE_FOLDER, description=CACHE)
    data: tuple[SourceConfig, ...] = Field(
        min_length=1,
        description="One source of cells or a list; a uri that ends in / means all files below it, corpus:NAME or "
        "corpus:NAME@VERSION (or STORE/corpora/NAME) a committed corpus.",
    )
    out: Location = Field(description="Folder or s3:// prefix for the parquet files.")
    h5ad: bool = Field(False, description="Also write one h5ad file per source, with arrays of numbers in obsm.")
    rows_per_task: int = Field(4_096, ge=1, description="Rows of a source per parquet file.")
    num_actors: int = Field(1, ge=1, description="Number of processes with a copy of the model.")
    num_gpus: float = Field(0.0, ge=0, description="GPUs reserved for each process; 0 runs the model on the CPU.")

    @field_validator("data", mode="before", json_schema_input_type=SourceConfig | tuple[SourceConfig, ...])
    @classmethod
    def _one_is_a_list(cls, data: Any, info: ValidationInfo) -> Any:
        store = info.data.get("store")
        return tuple(_in_store(one, store) for one in (data if isinstance(data, list | tuple) else (data,)))

    @model_validator(mode="after")
    def _model_can_be_found(self) -> Self:
        if self.model.startswith("run:") and self.store is None:
            raise ValueError("model run:NAME needs store")
        if self.model.startswith("models:/") and self.tracking is None:
            raise ValueError("model models:/NAME needs tracking")
        return self


def _in_store(source: Any, store: str | None) -> Any:
    """Return a source whose uri is ``corpus:NAME`` with the URI of that corpus; others as they are."""
    uri = source.get("uri") if isinstance(source, dict) else None
    if not isinstance(uri, str) or not uri.startswith(CORPUS):
        return source
    if store is None:
        raise ValueError(f"{uri} needs store")
    return {**source, "uri": storage.join(store, "corpora", uri.removeprefix(CORPUS))}


class EmbedConfig(OfflineConfig):
    """Configuration of embed: offline embedding and annotation."""

    kind: Literal["embed"] = Field("embed", description="Which stage this file configures.")


@cache
def offline_config(kind: str) -> type[OfflineConfig]:
    """Return the class of configuration of one kind of offline answers."""
    if kind == "embed":
        return EmbedConfig
    kind_field: Any = (Literal[kind], Field(kind, description="Which stage this file configures."))
    return create_model("OfflineConfig", __base__=OfflineConfig, __doc__=f"Configuration of {kind}.", kind=kind_field)


def stage_configs() -> dict[str, type[Config]]:
    """Return the class of configuration for each ``kind``: those of the tasks, and those of the other stages."""
    tasks = {kind: stage.config.load() for kind, stage in task_stages().items()}
    assessments = {f"assess-{name}": each.config.load() for name, each in task_assessments().items()}
    offline = {kind: offline_config(kind) for kind in task_offline()}
    others: dict[str, type[Config]] = {
        "infer-networks": InferNetworksConfig,
        "pipeline": PipelineConfig,
        "promote": PromoteConfig,
        "rollout": RolloutStageConfig,
        "serve": ServeConfig,
    }
    return {"ingest": IngestConfig, **tasks, **assessments, **offline, **others}


class ModelShapeConfig(ShapeConfig):
    """The shape of a model in a separate file that run configurations include; such a file has no ``kind``."""

    kind: Literal["model"] = Field("model", description="What this file configures.")


def _is_shape(data: dict[str, Any]) -> bool:
    """Whether a file is the shape of a model: it has no ``kind``, and most of its keys are those of a shape."""
    known = data.keys() & ModelShapeConfig.model_fields.keys()
    return "kind" not in data and len(known) > len(data) / 2


def load_stage_config(path: str | Path, *, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file as the configuration of its ``kind``, or as one of `serve deploy`.

    Raises ConfigError that lists every mistake.
    """
    tree = read_tree(path, overrides=overrides)
    if _is_shape(tree.data):
        return validate_tree(ModelShapeConfig, tree, source=str(path))
    if "applications" in tree.data or "http_options" in tree.data:
        return validate_tree(DeployFile, tree, source=str(path))
    kind, kinds = tree.data.get("kind"), stage_configs()
    if not isinstance(kind, str) or kind not in kinds:
        line = tree.origin(("kind",)) or f"{path}:1"
        raise ConfigError(
            f"{line}: kind: expected one of {', '.join(kinds)}, got {kind!r}.", remedy="Start the file with `kind: …`."
        )
    return validate_tree(kinds[kind], tree, source=str(path))
