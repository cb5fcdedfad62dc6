from __future__ import annotations

import importlib.util
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cytoray.corpus.config import SourceConfig
from cytoray.corpus.readers.base import CellReader
from cytoray.corpus.readers.opening import open_source
from cytoray.corpus.readers.values import judge_values
from cytoray.errors import CorpusError

FORMATS: dict[str, Callable[[np.ndarray], object]] = {
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "dense": np.asarray,
}


def open_reader(path: str | Path, **options: object) -> CellReader:
    return open_source(SourceConfig(uri=str(path), **options))


def read_everything(path: Path, label_key: str = "cell_type") -> np.ndarray:
    """All that an ingest asks of a file."""
    with open_reader(path) as reader:
        description = reader.describe()
        assert len(reader.gene_names) == description.num_genes
        assert len(reader.labels(label_key)) == description.num_cells
        return reader.read_rows(0, description.num_cells).toarray()


# --- what is read


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("matrix", ["X", "raw.X", "layers/kept"])
def test_row_ranges_are_those_of_the_matrix(layout: str, matrix: str, plant, build_adata, save, tmp_path):
    planted, other = plant(1), plant(2)
    stored = FORMATS[layout](planted.counts_CG)
    adata = build_adata(planted, matrix=stored if matrix == "X" else other.counts_CG)
    if matrix == "raw.X":
        adata = build_adata(planted, matrix=stored)
        adata.raw = adata
        adata = adata[:, :50].copy()
    elif matrix != "X":
        adata.layers["kept"] = stored
    with open_reader(save(adata, tmp_path / "a.h5ad"), matrix=matrix) as reader:
        description = reader.describe()
        assert (description.matrix, description.num_cells, description.num_genes) == (matrix, 300, 300)
        assert reader.gene_names == planted.genes
        expected = sparse.csr_matrix(planted.counts_CG)
        for start, stop in ((0, 300), (0, 1), (17, 211), (299, 300), (5, 5)):
            rows = reader.read_rows(start, stop)
            assert (rows.dtype, rows.format, rows.shape) == (np.float32, "csr", (stop - start, 300))
            assert rows.has_canonical_format
            assert (rows != expected[start:stop]).nnz == 0


def test_numbers_of_any_type_are_read_as_they_are(plant, build_adata, save, tmp_path):
    planted = plant(3)
    for kind in ("int32", "int64", "uint16", "float64", "bool"):
        values = planted.counts_CG.astype(kind)
        for layout in (sparse.csr_matrix, sparse.csc_matrix, np.asarray):
            path = save(build_adata(planted, matrix=layout(values)), tmp_path / f"{kind}-{layout.__name__}.h5ad")
            read = read_everything(path)
            assert np.array_equal(read, values)
            assert read.dtype == (np.uint8 if kind == "bool" else kind)


def test_stored_zeros_and_doubled_entries_are_no_trouble(plant, build_adata, save, tmp_path):
    planted = plant(4)
    matrix = sparse.csr_matrix(planted.log_normalised())
    sprinkled = sparse.csr_matrix(planted.log_normalised() + 1)
    sprinkled.data -= 1  # the same matrix, all of its zeros stored
    assert sprinkled.nnz == 300 * 300
    path = save(build_adata(planted, matrix=sprinkled), tmp_path / "zeros.h5ad")
    with open_reader(path) as reader:
        assert reader.value_kind == "recoverable"
        assert reader.read_rows(0, 300).nnz == matrix.nnz
    with h5py.File(save(build_adata(planted), tmp_path / "twice.h5ad"), "a") as file:
        group = file["X"]
        halves = {"data": np.repeat(group["data"][:], 2), "indices": np.repeat(group["indices"][:], 2)}
        indptr = group["indptr"][:] * 2
        for name, values in {**halves, "indptr": indptr}.items():
            del group[name]
            group[name] = values
    with open_reader(tmp_path / "twice.h5ad") as reader:
        rows = reader.read_rows(40, 60)
        assert np.array_equal(rows.toarray(), 2 * planted.counts_CG[40:60])
        assert rows.nnz == np.count_nonzero(planted.counts_CG[40:60])


