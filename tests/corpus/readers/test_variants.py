"""Variants of the formats that libraries and repositories write: read, or refused with a remedy that fits."""

from __future__ import annotations

import warnings
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
from anndata.io import write_elem
from scipy import sparse

from cytoray.corpus.ingesting.obs_tables import column_types, obs_arrays
from cytoray.errors import CorpusError


def write_mtx(
    folder: Path, planted, *, features: str | None = None, barcodes: str | None = None, dtype=np.int64
) -> Path:
    folder.mkdir(parents=True)
    scipy.io.mmwrite(folder / "matrix.mtx", sparse.coo_matrix(planted.counts_CG.T.astype(dtype)))
    lines = [f"ENSG{place:011d}\t{name}" for place, name in enumerate(planted.genes)]
    (folder / "genes.tsv").write_text("".join(f"{line}\n" for line in lines) if features is None else features)
    names = "".join(f"{name}\n" for name in planted.names)
    (folder / "barcodes.tsv").write_text(names if barcodes is None else barcodes)
    return folder


# --- MatrixMarket


@pytest.mark.parametrize("third", ["", "protein_coding", "gene expression", "GENE EXPRESSION", "GRCh38", None])
def test_the_third_column_of_genes_may_be_anything(third: str | None, plant, open_reader, tmp_path):
    planted = plant(0)
    kinds = ["Gene Expression" if place % 2 else "" for place in range(300)] if third is None else [third] * 300
    lines = [f"ENSG{i:011d}\t{name}\t{kinds[i]}\n" for i, name in enumerate(planted.genes)]
    with open_reader(write_mtx(tmp_path / "in", planted, features="".join(lines))) as reader:
        assert reader.gene_names == planted.genes
        assert np.array_equal(reader.read_rows(0, 300).toarray(), planted.counts_CG)


def test_features_that_are_all_of_another_type_are_refused(plant, open_reader, tmp_path):
    planted = plant(0)
    lines = "".join(f"id{i}\t{name}\tAntibody Capture\n" for i, name in enumerate(planted.genes))
    with (
        pytest.raises(CorpusError, match=r"none of its 300 features is of type Gene Expression .*Antibody Capture"),
        open_reader(write_mtx(tmp_path / "in", planted, features=lines)) as reader,
    ):
        reader.describe()


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int16, np.float64])
def test_every_number_type_of_mmwrite_is_read(dtype, plant, open_reader, tmp_path):
    planted = plant(0)
    with open_reader(write_mtx(tmp_path / "in", planted, dtype=dtype)) as reader:
        assert reader.value_kind == "counts"
        assert np.array_equal(reader.read_rows(0, 300).toarray(), planted.counts_CG)


def test_header_lines_of_the_tables_are_passed_over(plant, open_reader, tmp_path):
    planted = plant(0)
    features = "gene_id\tgene_name\n" + "".join(f"ENSG{i:011d}\t{name}\n" for i, name in enumerate(planted.genes))
    barcodes = "barcode\n" + "".join(f"{name}\n" for name in planted.names)
    with open_reader(write_mtx(tmp_path / "in", planted, features=features, barcodes=barcodes)) as reader:
        assert (reader.gene_names, list(reader.obs.index)) == (planted.genes, planted.names)


def test_tables_of_parse_biosciences_are_read(plant, open_reader, tmp_path):
    """Cells by genes, with commas and header lines."""
    planted = plant(0)
    cells = slice(0, 200)
    scipy.io.mmwrite(tmp_path / "DGE.mtx", sparse.coo_matrix(planted.counts_CG[cells].astype(np.int64)))
    rows = "".join(f"ENSG{i:011d},{name},hg38\n" for i, name in enumerate(planted.genes))
    (tmp_path / "all_genes.csv").write_text("gene_id,gene_name,genome\n" + rows)
    names = "".join(f"{name},s1,12\n" for name in planted.names[cells])
    (tmp_path / "cell_metadata.csv").write_text("bc_wells,sample,tscp_count\n" + names)
    with open_reader(tmp_path / "DGE.mtx") as reader:
        assert (reader.gene_names, list(reader.obs.index)) == (planted.genes, planted.names[cells])
        assert np.array_equal(reader.read_rows(0, 200).toarray(), planted.counts_CG[cells])


