"""Select the genes that vary most between cells; the values that are binned later are unchanged.

``seurat_v3`` is computed here, as Stuart et al. (2019) define it, since scanpy's needs scikit-misc, not a dependency.
Its trend is a LOESS of degree 2 and span 0.3, evaluated at up to 512 places and interpolated between them.
"""

# C cells, V genes up to the highest id, G genes that occur, P places

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cytoray.errors import ConfigError
from cytoray.tokens.cells import Int32
from cytoray.tokens.keys import Float64
from cytoray.tokens.packed import PackedCells, packed_counts, packed_gene_ids
from cytoray.tokens.preprocessing import log1p, normalise_total

Flavor = Literal["seurat_v3", "seurat", "cell_ranger"]
FLAVORS: tuple[Flavor, ...] = get_args(Flavor)
SPAN = 0.3
PLACES = 256  # by quantile, and as many evenly spread


def select_genes(cells: PackedCells, num_genes: int, flavor: Flavor, *, counts: bool) -> Int32:
    """Ids of the ``num_genes`` most variable genes, ascending; all that occur if those are fewer.

    ``seurat_v3`` works on raw counts; the others on counts that are normalised and logged first, or on expression
    (``counts`` False) as it is. Raises ConfigError for ``seurat_v3`` without counts.
    """
    if flavor == "seurat_v3" and not counts:
        raise ConfigError(
            "flavor: seurat_v3 works on raw counts, but these values are not counts.",
            remedy="Choose flavor='seurat' or 'cell_ranger', or give raw counts.",
        )
    matrix, ids = _occurring(cells)
    if len(ids) <= num_genes:
        return ids
    if flavor == "seurat_v3":
        scores = _standardised_variances(matrix)
    else:
        scores = _dispersions(log1p(normalise_total(matrix)) if counts else matrix, num_genes, flavor)
    return np.sort(ids[np.argsort(-scores, kind="stable")[:num_genes]])


def _occurring(cells: PackedCells) -> tuple[sparse.csr_matrix, Int32]:
    """The cells as a matrix (C, G) over the genes that occur, and the ids of these."""
    ids, columns = np.unique(packed_gene_ids(cells), return_inverse=True)
    shape = (cells.num_cells, len(ids))
    return sparse.csr_matrix((packed_counts(cells).astype(np.float32), columns, cells.indptr), shape=shape), ids


def _dispersions(matrix: sparse.csr_matrix, num_genes: int, flavor: Flavor) -> Float64:
    """scanpy's normalised dispersion of each gene (G,); its own choice would be more genes than asked for at a tie."""
    import anndata
    import scanpy

    copy = anndata.AnnData(matrix)
    found = scanpy.pp.highly_variable_genes(copy, n_top_genes=num_genes, flavor=flavor, inplace=False)
    scores: Float64 = found["dispersions_norm"].fillna(-np.inf).to_numpy(np.float64)
    return scores


def _standardised_variances(matrix: sparse.csr_matrix) -> Float64:
    """Variance of each gene (G,), its counts standardised by the trend and clipped at sqrt(C) deviations."""
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
    fitted = np.array([_parabola(xs, ys, place, num_near) for place in places])
    smoothed: Float64 = np.interp(x, places, fitted)
    return smoothed


def _parabola(xs: Float64, ys: Float64, place: float, num_near: int) -> float:
    """Value at ``place`` of the parabola through the ``num_near`` nearest of the ascending ``xs``, tricube weights."""
    left = _first_of_nearest(xs, place, num_near)
    apart = xs[left : left + num_near] - place
    reach = max(float(np.abs(apart).max()), np.finfo(float).tiny)
    weights = np.sqrt(np.clip(1 - (np.abs(apart) / reach) ** 3, 0, None) ** 3)
    terms_N3 = np.stack([np.ones_like(apart), apart, apart**2], axis=1) * weights[:, None]
    solution = np.linalg.lstsq(terms_N3, ys[left : left + num_near] * weights, rcond=None)[0]
    return float(solution[0])


def _first_of_nearest(xs: Float64, place: float, num_near: int) -> int:
    """Start of the window of the ``num_near`` values nearest to ``place``."""
    low, high = 0, len(xs) - num_near
    while low < high:
        middle = (low + high) // 2
        if place - xs[middle] > xs[middle + num_near] - place:
            low = middle + 1
        else:
            high = middle
    return low
