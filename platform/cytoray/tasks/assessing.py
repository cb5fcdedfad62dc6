"""Configuration that the assessments of all tasks share; its keys are options of ``cytoray assess``."""

from __future__ import annotations

from pydantic import Field

from cytoray.config import Config, Location
from cytoray.tracking import TrackingConfig

CACHE_FOLDER = "~/.cache/cytoray/models"


class AssessConfig(Config):
    """Configuration of an assessment: train and evaluate a task on one's own cells, beside the simple method."""

    data: Location = Field(description="File of cells: a path or s3://…")
    out: Location = Field("assessment", description="Local folder for report.html and report.json.")
    seed: int = Field(0, ge=0, description="Seed of splits and fits.")
    store: Location | None = Field(None, description="Root of all data of cytoray, for run:NAME.")
    tracking: TrackingConfig | None = Field(None, description="MLflow, for models:/NAME@ALIAS.")
    cache_folder: Location = Field(CACHE_FOLDER, description="Local folder for bundles from MLflow or s3://.")
