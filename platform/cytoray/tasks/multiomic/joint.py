"""A joint embedding of RNA and proteins: weighted nearest neighbours (WNN) beside concatenated components.

These, and a transformer of both modalities if there is one, are judged by what their nearest cells tell about a
protein, or genes, that were kept out of them.
"""

# C cells, G genes, P proteins, N neighbours, D dimensions

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import sparse
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from cytoray.evaluation.adaptation import nearest_neighbours
from cytoray.evaluation.voters import Expression, fit_components
from cytoray.tasks.multiomic.paired import Float32, Float64, Int64, PairedCells
from cytoray.tasks.multiomic.scoring import mean_correlation

NUM_NEIGHBOURS, NUM_CANDIDATES = 20, 200
NUM_COMPONENTS, NUM_GENES = 50, 4000
MOST_CELLS, MOST_PROTEINS, NUM_HIDDEN_GENES = 3000, 8, 100
EMBEDDED_CELLS, EMBEDDED_PROTEINS = 1000, 4  # if a transformer embeds the cells anew for each protein
FEWEST_CELLS, FEWEST_GENES = 60, 20


@dataclass(frozen=True, eq=False)
class WeightedNeighbours:
    """Joint neighbours of C cells, best first, and the share of RNA in each cell's similarity."""

    places: Int64  # (C, N)
    rna_weight: Float64  # (C,)


def unit_rows(values_CD: Float32) -> Float32:
    """Return a block of dimensions with a mean norm of 1, so that blocks count the same side by side."""
    centred = values_CD - values_CD.mean(axis=0)
    norm = float(np.linalg.norm(centred, axis=1).mean())
    found: Float32 = (centred / (norm if norm > 0 else 1.0)).astype(np.float32)
    return found


def concatenate(rna_CD: Float32, proteins_CD: Float32) -> Float32:
    """Return both blocks side by side, each with a mean norm of 1."""
    return np.hstack([unit_rows(rna_CD), unit_rows(proteins_CD)])


def weighted_neighbours(rna_CD: Float32, proteins_CD: Float32, *, num: int = NUM_NEIGHBOURS) -> WeightedNeighbours:
    """Find joint neighbours as Hao et al. (2021) do.

    A cell is predicted in each modality from its neighbours by that modality and by the other one; the affinity to
    the own prediction, relative to that of the other, gives the modality's weight. Joint neighbours are the most
    similar among the nearest of both modalities.
    """
    spaces = [unit_rows(rna_CD), unit_rows(proteins_CD)]
    num = min(num, len(rna_CD) - 1)
    near = [nearest_neighbours(space, num=num) for space in spaces]
    widths = [_bandwidths(distances) for _, distances in near]
    ratios = []
    for own, space in enumerate(spaces):
        nearest = near[own][1][:, 0]
        within = _affinity(space, space[near[own][0]].mean(axis=1), nearest, widths[own])
        across = _affinity(space, space[near[1 - own][0]].mean(axis=1), nearest, widths[own])
        ratios.append(within / (across + 1e-4))
    rna_weight = 1 / (1 + np.exp(np.clip(ratios[1] - ratios[0], -50, 50)))
    candidates = [nearest_neighbours(space, num=min(NUM_CANDIDATES, len(space) - 1))[0] for space in spaces]
    both = np.concatenate(candidates, axis=1)
    places = np.empty((len(both), num), np.int64)
    for cell, row in enumerate(both):
        others = np.unique(row)
        weights = (rna_weight[cell], 1 - rna_weight[cell])
        similarity = np.zeros(len(others))
        for space, (_, distances), width, weight in zip(spaces, near, widths, weights, strict=True):
            apart = np.linalg.norm(space[others] - space[cell], axis=1)
            similarity += weight * np.exp(-np.maximum(apart - distances[cell, 0], 0) / width[cell])
        places[cell] = others[np.argsort(-similarity, kind="stable")[:num]]
    return WeightedNeighbours(places, rna_weight)


def joint_embedding(cells: PairedCells, *, seed: int = 0) -> Float32:
    """Return components of RNA and of the proteins' CLR side by side, (C, D), each block with a mean norm of 1."""
    return concatenate(_rna_components(cells.rna, seed), _protein_components(cells.proteins.targets))


