"""Serve the explorer with a model that carries everything, or a given bundle, until stdin closes; prints the URL.

``python tests/helpers/explorer_server.py FOLDER [BUNDLE] [DEMO …]``: FOLDER gets the planted model, cells and sessions.
"""

from __future__ import annotations

import socket
import sys
import threading
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import planted_network
import planted_reference
import planted_screen
import torch
import uvicorn
from scipy import sparse

import cytoray
from cytoray.model.bundle import ModelBundle, load_bundle
from cytoray.serving.api import build_api
from cytoray.serving.config import Limits
from cytoray.serving.explorer.config import DemoConfig, ExplorerConfig
from cytoray.serving.service import CellService
from cytoray.tasks.annotation.product import build_predictor
from cytoray.tasks.attaching import attach
from cytoray.tasks.endpoint import ServedModel
from cytoray.tasks.mapping.reference import save_reference
from cytoray.tasks.messages import ModelInfo
from cytoray.tasks.perturbation import knowledge

GENES = tuple(dict.fromkeys((*planted_reference.GENES, *planted_screen.GENES, *planted_network.GENES)))


def planted_bundle(folder: Path) -> ModelBundle:
    """A model of random weights with a reference, a perturbation model and a network."""
    bundle = planted_reference.build_bundle(labels=planted_reference.TYPES, genes=GENES)
    with torch.no_grad():
        for parameter in bundle.model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    save_reference(planted_reference.build_planted(bundle), str(folder / "reference"))
    knowledge.SHIPPED = ()
    screen = planted_screen.screen(15)
    cytoray.PerturbationModel.fit(screen, gene_sets=[str(planted_screen.write_sets(folder))]).save(folder / "effects")
    planted_network.build(100).write_h5ad(folder / "network.h5ad")
    cells, out = str(folder / "network.h5ad"), str(folder / "network")
    cytoray.infer_networks(cells, out=out, num_trees=5, pool_size=1, gene_sets="none")
    places = {"reference": "reference", "perturbations": "effects", "networks": "network"}
    attach(bundle, {name: str(folder / place) for name, place in places.items()}, out=folder / "bundle")
    return load_bundle(folder / "bundle")


def planted_cells(num_cells: int, path: Path) -> None:
    """Cells of three types over the planted genes, with a donor and an age."""
    counts, types = planted_reference.draw_counts(num_cells, seed=3)
    rng = np.random.default_rng(4)
    others = sparse.csr_matrix(rng.poisson(0.4, (num_cells, len(GENES) - counts.shape[1])).astype(np.float32))
    obs = pd.DataFrame(index=[f"cell{row}" for row in range(num_cells)])
    obs["author"] = pd.Categorical(types)
    obs["donor"] = rng.choice(["a", "b", "c"], num_cells)
    obs["age"] = rng.normal(50, 9, num_cells)
    matrix = sparse.hstack([counts, others], format="csr")
    anndata.AnnData(matrix, obs=obs, var=pd.DataFrame(index=list(GENES))).write_h5ad(path)


def main(folder: Path, bundle_uri: str | None, demos: list[str]) -> None:
    if bundle_uri is None:
        bundle = planted_bundle(folder)
        planted_cells(300, folder / "cells.h5ad")
        demos = [str(folder / "cells.h5ad")]
    else:
        bundle = load_bundle(Path(bundle_uri))
    info = ModelInfo(name="explorer-demo", version="3", digest=bundle.digest or "0" * 64)
    service = CellService(ServedModel(bundle, build_predictor(bundle, empty_cells="nan"), info), limits=Limits())
    config = ExplorerConfig(
        folder=str(folder / "sessions"),
        demos=tuple(DemoConfig(name=Path(demo).name, uri=demo, about="Cells of this test.") for demo in demos)
        or ExplorerConfig().demos,
    )
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(build_api(service, explorer=config), log_config=None))
    threading.Thread(target=lambda: (sys.stdin.read(), setattr(server, "should_exit", True)), daemon=True).start()
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    server.run(sockets=[listener])


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None, sys.argv[3:])
