"""The application as an object, for `serve build serve.application:app`; it is built when it is asked for.

    CYTORAY_SERVE=serve/embed.yaml serve build serve.application:app -o built.yaml

`serve deploy` uses `cytoray.serving.app:build_app` instead, with ``args`` in its YAML.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

VARIABLE, DEFAULT = "CYTORAY_SERVE", Path(__file__).with_name("embed.yaml")


def __getattr__(name: str) -> Any:
    """Build ``app`` from ``args`` in the YAML file that CYTORAY_SERVE names; raises ConfigError for its mistakes."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cytoray.config import load_config
    from cytoray.serving.app import build_app
    from cytoray.serving.deploy_file import DeployFile

    args = load_config(DeployFile, os.environ.get(VARIABLE, DEFAULT)).applications[0].args
    assert args is not None, "a file that names this module as import_path has no args"
    return build_app(args)
