"""Variability of genes over cells, standardised by its trend with the mean ("seurat_v3"), and the most variable ones.

Computed as Stuart et al. (2019) define it, since scanpy's function needs scikit-misc, not a dependency. The trend is a
LOESS of degree 2 and span 0.3, evaluated at up to 512 places and interpolated between them.
"""

# C cells, G genes, P places

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

Float64 = npt.NDArray[np.float64]
SPAN = 0.3
PLACES = 256  # by quantile, and as many evenly spread
PLACES_AT_ONCE = 32  # bounds the memory: an array holds this many times 30 % of the genes


def standardised_variances(matrix: sparse.csr_matrix) -> Float64:
    """Return the variance of each gene (G,) of raw counts (C, G), standardised by the trend and clipped.

    Values are clipped at sqrt(C) standard deviations above the mean.
    """
    num_cells = matrix.shape[0]
    columns, values = matrix.indices, matrix.data.astype(np.float64)
    means, variances = _moments(columns, values, matrix.shape)
    varying = variances > 0
    deviations = np.ones_like(means)
    x, y = np.log10(means[varying]), np.log10(variances[varying])
    deviations[varying] = np.sqrt(10 ** smooth(x, y))
    limits = means + deviations * np.sqrt(num_cells)
    clipped = np.minimum(values, limits[columns])
    sums = np.bincount(columns, clipped, minlength=len(means))
    squares = np.bincount(columns, clipped**2, minlength=len(means))
    spread: Float64 = num_cells * means**2 + squares - 2 * means * sums
    standardised: Float64 = np.where(varying, spread / (max(num_cells - 1, 1) * deviations**2), 0.0)
    return standardised


def most_variable(scores: Float64, num_genes: int) -> npt.NDArray[np.int64]:
    """Return the positions of the ``num_genes`` highest scores above 0, ascending; of equal scores the first ones."""
    chosen = np.argsort(-scores, kind="stable")[:num_genes]
    return np.sort(chosen[scores[chosen] > 0]).astype(np.int64)


def _moments(columns: npt.NDArray[Any], values: Float64, shape: tuple[int, int]) -> tuple[Float64, Float64]:
    """Mean and sample variance of each gene (G,), zeros included."""
    means = np.bincount(columns, values, minlength=shape[1]) / shape[0]
    squares = np.bincount(columns, (values - means[columns]) ** 2, minlength=shape[1])
    zeros = shape[0] - np.bincount(columns, minlength=shape[1])
    return means, (squares + zeros * means**2) / max(shape[0] - 1, 1)


def smooth(x: Float64, y: Float64) -> Float64:
    """LOESS of ``y`` over ``x`` (both (G,)): at each place a parabola through the nearest share SPAN of the points."""
    if len(np.unique(x)) < 4:
        return y.copy()  # too few for a trend
    order = np.argsort(x)
    xs, ys = x[order], y[order]
    places = np.unique([*np.quantile(xs, np.linspace(0, 1, PLACES)), *np.linspace(xs[0], xs[-1], PLACES)])
    num_near = min(len(xs), max(4, int(SPAN * len(xs) + 1e-5)))
    fitted = np.concatenate(
        [_parabolas(xs, ys, some, num_near) for some in np.array_split(places, -(-len(places) // PLACES_AT_ONCE))]
    )
    smoothed: Float64 = np.interp(x, places, fitted)
    return smoothed


def _parabolas(xs: Float64, ys: Float64, places_P: Float64, num_near: int) -> Float64:
    """Value at each place of the parabola through the ``num_near`` nearest of the ascending ``xs``, tricube weights."""
    first = _first_of_nearest(xs, places_P, num_near)
    near_xs, near_ys = (np.lib.stride_tricks.sliding_window_view(values, num_near)[first] for values in (xs, ys))
    apart = near_xs - places_P[:, None]
    reach = np.maximum(np.abs(apart[:, [0, -1]]).max(axis=1, keepdims=True), np.finfo(float).tiny)
    apart /= reach  # of the order of 1, so that the normal equations are well conditioned
    distances = np.abs(apart)
    terms = 1 - distances * distances * distances
    terms *= terms * terms  # the weights; then times each power of the distance
    powers, products = [], []
    for _ in range(5):
        powers.append(terms.sum(axis=1))
        products.append(np.einsum("pn,pn->p", terms, near_ys))
        terms *= apart
    moments = np.stack(powers, axis=1)[:, np.add.outer(np.arange(3), np.arange(3))]  # (P, 3, 3)
    inverse = np.linalg.pinv(moments, rcond=1e-12, hermitian=True)
    heights: Float64 = np.einsum("pj,pj->p", inverse[:, 0], np.stack(products[:3], axis=1))
    return heights


def _first_of_nearest(xs: Float64, places_P: Float64, num_near: int) -> npt.NDArray[np.int64]:
    """Start (P,) of the window of the ``num_near`` values nearest to each place."""
    low, high = np.zeros(len(places_P), np.int64), np.full(len(places_P), len(xs) - num_near)
    while (low < high).any():
        middle = (low + high) // 2
        last = np.minimum(middle + num_near, len(xs) - 1)
        is_right = (low < high) & (places_P - xs[middle] > xs[last] - places_P)
        low, high = np.where(is_right, middle + 1, low), np.where(is_right, high, np.minimum(middle, high))
    return low
