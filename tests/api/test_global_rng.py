"""With ties="global_rng" the bins are those that the original draws: NumPy's global generator, columns as they come."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cytoray.api import scGPT, scGPTConfig
from cytoray.errors import ModelError
from cytoray.tokens.packed import packed_gene_ids

Face = scGPT


def _original_bins(row: np.ndarray) -> np.ndarray:
    """The original's binning of one cell's values above zero, written out."""
    edges = np.quantile(row.astype(np.float64), np.linspace(0, 1, 50))
    upto, below = np.digitize(row, edges), np.digitize(row, edges, right=True)
    return np.ceil(np.random.rand(len(row)) * (below - upto) + upto)  # noqa: NPY002


def test_bins_are_drawn_in_the_order_of_rows_and_columns(bundle_folder: Path, make_adata) -> None:
    data = make_adata(12)
    data = data[:, np.random.default_rng(3).permutation(data.n_vars)].copy()
    data.var_names = ["NOT-A-GENE", *data.var_names[1:]]
    face = scGPT(scGPTConfig(model=bundle_folder, ties="global_rng"))
    np.random.seed(11)  # noqa: NPY002
    dataset = face.process_data(data)
    np.random.seed(11)  # noqa: NPY002
    matrix, index = data.X.toarray(), face.bundle.vocabulary.index
    ids, bins = packed_gene_ids(dataset.cells), dataset.cells.bins
    assert bins is not None
    for row, (start, stop) in enumerate(zip(dataset.cells.indptr[:-1], dataset.cells.indptr[1:], strict=True)):
        columns = [column for column in np.flatnonzero(matrix[row]) if column > 0]
        drawn = _original_bins(matrix[row, columns])
        want = {index[data.var_names[column]]: drawn[place] for place, column in enumerate(columns)}
        assert dict(zip(ids[start:stop].tolist(), bins[start:stop].tolist(), strict=True)) == want
    first = face.get_embeddings(dataset)
    assert np.array_equal(first, face.get_embeddings(dataset))


def test_what_changes_values_before_binning_is_refused(bundle_folder: Path, make_adata) -> None:
    face = scGPT(scGPTConfig(model=bundle_folder, ties="global_rng"))
    data = make_adata()
    with pytest.raises(ModelError, match="genes are selected first"):
        face.process_data(data, fine_tuning=True, n_top_genes=5)
    data.var_names = [data.var_names[1], *data.var_names[1:]]
    with pytest.raises(ModelError, match="several columns map to gene"):
        face.process_data(data)
