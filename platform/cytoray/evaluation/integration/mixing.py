"""How batches and labels mix around each cell: LISI, kBET, graph connectivity; and batch variance in all (PCR)."""

# C cells, D dimensions, K neighbours (the cell itself is the first), L labels, B batches

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import eigsh
from scipy.special import chdtrc

from cytoray.evaluation.integration.neighbours import Float64, Int64, Neighbours, find_neighbours

SMALLEST_KBET_LABEL = 10  # cells
_KBET_NEIGHBOURS = (10, 70)  # at least, at most
_KBET_ALPHA = 0.05
_KBET_USABLE = 0.75  # share of a label's cells in components large enough, below which its score is 0
_DIFFUSION_COMPONENTS = 100
_SEARCH_STEPS, _SEARCH_TOLERANCE = 50, 1e-5  # of LISI's kernel


def median_lisi(neighbours: Neighbours, groups: Int64) -> float:
    """Return the median over cells of LISI: how many groups, effectively, a cell has around it (1 ... G).

    Neighbours are weighted by a Gaussian kernel of perplexity floor(K / 3), as Korsunsky et al. (2019) do.
    """
    weights = _perplexity_weights(neighbours.distances[:, 1:], neighbours.indices.shape[1] // 3)
    around = groups[neighbours.indices[:, 1:]]
    simpson = np.zeros(len(weights))
    for group in range(int(groups.max()) + 1):
        simpson += np.where(around == group, weights, 0).sum(axis=1) ** 2
    return float(np.median(1 / simpson))


def graph_connectivity(neighbours: Neighbours, labels: Int64) -> Float64:
    """Return for each label (L,) the share of its cells in the largest strong component of their directed graph."""
    graph = neighbours.graph()
    found = np.empty(int(labels.max()) + 1)
    for label in range(len(found)):
        cells = np.flatnonzero(labels == label)
        _, components = connected_components(graph[cells][:, cells], connection="strong")
        found[label] = np.bincount(components).max() / len(cells)
    return found


def kbet_per_label(connectivities: sparse.csr_array, labels: Int64, batches: Int64) -> Float64:
    """Return for each label (L,) the share of its cells around which batches have the label's proportions.

    That is a chi-square test (p >= .05) among a cell's k nearest cells of its label by diffusion distance, k being a
    quarter of the mean batch but 10 ... 70 (Büttner et al. 2019; per label as Luecken et al. 2022). NaN for a label of
    one batch or fewer than 10 cells. scib-metrics reduces the diffusion components to the size of the smallest label
    met so far in alphabetical order; here each label has its own number, so that names do not matter.
    """
    found = np.full(int(labels.max()) + 1, np.nan)
    for label in range(len(found)):
        cells = np.flatnonzero(labels == label)
        if len(cells) >= SMALLEST_KBET_LABEL and len(np.unique(batches[cells])) > 1:
            found[label] = _kbet_of_label(connectivities[cells][:, cells], batches[cells])
    return found


def batch_variance(points: npt.NDArray[np.floating], batches: Int64) -> float:
    """Return the share of variance (C, D) that batches explain: principal component regression on all components.

    The sum over components of R² times variance does not depend on the rotation, so no PCA is needed: it is the
    variance between batch means over the variance of all cells. Zero if nothing varies.
    """
    values = np.asarray(points, np.float64)
    values = values - values.mean(axis=0)
    total = float((values**2).sum())
    counts = np.bincount(batches)
    sums = sparse.csr_array((np.ones(len(batches)), (batches, np.arange(len(batches))))) @ values  # (B, D)
    between = float((sums**2 / np.maximum(counts, 1)[:, None]).sum())
    return between / total if total > 0 else 0.0


def pcr_comparison(before: npt.NDArray[np.floating], after: npt.NDArray[np.floating], batches: Int64) -> float:
    """Return the share of batch variance that was removed, 0 if it grew; NaN if there was none before."""
    was, now = batch_variance(before, batches), batch_variance(after, batches)
    return max(0.0, (was - now) / was) if was > 0 else float("nan")


def _perplexity_weights(distances: Float64, perplexity: int) -> Float64:
    """Return weights exp(-beta d), normalised, with each row's beta such that their entropy is log(perplexity)."""
    target = np.log(perplexity)
    low, high, beta = np.full(len(distances), -np.inf), np.full(len(distances), np.inf), np.ones(len(distances))
    shifted = distances - distances[:, :1]  # does not change the normalised weights, and nothing underflows
    for _ in range(_SEARCH_STEPS):
        weights = np.exp(-shifted * beta[:, None])
        totals = weights.sum(axis=1)
        excess = np.log(totals) + beta * (shifted * weights).sum(axis=1) / totals - target
        if (np.abs(excess) < _SEARCH_TOLERANCE).all():
            break
        low, high = np.where(excess > 0, beta, low), np.where(excess > 0, high, beta)
        upward = np.where(np.isinf(high), beta * 2, (beta + high) / 2)
        downward = np.where(np.isinf(low), beta / 2, (beta + low) / 2)
        beta = np.where(np.abs(excess) < _SEARCH_TOLERANCE, beta, np.where(excess > 0, upward, downward))
    weights = np.exp(-shifted * beta[:, None])
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _kbet_of_label(graph: sparse.csr_array, batches: Int64) -> float:
    num_batches = len(np.unique(batches))
    least, most = _KBET_NEIGHBOURS
    num_neighbours = int(np.clip(len(batches) // num_batches // 4, least, most))
    num_components, components = connected_components(graph, connection="strong")
    if num_components == 1:
        return _acceptance(graph, batches, num_neighbours)
    sizes = np.bincount(components)
    usable = np.flatnonzero(sizes[components] >= 3 * num_neighbours)
    if len(usable) < _KBET_USABLE * len(batches):
        return 0.0
    return _acceptance(graph[usable][:, usable], batches[usable], num_neighbours)


def _acceptance(graph: sparse.csr_array, batches: Int64, num_neighbours: int) -> float:
    """Return the share of cells whose neighbours by diffusion distance pass the test; 0 if a single batch is left."""
    _, codes, counts = np.unique(batches, return_inverse=True, return_counts=True)
    if len(counts) == 1:
        return 0.0
    neighbours = find_neighbours(_diffusion_map(graph), num_neighbours=num_neighbours + 1)
    around = codes[neighbours.indices]  # (C, K)
    expected = counts / counts.sum() * around.shape[1]
    observed = np.stack([(around == code).sum(axis=1) for code in range(len(counts))], axis=1)
    statistics = ((observed - expected) ** 2 / expected).sum(axis=1)
    return float(np.mean(chdtrc(len(counts) - 1, statistics) >= _KBET_ALPHA))


def _diffusion_map(graph: sparse.csr_array) -> Float64:
    """Return coordinates (C, components) in which Euclidean distance is diffusion distance over all times."""
    num = min(_DIFFUSION_COMPONENTS, graph.shape[0] - 1)
    start = np.random.default_rng(0).uniform(0.5, 1.5, graph.shape[0])
    values, vectors = eigsh(_symmetric_transitions(graph), k=num, which="LM", v0=start)
    values = values.astype(np.float32).astype(np.float64)  # at single precision the largest value is 1 exactly
    remaining = 1 - values
    scales = np.divide(values, remaining, out=np.ones_like(values), where=remaining != 0)
    return np.asarray(vectors * scales)


def _symmetric_transitions(graph: sparse.csr_array) -> sparse.csr_array:
    """Return the transition matrix with density divided out (Coifman et al. 2005), in its symmetric form."""
    weights = graph.astype(np.float64)
    inverse = sparse.diags_array(1 / weights.sum(axis=0))
    kernel = inverse @ weights @ inverse
    root = sparse.diags_array(1 / np.sqrt(kernel.sum(axis=0)))
    return (root @ kernel @ root).tocsr()
