"""``cytoray.yaml`` in the working folder: defaults of options for all commands."""

from __future__ import annotations

import os

from pydantic import Field

from cytoray.cli.common import DEFAULTS_FILE, STORE, TRACKING
from cytoray.config import Config, Location, load_config
from cytoray.tasks.assessing import MODEL_VARIABLE


class Defaults(Config):
    """``cytoray.yaml`` in the working folder: defaults of options for all commands."""

    store: Location | None = Field(None, description="Root of all data of cytoray.")
    tracking_uri: str | None = Field(None, description="MLflow: http(s)://host:port or sqlite:////path/mlflow.db.")
    model: str | None = Field(None, min_length=1, description="Model of `cytoray assess` if none is named: any URI.")


def load_defaults() -> None:
    """Read store, MLflow and model from ``cytoray.yaml`` in the working folder, unless the environment sets them.

    They are put into the environment: options override the environment, which overrides the file.
    """
    found = load_config(Defaults, DEFAULTS_FILE)
    defaults = {STORE: found.store, TRACKING: found.tracking_uri, MODEL_VARIABLE: found.model}
    for variable, value in defaults.items():
        if value is not None:
            os.environ.setdefault(variable, value)
