"""Actors and replicas reserve the GPUs that are asked for, on a Ray that is told of one which is not there."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

from cytoray.model.bundle import save_bundle
from cytoray.model.predictor import CellPredictor
from tests.helpers.processes import started

SCRIPT = Path(__file__).parents[1] / "helpers" / "reserved_gpus.py"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU")
def test_workers_that_reserve_a_gpu_which_pytorch_cannot_use_say_so_and_answer(
    bundle: Any, make_counts: Any, as_cells: Any, tmp_path: Path
) -> None:
    save_bundle(bundle, tmp_path / "bundle")
    counts = make_counts(20)
    var = pd.DataFrame(index=[f"GENE{number:02d}" for number in range(counts.shape[1])])
    obs = pd.DataFrame(index=[f"c{row}" for row in range(20)])
    whole = counts.ceil()
    anndata.AnnData(whole, obs=obs, var=var).write_h5ad(tmp_path / "cells.h5ad")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="cyt", dir="/tmp", ignore_cleanup_errors=True) as short:  # for its sockets
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {"RAY_TMPDIR": short, "RAY_USAGE_STATS_ENABLED": "0"}
        command = [sys.executable, str(SCRIPT), str(tmp_path), str(port)]
        with (tmp_path / "log").open("w") as log, started(command, env=environment, stdout=log, stderr=log) as process:
            assert process.wait(300) == 0, (tmp_path / "log").read_text()[-3000:]
        logs = [path for path in (Path(short) / "ray").glob("session_2*/logs/**/*") if path.is_file()]
        text = "\n".join(path.read_text(errors="replace") for path in logs)
    for reserved in ("1", "0.5"):  # an actor of the offline command, a replica of the service
        assert f"{reserved} GPU(s) are reserved (CUDA_VISIBLE_DEVICES: 0), but PyTorch finds none" in text
    wanted = CellPredictor(bundle).predict(as_cells(whole)).embeddings
    np.testing.assert_allclose(np.load(tmp_path / "offline.npy"), wanted, atol=1e-5)
    np.testing.assert_allclose(np.load(tmp_path / "served.npy"), wanted, atol=1e-5)