def judge_joint(
    cells: PairedCells, *, embed: Callable[[PairedCells], Float32] | None = None, seed: int = 0
) -> dict[str, Any]:
    """Judge how well neighbours in each space predict a protein, or genes, kept out of it; empty for too few cells.

    ``embed`` is a transformer's joint embedding (C, D) of cells, a further space.
    """
    if cells.num_cells < FEWEST_CELLS or len(cells.proteins.names) < 3:
        return {}
    rng = np.random.default_rng(seed)
    most_cells, most_proteins = (MOST_CELLS, MOST_PROTEINS) if embed is None else (EMBEDDED_CELLS, EMBEDDED_PROTEINS)
    cells = cells.take(np.sort(rng.permutation(cells.num_cells)[:most_cells]))
    with threadpool_limits(1):
        targets = cells.proteins.targets
        hidden_genes = _hidden_genes(cells.rna, rng)
        if not len(hidden_genes):
            return {}
        shown = _without_genes(cells, hidden_genes)
        rna = _rna_components(shown.rna, seed)
        genes = cells.rna.expression[:, hidden_genes].toarray().astype(np.float64)
        chosen = np.sort(rng.permutation(targets.shape[1])[:most_proteins])
        scores: dict[str, list[float]] = {}
        for protein in chosen:
            # Log-ratios of all proteins add up to 0: those of the others must be taken among themselves.
            shown_targets = np.delete(targets, protein, axis=1)
            spaces = _neighbours_of(rna, _protein_components(shown_targets - shown_targets.mean(axis=1, keepdims=True)))
            if embed is not None:
                others = [place for place in range(targets.shape[1]) if place != protein]
                spaces["transformer"] = _nearest(embed(replace(shown, proteins=shown.proteins.select(others))))
            for name, places in spaces.items():
                value = mean_correlation(targets[:, [protein]], targets[places][:, :, protein].mean(axis=1)[:, None])
                scores.setdefault(name, []).append(value)
        spaces = _neighbours_of(rna, _protein_components(targets))
        if embed is not None:
            spaces["transformer"] = _nearest(embed(shown))
        on_genes = {name: mean_correlation(genes, _mean_over(genes, places)) for name, places in spaces.items()}
    rows = [
        {"space": name, "proteins": float(np.nanmean(values)), "genes": on_genes[name]}
        for name, values in scores.items()
    ]
    return {"spaces": rows, "num_proteins": len(chosen), "num_genes": len(hidden_genes)}


def _without_genes(cells: PairedCells, hidden: Int64) -> PairedCells:
    """The cells without some genes."""
    kept = np.setdiff1d(np.arange(cells.rna.values.shape[1]), hidden)
    rna = Expression(cells.rna.values[:, kept], cells.rna.log_normalised)
    return replace(cells, rna=rna, genes=tuple(cells.genes[gene] for gene in kept))


def _nearest(space: Float32) -> Int64:
    """The nearest neighbours of all cells."""
    return nearest_neighbours(unit_rows(space), num=NUM_NEIGHBOURS)[0]


def _neighbours_of(rna: Float32, proteins: Float32) -> dict[str, Int64]:
    """The neighbours of all cells in each space, by its name."""
    return {
        "RNA": _nearest(rna),
        "proteins": _nearest(proteins),
        "concatenation": nearest_neighbours(concatenate(rna, proteins), num=NUM_NEIGHBOURS)[0],
        "WNN": weighted_neighbours(rna, proteins).places,
    }


def _rna_components(rna: Expression, seed: int) -> Float32:
    features = fit_components(rna, num_components=NUM_COMPONENTS, num_genes=NUM_GENES, seed=seed)
    return features.transform(rna)


def _protein_components(targets_CP: Float64) -> Float32:
    """Components of proteins: all of them, as a rotation of standardised values, at most 50."""
    centred = targets_CP - targets_CP.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    found: Float32 = (centred @ axes[:NUM_COMPONENTS].T).astype(np.float32)
    return found


def _hidden_genes(rna: Expression, rng: np.random.Generator) -> Int64:
    """Genes to be kept out: at most a tenth of those expressed in a twentieth of the cells, none if these are few."""
    shares = np.asarray((rna.values != 0).mean(axis=0)).ravel()
    known = np.flatnonzero(shares >= 0.05)
    if len(known) < FEWEST_GENES:
        return known[:0]
    return np.sort(rng.permutation(known)[: min(NUM_HIDDEN_GENES, max(1, len(known) // 10))])


def _mean_over(values_CG: Float64, places_CN: Int64) -> Float64:
    """Mean of each cell's neighbours."""
    num_cells, num = places_CN.shape
    weights = sparse.csr_matrix(
        (np.full(places_CN.size, 1 / num), places_CN.ravel(), np.arange(0, places_CN.size + 1, num)),
        (num_cells, len(values_CG)),
    )
    found: Float64 = weights @ values_CG
    return found


def _bandwidths(distances_CN: Float32) -> Float64:
    """Distance from the nearest to the last neighbour of each cell, which sets how fast its affinity falls."""
    reach = (distances_CN[:, -1] - distances_CN[:, 0]).astype(np.float64)
    return np.maximum(reach, max(float(np.median(reach)) * 0.1, 1e-6))


def _affinity(space: Float32, predicted: Float32, nearest: Float32, width: Float64) -> Float64:
    apart = np.linalg.norm(space - predicted, axis=1)
    found: Float64 = np.exp(-np.maximum(apart - nearest, 0) / width)
    return found
