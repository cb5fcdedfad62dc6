"""Proteins that no training saw, predicted from the expression of the gene that codes for them."""

# C cells, P proteins

from __future__ import annotations

from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from cytoray.evaluation.adaptation import nearest_neighbours
from cytoray.evaluation.voters import fit_components
from cytoray.tasks.multiomic.coding_genes import coding_gene
from cytoray.tasks.multiomic.paired import Float64, PairedCells
from cytoray.tasks.multiomic.scoring import mean_correlation

NUM_NEIGHBOURS, NUM_COMPONENTS, MOST_CELLS = 30, 30, 5000
FEWEST_CELLS, FEWEST_PROTEINS = 60, 3


def judge_unseen_proteins(cells: PairedCells, *, seed: int = 0) -> dict[str, Any]:
    """Return how well each protein is told by its gene when its own values are never used.

    ``smoothed`` averages the gene over the neighbours by all RNA. ``product`` weighs both, and the cell's depth, by a
    regression learned on the other proteins. Empty if too few proteins have a known gene among the columns.
    """
    columns = {gene.upper(): place for place, gene in reversed(list(enumerate(cells.genes)))}
    pairs = [
        (place, name, gene)
        for place, name in enumerate(cells.proteins.names)
        if (gene := coding_gene(name)) is not None and gene in columns
    ]
    if len(pairs) < FEWEST_PROTEINS or cells.num_cells < FEWEST_CELLS:
        return {}
    rows = np.sort(np.random.default_rng(seed).permutation(cells.num_cells)[:MOST_CELLS])
    cells = cells.take(rows)
    with threadpool_limits(1):
        components = fit_components(cells.rna, num_components=NUM_COMPONENTS, seed=seed)
        near, _ = nearest_neighbours(components.transform(cells.rna), num=NUM_NEIGHBOURS)
    plain = cells.rna.expression[:, [columns[gene] for _, _, gene in pairs]].toarray().astype(np.float64)
    smoothed = np.stack([(column + column[near].sum(axis=1)) / (1 + near.shape[1]) for column in plain.T], axis=1)
    depth = np.log1p(np.asarray(cells.rna.values.sum(axis=1), np.float64)).ravel()
    targets = cells.proteins.targets[:, [place for place, _, _ in pairs]]
    found = _learned_elsewhere(plain, smoothed, depth, targets)
    table = []
    for number, (_, name, gene) in enumerate(pairs):
        truth = targets[:, [number]]
        row = {"protein": name, "gene": gene}
        for method, values in (("expression", plain), ("smoothed", smoothed), ("product", found)):
            row[method] = mean_correlation(truth, values[:, [number]])
        table.append(row)
    mean = {
        method: float(np.nanmean([row[method] for row in table])) for method in ("expression", "smoothed", "product")
    }
    return {"proteins": table, "mean": mean}


def _learned_elsewhere(plain: Float64, smoothed: Float64, depth: Float64, targets: Float64) -> Float64:
    """For each protein a regression on its gene's values that was learned on the other proteins, standardised."""
    inputs = [
        np.column_stack([_scaled(one), _scaled(other), _scaled(depth)])
        for one, other in zip(plain.T, smoothed.T, strict=True)
    ]
    wanted = [_scaled(column) for column in targets.T]
    found = np.empty_like(targets)
    for number in range(len(inputs)):
        others = [place for place in range(len(inputs)) if place != number]
        gram = sum(inputs[place].T @ inputs[place] for place in others)
        shared = sum(inputs[place].T @ wanted[place] for place in others)
        weights = np.linalg.solve(gram + np.eye(3) * 1e-3 * len(depth), shared)
        found[:, number] = inputs[number] @ weights
    return found


def _scaled(values: Float64) -> Float64:
    spread = float(values.std())
    scaled: Float64 = (values - values.mean()) / (spread if spread > 0 else 1.0)
    return scaled
