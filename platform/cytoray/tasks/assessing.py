"""Configuration that the assessments of all tasks share; its keys are options of ``cytoray assess``."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from cytoray.config import Config, Location
from cytoray.tracking import TrackingConfig

CACHE_FOLDER = "~/.cache/cytoray/models"


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
    model: str | None = Field(None, min_length=1, description="Any model URI.")
    record: bool = Field(
        False, description="Also record the report on the model version: figures as tags, files as artifacts."
    )
    again: bool = Field(
        False, description="Assess again although `out` has the report of these data, this model and these settings."
    )