def test_counts_in_a_layer_are_preferred_to_log_normalised_values(plant, build_adata, save, tmp_path):
    planted = plant(5)
    adata = build_adata(planted, matrix=sparse.csr_matrix(planted.log_normalised()))
    adata.layers["smoothed"] = np.random.default_rng(0).gamma(2, 1, (300, 300))
    adata.layers["raw_counts"] = sparse.csc_matrix(planted.counts_CG)  # column-compressed, beside a CSR X
    path = save(adata, tmp_path / "layers.h5ad")
    with open_reader(path) as reader:
        assert (reader.matrix, reader.value_kind) == ("layers/raw_counts", "counts")
        assert np.array_equal(reader.read_rows(10, 20).toarray(), planted.counts_CG[10:20])
    with open_reader(path, matrix="X") as reader:
        assert (reader.matrix, reader.value_kind) == ("X", "recoverable")
        assert np.array_equal(reader.read_rows(10, 20).toarray(), planted.log_normalised()[10:20])


def test_preference_goes_counts_recoverable_expression_negative(plant, build_adata, save, tmp_path):
    planted = plant(6)
    normal = planted.log_normalised()
    kinds = {
        "counts": planted.counts_CG,
        "recoverable": normal,
        "expression": normal * np.random.default_rng(1).uniform(0.5, 2, 300),
        "negative": normal - normal.mean(axis=0),
    }
    names = list(kinds)
    for best in range(4):
        adata = build_adata(planted, matrix=kinds["negative"])
        for name in reversed(names[best:]):
            adata.layers[name] = kinds[name]
        with open_reader(save(adata, tmp_path / f"{best}.h5ad")) as reader:
            assert reader.value_kind == names[best]
            assert reader.matrix == ("X" if names[best] == "negative" else f"layers/{names[best]}")


def test_a_file_without_x_is_read_from_its_layer(plant, build_adata, save, tmp_path):
    planted = plant(7)
    adata = anndata.AnnData(obs=planted.frame(), var=pd.DataFrame(index=planted.genes))
    adata.layers["counts"] = sparse.csr_matrix(planted.counts_CG)
    assert np.array_equal(read_everything(Path(save(adata, tmp_path / "a.h5ad"))), planted.counts_CG)


def test_scanpys_file_of_the_old_encoding():
    """Its X is scaled, its raw.X log-normalised and rounded, its tables are compound arrays with codes."""
    package = importlib.util.find_spec("scanpy")
    path = Path(package.origin).parent / "datasets" / "10x_pbmc68k_reduced.h5ad"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = anndata.read_h5ad(path)
    with open_reader(path) as reader:
        description = reader.describe()
        assert (description.matrix, description.value_kind) == ("raw.X", "recoverable")
        assert (description.num_cells, description.num_genes) == (700, 765)
        assert reader.gene_names == list(expected.raw.var_names)
        assert list(reader.obs.index) == list(expected.obs_names)
        assert reader.labels("bulk_labels") == list(expected.obs["bulk_labels"])
        assert np.array_equal(reader.obs["n_genes"], expected.obs["n_genes"])
        assert (reader.read_rows(100, 650) != expected.raw.X[100:650]).nnz == 0
    with open_reader(path, matrix="X") as reader:
        assert reader.value_kind == "negative"
        assert np.array_equal(reader.read_rows(3, 9).toarray(), expected.X[3:9])


# --- kinds of values


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([[0, 1, 250], [3, 0, 1e6]], "counts"),
        ([[0, 1.0004, 250], [3, 0, 7]], "near_counts"),  # went through a float16 or a division
        ([[0, 0, 0], [0, 0, 0]], "counts"),
        ([[0.5, 1.25, 7.3], [0.11, 2.7, 3.14]], "expression"),
        ([[0, 1, 2], [-0.5, 1, 2]], "negative"),
        ([[0, np.nan, np.inf], [1, 2, 3]], "counts"),  # refused later, with the name of the cell
        ([[55.5, 120.75, 33.25], [80.1, 44.2, 90.3]], "expression"),
    ],
)
def test_kinds_of_values(values: list[list[float]], kind: str):
    assert judge_values(sparse.csr_matrix(np.array(values, np.float32))) == kind


def test_one_bad_cell_in_twenty_is_still_recoverable(plant):
    values = plant(8).log_normalised()[:100]
    for bad, kind in ((5, "recoverable"), (6, "expression")):
        spoilt = values.copy()
        spoilt[:bad] *= np.random.default_rng(0).uniform(0.8, 1.2, (bad, 300)).astype(np.float32)
        assert judge_values(sparse.csr_matrix(spoilt)) == kind


