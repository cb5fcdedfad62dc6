"""Gene programs: groups of genes that vary together or lie together in a model, and the gene sets that they contain."""

# G genes, D dimensions, S gene sets

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import hypergeom

from cytoray.evaluation.integration.clustering import leiden
from cytoray.evaluation.integration.neighbours import find_neighbours
from cytoray.evaluation.networks.cells import SMALLEST, Float64, Int64

NUM_NEIGHBOURS = 15
FEWEST_GENES = 5  # of a program
MOST_DISCOVERIES = 0.05  # false discovery rate of enrichment


@dataclass(frozen=True)
class Enrichment:
    """A gene set of which a program has more genes than by chance."""

    name: str
    num_shared: int
    set_size: int  # of its genes in the background
    p_value: float
    q_value: float  # Benjamini-Hochberg over all sets


def find_programs(points: npt.NDArray[np.floating], *, resolution: float = 1.0, seed: int = 0) -> Int64:
    """Group G genes by Leiden on the cosine of their vectors (G, D); -1 for genes of groups with fewer than five."""
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    units = np.asarray(points / np.maximum(lengths, SMALLEST), np.float64)
    if len(units) <= FEWEST_GENES:
        return np.full(len(units), -1, np.int64)
    near = find_neighbours(units, num_neighbours=min(NUM_NEIGHBOURS + 1, len(units)))
    groups = leiden(near.connectivities(), resolution=resolution, seed=seed)
    sizes = np.bincount(groups)
    order = np.argsort(-sizes, kind="stable")  # the largest program is 0
    number = np.empty_like(order)
    number[order] = np.arange(len(order))
    return np.where(sizes[groups] >= FEWEST_GENES, number[groups], -1).astype(np.int64)


def without_components(points: npt.NDArray[np.floating], *, num: int) -> Float64:
    """Return vectors (G, D) without their mean and first ``num`` principal components.

    In embeddings of genes these are how often and how deeply a gene is measured.
    """
    centred: Float64 = np.asarray(points, np.float64) - points.mean(axis=0, dtype=np.float64)
    if num == 0 or len(centred) <= num:
        return centred
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    left: Float64 = centred - centred @ axes[:num].T @ axes[:num]
    return left


def enrich(program: Sequence[str], sets: Mapping[str, frozenset[str]], background: frozenset[str]) -> list[Enrichment]:
    """Return the gene sets that are enriched in a program among ``background`` genes, the most significant first.

    Hypergeometric test, with a false discovery rate of 5 % over all sets that share a gene with the background.
    """
    genes = frozenset(program) & background
    inside = {name: members & background for name, members in sets.items()}
    inside = {name: members for name, members in inside.items() if members}
    if not inside:
        return []
    names = list(inside)
    shared = np.array([len(genes & inside[name]) for name in names])
    sizes = np.array([len(inside[name]) for name in names])
    p_values = hypergeom.sf(shared - 1, len(background), sizes, len(genes))
    q_values = adjust(p_values)
    order = np.lexsort((names, p_values))
    rows = [(names[k], int(shared[k]), int(sizes[k]), float(p_values[k]), float(q_values[k])) for k in order]
    return [Enrichment(*row) for row in rows if row[-1] <= MOST_DISCOVERIES]


def adjust(p_values: Float64) -> Float64:
    """Return p-values adjusted for the false discovery rate, by Benjamini and Hochberg."""
    num = len(p_values)
    order = np.argsort(p_values, kind="stable")
    scaled = p_values[order] * num / np.arange(1, num + 1)
    found = np.empty(num)
    found[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return found