def test_one_table_of_features_serves_all_samples_of_geo(plant, open_reader, tmp_path):
    samples = {"GSM1_a-": plant(1), "GSM2_b-": plant(2)}
    for prefix, planted in samples.items():
        folder = write_mtx(tmp_path / prefix, planted)
        (folder / "matrix.mtx").rename(tmp_path / f"{prefix}matrix.mtx")
        (folder / "barcodes.tsv").rename(tmp_path / f"{prefix}barcodes.tsv")
        (folder / "genes.tsv").rename(tmp_path / "GSE9_features.tsv")
    for prefix, planted in samples.items():
        with open_reader(tmp_path / f"{prefix}matrix.mtx") as reader:
            assert list(reader.obs.index) == planted.names
            assert np.array_equal(reader.read_rows(0, 300).toarray(), planted.counts_CG)


@pytest.mark.parametrize(
    ("change", "problem", "remedy"),
    [
        (lambda f: scipy.io.mmwrite(f / "matrix.mtx", np.ones((300, 300))), "is dense", "scipy.io.mmwrite"),
        (lambda f: (f / "genes.tsv").write_text("a\tb\n" * 299), "genes.tsv has 299 lines", "must belong together"),
        (lambda f: (f / "barcodes.tsv").write_text("a\n" * 302), "barcodes.tsv has 302", "must belong together"),
        (lambda f: (f / "genes.tsv").unlink(), "features.tsv or genes.tsv is missing", "Put both tables beside it"),
        (lambda f: (f / "matrix.mtx").write_text("<html>"), "does not begin with", "download the file again"),
    ],
)
def test_remedies_of_mtx_fit_what_is_wrong(change, problem: str, remedy: str, plant, open_reader, tmp_path):
    folder = write_mtx(tmp_path / "in", plant(0))
    change(folder)
    with pytest.raises(CorpusError, match=problem) as caught:
        open_reader(folder)
    assert remedy in caught.value.remedy
    assert "damaged" not in str(caught.value)


# --- columns that no table can hold


