"""Synthetic cells in memory, packed as a corpus keeps them."""

from __future__ import annotations

import anndata
import numpy as np

from benchmarks import common
from cytoray.tokens.packed import PackedCells, pack_rows
from cytoray.tokens.vocabulary import GeneVocabulary


def load_packed_cells(num_cells: int) -> PackedCells:
    """``num_cells`` cells of 1,500 genes on average over the default vocabulary."""
    (path,) = common.synthetic_files(num_cells, num_files=1, compression="none")
    adata = anndata.read_h5ad(path)
    mapping = GeneVocabulary.load_default().map_genes(adata.var_names.tolist())
    return pack_rows(adata.X, mapping.ids, np.arange(num_cells, dtype=np.uint64), counts=True)
