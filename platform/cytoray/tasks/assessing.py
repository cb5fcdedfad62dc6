"""Configuration that the assessments of all tasks share; its keys are options of ``cytoray assess``."""

from __future__ import annotations

import os
from typing import ClassVar, TypeVar

from pydantic import Field, field_validator

from cytoray.config import Config, Location
from cytoray.tracking import TrackingConfig
from cytoray.tracking.places import lasting_path

CACHE_FOLDER = "~/.cache/cytoray/models"
MODEL_VARIABLE = "CYTORAY_MODEL"  # URI of the model that is used if none is named; `model` in cytoray.yaml sets it
WITHOUT_MODEL = (
    "No model was named: the product is a blend of statistical methods. Name a model with --model, or set a default "
    f"({MODEL_VARIABLE}, or `model` in cytoray.yaml)."
)


class AssessConfig(Config):
    """Configuration of an assessment: train and evaluate a task on one's own cells, beside the simple method."""

    # Without an effect on the report: a report is found again whatever they are.
    places: ClassVar[frozenset[str]] = frozenset({"out", "tracking", "cache_folder", "again", "record"})
    inputs: ClassVar[tuple[str, ...]] = ("data",)  # keys that name files whose content the report depends on

    data: Location = Field(description="File of cells: a path or s3://…")
    out: Location = Field("assessment", description="Folder or s3:// prefix for report.html and report.json.")
    seed: int = Field(0, ge=0, description="Seed of splits and fits.")
    store: Location | None = Field(None, description="Root of all data of cytoray, for run:NAME.")
    tracking: TrackingConfig | None = Field(None, description="MLflow, for models:/NAME@ALIAS.")
    cache_folder: Location = Field(CACHE_FOLDER, description="Local folder for bundles from MLflow or s3://.")
    model: str | None = Field(None, min_length=1, description=f"Any model URI; default: ${MODEL_VARIABLE}.")
    record: bool = Field(
        False, description="Also record the report on the model version: figures as tags, files as artifacts."
    )
    again: bool = Field(
        False, description="Assess again although `out` has the report of these data, this model and these settings."
    )

    @field_validator("out")
    @classmethod
    def _outlives_a_job(cls, out: str) -> str:
        """Refuse a folder that Ray deletes with the job that wrote it."""
        if "://" in out:
            return out
        try:
            return lasting_path(out)
        except ValueError as error:
            raise ValueError(f"{error}, or an s3:// prefix") from error


ConfigType = TypeVar("ConfigType", bound=AssessConfig)


def default_model() -> str | None:
    """Return the URI of the model that is used if none is named; None if there is no default."""
    return os.environ.get(MODEL_VARIABLE) or None


def with_default_model(config: ConfigType) -> tuple[ConfigType, str]:
    """Return the configuration with the model that is used, and a sentence about it: empty if it was named.

    ``model: null`` in a file means no model.
    """
    if config.model is not None:
        return config, ""
    default = default_model() if "model" not in config.model_fields_set else None
    if default is None:
        return config, WITHOUT_MODEL
    note = f"No model was named: {default} is the default of {MODEL_VARIABLE}."
    return config.model_copy(update={"model": default}), note