def test_compound_attributes_of_loom_are_left_out(write_format, plant, build_adata, open_reader, tmp_path):
    path = write_format("loom", build_adata(plant(0)), tmp_path)
    with h5py.File(path, "a") as file:
        file["col_attrs/RegulonsAUC"] = np.zeros(300, [("SPI1_(+)", "f8"), ("PAX5_(+)", "f8")])
        file["row_attrs/Regulons"] = np.zeros(300, [("SPI1_(+)", "i8")])
        file.create_group("col_attrs/more")
    with open_reader(path) as reader:
        notes = reader.describe().notes
        assert "columns of col_attrs with more than one value per row are left out: RegulonsAUC, X_tsne, more" in notes
        assert "columns of row_attrs with more than one value per row are left out: Regulons" in notes
        assert len(obs_arrays(reader.obs, column_types(reader.obs, ()))) == 3


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_columns_of_several_values_are_left_out_of_anndata(form: str, plant, build_adata, open_reader, tmp_path):
    planted = plant(0)
    path = tmp_path / f"a.{form}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        getattr(build_adata(planted), f"write_{form}")(path)
    if form == "h5ad":
        tree = h5py.File(path, "a")
    else:
        import zarr

        tree = zarr.open_group(path, mode="a", use_consolidated=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_elem(tree, "obs/umap", np.zeros((300, 2)))
        write_elem(tree, "obs/lists", sparse.csr_matrix(np.eye(300)))
    tree["obs"].attrs["column-order"] = [*tree["obs"].attrs["column-order"], "umap", "lists"]
    if form == "h5ad":
        tree.close()
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(path)
    with open_reader(path) as reader:
        assert list(reader.obs.columns) == ["cell_type", "depth"]
        assert reader.labels("cell_type") == planted.types
        notes = reader.describe().notes
        assert "columns of obs with more than one value per row are left out: umap, lists" in notes


def test_columns_of_objects_are_left_out(write_format, plant, build_adata, open_reader, tmp_path):
    """Structs of a parquet table, which pandas holds as dictionaries."""
    import pyarrow.parquet as pq

    folder = write_format("scb", build_adata(plant(0)), tmp_path)
    path = folder / "counts.datatable.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("meta", [[{"a": 1}] * len(table)]), path)
    with open_reader(folder) as reader:
        assert "meta" not in reader.obs
        assert any("left out: meta" in note for note in reader.describe().notes)


def test_old_tables_with_compound_columns_are_read(plant, build_adata, save, open_reader, tmp_path):
    path = save(build_adata(plant(0)), tmp_path / "a.h5ad")
    with h5py.File(path, "a") as file:
        del file["obs"]
        kind = [("index", "S8"), ("depth", "f4"), ("pca", "f4", (3,)), ("pair", [("a", "i4")])]
        file["obs"] = np.array([(f"c{i}".encode(), i, (0, 0, 0), (1,)) for i in range(300)], kind)
    with open_reader(path) as reader:
        assert list(reader.obs.columns) == ["depth"]
        assert any("pca, pair" in note for note in reader.describe().notes)


# --- zarr, genes, and trees that are something else


@pytest.mark.parametrize("format", [2, 3])
def test_a_zarr_whose_chunks_of_zeros_are_not_stored(format: int, plant, open_reader, tmp_path):
    """Stored zeros in rows, and rows that have the first gene only."""
    import zarr

    counts = plant(0).counts_CG.astype(np.float32)
    counts[:130, 1:] = 0
    counts[:130, 0] = 1
    matrix = sparse.csr_matrix(counts)
    matrix.data[3_000:5_100] = 0
    expected = matrix.toarray()
    with anndata.settings.override(zarr_write_format=format), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        var = pd.DataFrame(index=plant(0).genes)
        anndata.AnnData(matrix, var=var).write_zarr(tmp_path / "a.zarr")
        tree = zarr.open_group(tmp_path / "a.zarr", mode="a", use_consolidated=False)
        for name in ("data", "indices"):
            values, attributes = tree[f"X/{name}"][:], dict(tree[f"X/{name}"].attrs)
            del tree[f"X/{name}"]
            array = tree.create_array(f"X/{name}", shape=values.shape, dtype=values.dtype, chunks=(100,), fill_value=0)
            array[:] = values
            array.attrs.update(attributes)
            assert array.nchunks_initialized < array.nchunks
        (tmp_path / "a.zarr" / ".zmetadata").unlink(missing_ok=True)
        zarr.consolidate_metadata(tmp_path / "a.zarr")
    with open_reader(tmp_path / "a.zarr") as reader:
        reader.describe()
        assert np.array_equal(reader.read_rows(0, 300).toarray(), expected)


@pytest.mark.parametrize("index", ["{}", "{}.0", "feature_{}"])
@pytest.mark.parametrize("column", ["index", "gene", "anything", "feature_name"])
def test_symbols_are_found_beside_an_index_of_numbers(
    index: str, column: str, plant, build_adata, save, open_reader, tmp_path
):
    planted = plant(0)
    adata = build_adata(planted, var_names=[index.format(number) for number in range(300)])
    adata.var["chromosome"] = "chr1"
    adata.var[column] = planted.genes
    with open_reader(save(adata, tmp_path / "a.h5ad")) as reader:
        assert reader.gene_names == planted.genes
        assert reader.gene_column == column


def test_ids_are_found_in_any_column(plant, build_adata, save, open_reader, tmp_path):
    planted = plant(0)
    adata = build_adata(planted, var_names=[str(number) for number in range(300)])
    adata.var["anything"] = [f"ENSG{number:011d}" for number in range(300)]
    with open_reader(save(adata, tmp_path / "a.h5ad")) as reader:
        assert reader.ensembl_ids == list(adata.var["anything"])


def test_trees_that_hold_anndata_elsewhere(plant, build_adata, open_reader, tmp_path):
    import zarr

    adata, planted = build_adata(plant(0)), plant(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spatial = zarr.open_group(tmp_path / "one.zarr", mode="w")
        write_elem(spatial, "tables/table", adata)
        multi = zarr.open_group(tmp_path / "mu.zarr", mode="w")
        write_elem(multi, "mod/rna", adata)
        two = zarr.open_group(tmp_path / "two.zarr", mode="w")
        write_elem(two, "tables/a", adata)
        write_elem(two, "tables/b", adata)
    for name in ("one.zarr", "mu.zarr", "two.zarr/tables/b"):
        with open_reader(tmp_path / name) as reader:
            assert np.array_equal(reader.read_rows(0, 300).toarray(), planted.counts_CG)
    with pytest.raises(CorpusError, match="SpatialData with 2 tables") as caught:
        open_reader(tmp_path / "two.zarr")
    assert f"{tmp_path}/two.zarr/tables/a" in caught.value.remedy
    with h5py.File(tmp_path / "many.h5", "w") as file:
        write_elem(file, "s1", adata)
    with pytest.raises(CorpusError, match="its groups s1 are") as caught:
        open_reader(tmp_path / "many.h5")
    assert "write_h5ad('s1.h5ad')" in caught.value.remedy


def test_mudata_without_a_modality_of_genes_says_how_to_save_one(plant, build_adata, open_reader, tmp_path):
    with h5py.File(tmp_path / "a.h5mu", "w") as file:
        for name in ("one", "two"):
            write_elem(file, f"mod/{name}", build_adata(plant(0)))
    with pytest.raises(CorpusError, match=r"none of its modalities \(one, two\)") as caught:
        open_reader(tmp_path / "a.h5mu")
    assert "write_h5ad" in caught.value.remedy
