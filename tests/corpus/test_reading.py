from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from cytoray.corpus import reading
from cytoray.corpus.config import SourceConfig
from cytoray.corpus.reading import NamedCells, read_cells, read_labelled_cells
from cytoray.errors import CorpusError


@pytest.fixture
def labelled_file(plant, build_adata, save, tmp_path):
    """300 cells: one without any gene, two without a label."""
    planted = plant(1)
    planted.counts_CG[12] = 0
    adata = build_adata(planted)
    types = adata.obs["cell_type"].copy()
    types.iloc[[0, 250]] = None
    adata.obs["cell_type"] = types
    return SourceConfig(uri=save(adata, tmp_path / "labelled.h5ad")), planted


def totals(named: NamedCells) -> list[float]:
    return np.add.reduceat(named.cells.values, named.cells.indptr[:-1]).tolist()


@pytest.mark.parametrize("rows_at_a_time", [7, 100, 4096])
def test_names_labels_and_cells_stay_together(labelled_file, rows_at_a_time: int, monkeypatch):
    monkeypatch.setattr(reading, "ROWS_AT_A_TIME", rows_at_a_time)
    source, planted = labelled_file
    named = read_labelled_cells(source, "cell_type")
    kept = [row for row in range(300) if row not in (0, 12, 250)]
    assert named.names == tuple(f"cell-{row}" for row in kept)
    assert named.labels == tuple(planted.types[row] for row in kept)
    assert totals(named) == planted.counts_CG[kept].sum(axis=1).tolist()


@pytest.mark.parametrize(("start", "stop"), [(0, None), (0, 300), (290, 9999), (5, 20), (7, 8), (5, 5), (0, 0)])
def test_a_range_of_rows(labelled_file, start: int, stop: int | None):
    source, planted = labelled_file
    named = read_cells(source, start=start, stop=stop)
    kept = [row for row in range(300)[start:stop] if row != 12]
    assert named.names == tuple(f"cell-{row}" for row in kept)
    assert named.labels == (None,) * len(kept)
    assert named.cells.num_cells == len(kept)
    if kept:
        assert totals(named) == planted.counts_CG[kept].sum(axis=1).tolist()


def test_only_one_side_of_the_split_is_read(labelled_file):
    source, _ = labelled_file
    sides = [read_cells(source.model_copy(update={"rows": side})).names for side in ("train", "held_out")]
    assert sorted([*sides[0], *sides[1]]) == sorted(read_cells(source).names)
    assert len(sides[0]) > len(sides[1]) > 0


def test_an_absent_or_empty_label_column_is_refused(plant, build_adata, save, tmp_path):
    adata = build_adata(plant(1))
    adata.obs["nothing"] = np.nan
    source = SourceConfig(uri=save(adata, tmp_path / "a.h5ad"))
    with pytest.raises(CorpusError, match=r"obs has no column 'kind'.*Columns there: cell_type"):
        read_labelled_cells(source, "kind")
    with pytest.raises(CorpusError, match="no cell has a label in 'nothing'"):
        read_labelled_cells(source, "nothing")


def test_a_matrix_shorter_than_its_table_is_refused(plant, build_adata, save, tmp_path):
    import h5py

    path = save(build_adata(plant(1)), tmp_path / "a.h5ad")
    with h5py.File(path, "a") as file:
        del file["X"]
        file["X"] = sparse.random(200, 300, 0.1, random_state=0).toarray().round()
    with pytest.raises(CorpusError, match=r"X has 200 .* obs has 300"):
        read_cells(SourceConfig(uri=path))
