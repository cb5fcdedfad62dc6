"""A replica of a model without attachments starts without importing what it does not need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cytoray.model.bundle import ModelBundle, save_bundle

HEAVY = ("sklearn", "sympy", "networkx", "scipy.stats", "anndata", "mlflow", "igraph")
CODE = """
import sys
from pathlib import Path

from cytoray.model.bundle import load_bundle
from cytoray.serving.api import build_api
from cytoray.serving.config import Limits
from cytoray.serving.service import CellService
from cytoray.tasks.annotation.product import build_predictor
from cytoray.tasks.endpoint import ServedModel
from cytoray.tasks.messages import ModelInfo

bundle = load_bundle(Path(sys.argv[1]))
served = ServedModel(bundle, build_predictor(bundle, empty_cells="nan"), ModelInfo(name="m", version="1", digest="d"))
build_api(CellService(served, limits=Limits(max_cells=16)))
print([name for name in sys.argv[2:] if name in sys.modules])
"""


def test_a_replica_imports_little(bundle: ModelBundle, tmp_path: Path) -> None:
    save_bundle(bundle, tmp_path / "bundle")
    command = [sys.executable, "-c", CODE, str(tmp_path / "bundle"), *HEAVY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
