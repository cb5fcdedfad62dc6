"""Configuration that several tasks share: a run that starts from a model, and a stage that uses one."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field, field_validator, model_validator

from cytoray.config import Config, Location
from cytoray.runs import NAME
from cytoray.tasks.assessing import CACHE_FOLDER
from cytoray.tracking import TrackingConfig
from cytoray.training.config import RunConfig

MODEL = (
    "models:/NAME@ALIAS, models:/NAME/VERSION, run:NAME (a finished run of this store), or the folder or s3:// URI of "
    "a bundle or a public scGPT checkpoint."
)
CACHE = "Local folder for bundles from MLflow or s3://."


class ModelStageConfig(Config):
    """Common configuration of stages that use a model."""

    store: Location = Field(description="Root of all data of cytoray: s3://bucket/prefix or a local folder.")
    model: str = Field(min_length=1, description=MODEL)
    tracking: TrackingConfig = Field(description="MLflow and the run journal.")
    cache_folder: Location = Field(CACHE_FOLDER, description=CACHE)


class FromModelConfig(RunConfig):
    """Settings of a training run that starts from a model."""

    places: ClassVar[frozenset[str]] = RunConfig.places | {"cache_folder"}

    initial: str | None = Field(
        None,
        min_length=1,
        description="The model to start from: run:NAME (its best checkpoint by validation, or its last), "
        "models:/NAME@ALIAS or /VERSION, or the folder or s3:// URI of a bundle or of a public scGPT checkpoint.",
    )
    initial_run: str | None = Field(
        None, pattern=NAME, description="Short for initial: run:NAME; exactly one of both is given."
    )
    cache_folder: Location = Field(CACHE_FOLDER, description=CACHE)

    @field_validator("initial")
    @classmethod
    def _path_is_absolute(cls, initial: str | None) -> str | None:
        if initial is None or initial.startswith(("run:", "models:/")) or "://" in initial:
            return initial
        return str(Path(initial).expanduser().absolute())

    @model_validator(mode="after")
    def _a_run_is_a_model(self) -> Self:
        """Write ``initial_run: NAME`` as ``initial: run:NAME``, so that both are the same run."""
        if (self.initial_run is None) == (self.initial is None):
            raise ValueError("give either initial or initial_run: the model to start from")
        if self.initial_run is not None:
            object.__setattr__(self, "initial", f"run:{self.initial_run}")  # frozen from here on only
            object.__setattr__(self, "initial_run", None)
        return self

    @property
    def initial_uri(self) -> str:
        """URI of the model to start from."""
        assert self.initial is not None, "validated"
        return self.initial
