"""What is light stays light: a typing mistake in a configuration must be told before seconds of imports.

The direction of the imports between rooms is held by `lint-imports` (see .importlinter).
"""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"ray", "torch", "mlflow", "deepspeed", "anndata", "scanpy", "sklearn", "matplotlib", "pandas"}
LIGHT = {
    "tracking": ["cytoray.tracking"],
    "config": ["cytoray.config"],
    "stages.config": ["cytoray.stages.config"],
    "the command line": ["cytoray.cli"],
    "tasks": [
        "cytoray.tasks",
        *(f"cytoray.tasks.annotation.{name}" for name in ("config", "answers")),
        *(f"cytoray.tasks.{name}.answers" for name in ("embedding", "genes", "mapping", "multiomic")),
    ],
    "the client": ["cytoray.serving.client"],
    "cluster": ["cytoray.cluster"],
    "storage": ["cytoray.storage"],
    "tokens": [f"cytoray.tokens.{name}" for name in ("binning", "cells", "keys", "tokenizer", "vocabulary")],
}


@pytest.mark.parametrize("name", LIGHT)
def test_importing_pulls_in_nothing_heavy(name: str):
    code = f"import sys, {', '.join(LIGHT[name])}\nprint(*({HEAVY} & sys.modules.keys()))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split() == []


def test_importing_changes_no_environment_and_starts_no_thread():
    modules = [module for group in LIGHT.values() for module in group]
    code = (
        "import os, threading\nbefore = dict(os.environ)\n"
        f"import {', '.join(modules)}\n"
        "assert dict(os.environ) == before, set(os.environ.items()) ^ set(before.items())\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280)
    assert finished.returncode == 0, finished.stderr


def test_deepspeed_is_imported_without_mlflow():
    code = (
        "import sys\nfrom cytoray.training.engine import import_deepspeed\n"
        "import_deepspeed().initialize\nassert 'mlflow' not in sys.modules\nimport mlflow.tracking\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280)
    assert finished.returncode == 0, finished.stderr
