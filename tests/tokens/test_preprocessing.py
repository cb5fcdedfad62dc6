"""Preprocessing against scanpy, and binned layers against NumPy's quantiles."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
import scanpy as sc
from scipy import sparse

from cytoray.tokens.preprocessing import bin_layer, log1p, normalise_total


def _counts() -> sparse.csr_matrix:
    counts = np.random.default_rng(0).poisson(0.7, (9, 40)).astype(np.float32)
    counts[4] = 0
    return sparse.csr_matrix(counts)


def test_normalising_and_logarithms_are_scanpys_and_leave_their_input_alone() -> None:
    counts = _counts()
    before = counts.copy()
    normed = normalise_total(counts)
    data = anndata.AnnData(counts.copy())
    with pytest.warns(UserWarning, match="zero counts"):
        sc.pp.normalize_total(data, target_sum=1e4)
    np.testing.assert_allclose(normed.toarray(), data.X.toarray(), rtol=1e-6)
    logged = log1p(normed)
    np.testing.assert_allclose(normed.toarray(), data.X.toarray(), rtol=1e-6)
    sc.pp.log1p(data)
    np.testing.assert_allclose(logged.toarray(), data.X.toarray(), rtol=1e-6)
    assert (counts != before).nnz == 0


def test_layer_and_edges_are_those_of_the_quantiles() -> None:
    values = sparse.random(7, 60, density=0.6, format="csr", random_state=np.random.default_rng(1))
    values.data += 0.1
    bins, edges = bin_layer(values, n_bins=11)
    dense, got = values.toarray().astype(np.float32), bins.toarray()
    for row in range(7):
        filled = dense[row] > 0
        want = np.quantile(dense[row][filled].astype(np.float64), np.linspace(0, 1, 10))
        np.testing.assert_allclose(edges[row], [0, *want], rtol=1e-6)
        assert not got[row][~filled].any()
        assert got[row][filled].tolist() == np.digitize(dense[row][filled], edges[row][1:].astype(np.float32)).tolist()


@pytest.mark.parametrize("bad", [-1.0, np.nan])
def test_bad_entries_are_refused_by_row(bad: float) -> None:
    counts = _counts().toarray()
    counts[6, 3] = bad
    with pytest.raises(ValueError, match="row 6"):
        bin_layer(sparse.csr_matrix(counts))
