"""Select the genes that vary most between cells; the values that are binned later are unchanged."""

# C cells, V genes up to the highest id, G genes that occur

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from scipy import sparse

from cytoray.errors import ConfigError
from cytoray.evaluation.variable_genes import standardised_variances
from cytoray.tokens.cells import Int32
from cytoray.tokens.keys import Float64
from cytoray.tokens.packed import PackedCells, packed_counts, packed_gene_ids
from cytoray.tokens.preprocessing import log1p, normalise_total

Flavor = Literal["seurat_v3", "seurat", "cell_ranger"]
FLAVORS: tuple[Flavor, ...] = get_args(Flavor)


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
        scores = standardised_variances(matrix)
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