def test_values_are_judged_from_the_whole_length_of_the_file(plant, build_adata, save, tmp_path):
    planted = plant(9, num_cells=2000)
    for row in (0, 31, 1950, 1999):
        values = planted.counts_CG.copy()
        values[max(0, row - 30) : row + 30] *= 0.37
        path = save(build_adata(planted, matrix=sparse.csr_matrix(values)), tmp_path / f"{row}.h5ad")
        with open_reader(path) as reader:
            assert reader.value_kind == "expression"


def test_a_stray_value_among_counts_is_left_to_the_rules(plant, build_adata, save, tmp_path):
    planted = plant(9, num_cells=2000)
    for stray in (0.5, -1.0):
        values = planted.counts_CG.copy()
        values[1950, 3] = stray
        with open_reader(save(build_adata(planted, matrix=sparse.csr_matrix(values)), tmp_path / "a.h5ad")) as reader:
            assert reader.value_kind == "counts"


# --- columns


def test_labels_are_text_and_missing_ones_none(plant, build_adata, save, tmp_path):
    adata = build_adata(plant(0))
    types = adata.obs["cell_type"].copy()
    types.iloc[[0, 7]] = None
    numbers = np.arange(300.0)
    numbers[3] = np.nan
    adata.obs["cell_type"], adata.obs["number"], adata.obs["code"] = types, numbers, np.arange(300)
    adata.obs["nullable"] = pd.array([None, 5, *[1] * 298], dtype="Int64")
    with open_reader(save(adata, tmp_path / "a.h5ad")) as reader:
        labels = reader.labels("cell_type")
        assert labels == [None if value is None else value for value in types.astype(object).where(types.notna(), None)]
        assert [row for row, label in enumerate(labels) if label is None] == [0, 7]
        assert reader.labels("number")[2:5] == ["2", None, "4"]
        assert reader.labels("code")[:2] == ["0", "1"]
        assert reader.labels("nullable")[:3] == [None, "5", "1"]


def test_gene_names_and_ensembl_ids_come_from_the_columns_named(plant, build_adata, save, tmp_path):
    planted = plant(0)
    adata = build_adata(planted, var_names=[f"row{i}" for i in range(300)])
    adata.var["symbol"] = planted.genes
    adata.var["ensembl"] = [None, *(f"ENSG{i:011d}" for i in range(1, 300))]
    path = save(adata, tmp_path / "a.h5ad")
    with open_reader(path) as reader:
        assert reader.gene_names == planted.genes  # found by their content
        assert reader.gene_column == "symbol"
        assert reader.ensembl_ids == ["", *(f"ENSG{i:011d}" for i in range(1, 300))]  # found by its name and content
    with open_reader(path, gene_column="symbol", ensembl_column="ensembl") as reader:
        assert reader.gene_names == planted.genes
        assert reader.ensembl_ids == ["", *(f"ENSG{i:011d}" for i in range(1, 300))]
    for option in ("gene_column", "ensembl_column"):
        with open_reader(path, **{option: "symbols"}) as reader, pytest.raises(CorpusError) as caught:
            _ = reader.gene_names, reader.ensembl_ids
        assert "'symbols'" in str(caught.value)
        assert "symbol, ensembl" in caught.value.remedy


def test_raw_has_gene_names_of_its_own(plant, build_adata, save, tmp_path):
    planted = plant(0)
    adata = build_adata(planted)
    adata.raw = adata
    adata = adata[:, ::-1][:, :20].copy()
    with open_reader(save(adata, tmp_path / "a.h5ad"), matrix="raw.X") as reader:
        assert reader.gene_names == planted.genes
    with open_reader(tmp_path / "a.h5ad", matrix="X") as reader:
        assert reader.gene_names == planted.genes[::-1][:20]


# --- and left


def test_a_closed_reader_leaves_no_file_open(planted_file, tmp_path):
    path, _ = planted_file
    copy = shutil.copy(path, tmp_path / "copy.h5ad")
    with open_reader(copy) as reader:
        reader.describe()
    with h5py.File(copy, "a") as file:  # HDF5 refuses this while the file is open for reading
        del file["X"]
