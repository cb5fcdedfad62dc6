"""Measure the share of labels kept with another seed, without 1 % of the genes and with thinned counts, by mode.

    python benchmarks/label_stability.py

Fine-tunes a small model with the Python face, on a context shorter than most cells, and annotates held-out cells
longer than that context. Prints one JSON line; without the real cells it logs a warning and measures nothing.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import anndata
import numpy as np
import torch

from benchmarks import common
from benchmarks.real_cells import DATA
from cytoray.api import scGPT, scGPTConfig, scGPTFineTuningModel
from cytoray.model.bundle import ModelBundle
from cytoray.model.predictor import CellPredictor
from cytoray.model.stability import measure_stability
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.inference import InferenceConfig
from cytoray.tokens.packed import unpack

FILE, LABELS, UNUSED = "pbmc3k.h5ad", "cell_type", "unassigned"
CONTEXT = 400
EPOCHS = 1 if common.QUICK else 8
logger = logging.getLogger("benchmarks")


def main() -> None:
    """Train once and compare the modes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="folder of the fine-tuned bundle: made, or used if it is there")
    options = parser.parse_args()
    if not (DATA / FILE).exists():
        logger.warning("No %s in %s: label stability is not measured.", FILE, DATA)
        return
    torch.set_num_threads(1)
    adata = anndata.read_h5ad(DATA / FILE)
    adata = adata[(adata.obs[LABELS].astype(str) != UNUSED).to_numpy()].copy()
    order = np.random.default_rng(0).permutation(adata.n_obs)
    train, test = np.split(order, [int(0.7 * adata.n_obs)])
    bundle = _fine_tuned(adata[train].copy(), options.keep)
    cells, truth = _long_cells(bundle, adata[test].copy())
    emit(bundle, cells, truth)


def emit(bundle: ModelBundle, cells: SparseCells, truth: np.ndarray) -> None:
    """Print the accuracy and stability of each mode."""
    modes = {}
    for mode in ("drawn", "by_gene"):
        asked = replace(bundle, inference=InferenceConfig(mode=mode))
        answer = CellPredictor(asked).predict(cells)
        assert answer.probabilities is not None, "a fine-tuned model has labels"
        labels = np.array(answer.labels)[answer.probabilities.argmax(axis=1)]
        found = {name: stability.as_dict() for name, stability in measure_stability(asked, cells).items()}
        modes[mode] = {"accuracy": float((labels == truth).mean()), **found}
    record = {"name": "label_stability", "file": FILE, "context": CONTEXT, "num_cells": cells.num_cells}
    common.emit({**record, "median_genes": float(np.median(cells.num_genes_per_cell)), "modes": modes})


def _fine_tuned(adata: Any, folder: Path | None) -> ModelBundle:
    """Fine-tune a small model on the labels of ``adata``."""
    if folder is not None and folder.exists():
        return scGPT(scGPTConfig(model=folder)).bundle
    labels = list(adata.obs[LABELS].astype(str))
    shape = {"nlayers": 3, "nheads": 4, "embsize": 64, "d_hid": 128, "max_length": CONTEXT, "dropout": 0.1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # random weights are meant
        model = scGPTFineTuningModel(scGPTConfig(**shape), output_size=len(set(labels)))
    model.train(model.process_data(adata), labels, epochs=EPOCHS, learning_rate=1e-3, batch_size=16)
    if folder is not None:
        model.save(folder)
    return model.bundle


def _long_cells(bundle: ModelBundle, adata: Any) -> tuple[SparseCells, np.ndarray]:
    """The cells that are longer than the context of training, and their labels."""
    cells = unpack(scGPT.from_bundle(bundle).process_data(adata).cells)
    rows = np.flatnonzero(cells.num_genes_per_cell >= CONTEXT)
    return cells.take(rows), adata.obs[LABELS].astype(str).to_numpy()[rows]


if __name__ == "__main__":
    main()
