"""Every format gives the same cells, from disk and from object storage, and says what it is before it is read."""

from __future__ import annotations

import warnings

import anndata
import numpy as np
import pytest
import scanpy
from scipy import sparse

from cytoray.corpus.config import ModalityConfig
from cytoray.corpus.readers import turned
from cytoray.errors import CorpusError

RANGES = ((0, 300), (0, 1), (17, 211), (299, 300), (5, 5), (250, 999))


def in_order(reader, planted) -> tuple[np.ndarray, np.ndarray]:
    """Where the planted cells and genes stand in the file, which may know them by numbers or in another order."""
    names = list(reader.obs.index)
    cells = np.arange(300) if names[0] == "0" else np.array([planted.names.index(name) for name in names])
    return cells, np.array([planted.genes.index(name) for name in reader.gene_names])


def test_row_ranges_of_every_format(format_name, write_format, plant, build_adata, open_reader, tmp_path):
    planted = plant(1)
    path = write_format(format_name, build_adata(planted), tmp_path)
    with open_reader(path) as reader:
        description = reader.describe()
        assert description.format == format_name.partition("-")[0]
        assert (description.matrix, description.value_kind) == ("X", "counts")
        assert (description.num_cells, description.num_genes) == (300, 300)
        assert description.num_entries in (None, np.count_nonzero(planted.counts_CG))
        assert (description.id_type, description.species) == ("symbol", "human")
        assert description.num_bytes > 0
        assert description.version == reader.version
        cells, genes = in_order(reader, planted)
        expected = planted.counts_CG[np.ix_(cells, genes)]
        for start, stop in RANGES:
            rows = reader.read_rows(start, stop)
            assert rows.has_canonical_format
            assert rows.nnz == np.count_nonzero(expected[start:stop])
            assert np.array_equal(rows.toarray(), expected[start:stop])
        if "cell_type" in reader.obs:
            assert reader.labels("cell_type") == [planted.types[cell] for cell in cells]
            assert "cell_type" in description.label_columns
        if reader.ensembl_ids is not None:
            assert reader.ensembl_ids[:2] == ["ENSG00000000000", "ENSG00000000001"]


def test_row_ranges_of_every_format_from_s3(
    format_name, write_format, plant, build_adata, open_reader, upload, s3_uri, tmp_path
):
    planted = plant(2)
    path = write_format(format_name, build_adata(planted), tmp_path)
    with open_reader(upload(path, s3_uri)) as reader, open_reader(path) as local:
        remote, here = reader.describe(), local.describe()
        assert (remote.num_cells, remote.num_genes, remote.num_bytes) == (300, 300, here.num_bytes)
        assert (remote.format, remote.value_kind, remote.id_type) == (here.format, here.value_kind, here.id_type)
        for start, stop in RANGES[1:]:
            assert (reader.read_rows(start, stop) != local.read_rows(start, stop)).nnz == 0
        assert reader.gene_names == local.gene_names
        assert list(reader.obs.index) == list(local.obs.index)


def test_the_version_changes_with_the_content(
    format_name, write_format, plant, build_adata, open_reader, upload, s3_uri, tmp_path
):
    versions = set()
    for seed in (3, 4):
        path = write_format(format_name, build_adata(plant(seed)), tmp_path / str(seed))
        for uri in (path, upload(path, f"{s3_uri}/{seed}"), upload(path, f"{s3_uri}/{seed}")):
            with open_reader(uri) as reader:
                versions.add(reader.version)
    assert len(versions) == 4  # the same content has the same version at every upload


def test_no_file_stays_open(format_name, write_format, plant, build_adata, open_reader, tmp_path):
    import os

    path = write_format(format_name, build_adata(plant(5)), tmp_path)
    turned._kept.clear()
    before = len(os.listdir("/proc/self/fd"))
    with open_reader(path) as reader:
        reader.describe()
        reader.read_rows(0, 10)
    turned._kept.clear()  # a temporary file may be kept for the next reader
    assert len(os.listdir("/proc/self/fd")) <= before


def test_all_formats_of_ten_x_are_those_of_scanpy(write_format, plant, build_adata, open_reader, tmp_path):
    adata = build_adata(plant(6))
    for name in ("10x_h5-2", "10x_h5-3", "10x_mtx-2", "10x_mtx-3"):
        path = write_format(name, adata, tmp_path / name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = scanpy.read_10x_mtx(path) if path.is_dir() else scanpy.read_10x_h5(path)
        with open_reader(path) as reader:
            assert list(expected.obs_names) == list(reader.obs.index)
            assert list(expected.var_names) == reader.gene_names
            assert list(expected.var["gene_ids"]) == reader.ensembl_ids
            assert (reader.read_rows(0, 300) != sparse.csr_matrix(expected.X)).nnz == 0


def test_a_format_can_be_named(format_name, write_format, plant, build_adata, open_reader, tmp_path):
    path = write_format(format_name, build_adata(plant(7)), tmp_path)
    if path.is_file() and not format_name.startswith("triples"):
        path = path.rename(path.with_name("cells.bin"))
    with open_reader(path, format=format_name.partition("-")[0]) as reader:
        assert reader.describe().format == format_name.partition("-")[0]


@pytest.mark.parametrize("shape", [(0, 300), (300, 0), (0, 0)])
def test_empty_matrices(shape, format_name, write_format, plant, build_adata, open_reader, tmp_path):
    if shape[1] == 0 and format_name in ("10x_h5-2", "h5mu"):
        pytest.skip("its writer here needs genes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata = build_adata(plant(8))[: shape[0], : shape[1]].copy()
    if format_name == "zarr-3-sharded":
        pytest.skip("zarr makes no shards of an empty array")
    path = write_format(format_name, adata, tmp_path)
    with open_reader(path) as reader:
        if shape[0] == 0 or format_name.startswith("triples"):  # of which nothing is left without an entry
            with pytest.raises(CorpusError, match="the file has no cells") as caught:
                reader.describe()
            assert caught.value.details["rule"] == "no_cells"
            return
        description = reader.describe()
        assert (description.num_cells, description.num_genes) == shape
        assert description.value_kind == "counts"
        assert reader.read_rows(0, 10).shape == (10, shape[1])


# --- further modalities


def test_modalities_of_h5mu_are_put_into_the_order_of_the_cells(
    write_format, plant, build_adata, open_reader, tmp_path
):
    planted = plant(9)
    path = write_format("h5mu", build_adata(planted), tmp_path)
    modality = ModalityConfig(name="protein", matrix="mod/prot")
    with open_reader(path, modalities=(modality,)) as reader:
        assert reader.describe().modalities == ("protein",)
        assert reader.modality_features("protein") == ["CD3", "CD19", "CD4", "CD8"]
        expected = planted.counts_CG[:, :4].copy()
        expected[np.arange(300) % 2 == 0] = 0  # the file has the proteins of every other cell, from the last
        for start, stop in RANGES:
            assert np.array_equal(reader.read_modality("protein", start, stop).toarray(), expected[start:stop])
        assert reader.labels("donor")[:4] == ["d0", "d1", "d2", "d0"]
        assert "rna:depth" not in reader.obs


def test_modalities_of_obsm(plant, build_adata, open_reader, save, tmp_path):
    planted = plant(10)
    adata = build_adata(planted)
    values = planted.counts_CG[:, 20:26]
    adata.obsm["protein_counts"] = values
    adata.uns["protein_names"] = np.array([f"p{i}" for i in range(6)], dtype=object)
    adata.obsm["guides"] = sparse.csr_matrix(values)
    adata.uns["targets"] = np.array([f"g{i}" for i in range(6)], dtype=object)
    import pandas as pd

    adata.obsm["frame"] = pd.DataFrame(values, index=adata.obs_names, columns=[f"f{i}" for i in range(6)])
    adata.obsm["columns"] = sparse.csc_matrix(values)
    path = save(adata, tmp_path / "a.h5ad")
    options = {"protein_counts": None, "guides": "uns/targets", "frame": None, "columns": None}
    modalities = tuple(
        ModalityConfig(name=name, matrix=f"obsm/{name}", feature_names=names) for name, names in options.items()
    )
    features = {"protein_counts": "p0", "guides": "g0", "frame": "f0", "columns": "columns_0"}
    with open_reader(path, modalities=modalities) as reader:
        for name, first in features.items():
            assert reader.modality_features(name)[0] == first
            assert np.array_equal(reader.read_modality(name, 7, 200).toarray(), values[7:200])


def test_antibodies_of_ten_x_are_a_modality(write_format, plant, build_adata, open_reader, tmp_path):
    import h5py

    planted = plant(11)
    path = write_format("10x_h5-3", build_adata(planted), tmp_path)
    folder = write_format("10x_mtx-3", build_adata(planted), tmp_path)
    kinds = ["Antibody Capture" if i % 3 == 1 else "Gene Expression" for i in range(300)]
    with h5py.File(path, "a") as file:
        file["matrix/features/feature_type"][:] = np.array(kinds, "S")
        del file["matrix/features/feature_type"]
        file["matrix/features/feature_type"] = np.array(kinds, "S")
    import gzip

    table = folder / "features.tsv.gz"
    lines = gzip.decompress(table.read_bytes()).decode().splitlines()
    lines = [line.replace("Gene Expression", kind) for line, kind in zip(lines, kinds, strict=True)]
    table.write_bytes(gzip.compress("\n".join(lines).encode()))
    modality = ModalityConfig(name="protein", matrix="mod/Antibody Capture")
    for uri in (path, folder):
        with open_reader(uri, modalities=(modality,)) as reader:
            assert (reader.describe().num_genes, len(reader.modality_features("protein"))) == (200, 100)
            proteins = np.arange(300) % 3 == 1
            assert np.array_equal(reader.read_rows(3, 90).toarray(), planted.counts_CG[3:90, ~proteins])
            assert np.array_equal(reader.read_modality("protein", 3, 90).toarray(), planted.counts_CG[3:90, proteins])
            assert reader.modality_features("protein")[:2] == [planted.genes[1], planted.genes[4]]


def test_an_unknown_modality_is_answered_with_those_there(write_format, plant, build_adata, open_reader, tmp_path):
    path = write_format("h5mu", build_adata(plant(9)), tmp_path)
    modality = ModalityConfig(name="peaks", matrix="mod/atac")
    with open_reader(path, modalities=(modality,)) as reader, pytest.raises(CorpusError, match="mod/atac") as caught:
        reader.modality_features("peaks")
    assert caught.value.remedy == "This file holds: mod/prot."


# --- each format's own ways


def test_several_genomes_of_cell_ranger_2_are_read_side_by_side(
    write_format, plant, build_adata, open_reader, tmp_path
):
    import h5py

    planted = plant(12)
    path = write_format("10x_h5-2", build_adata(planted), tmp_path)
    with h5py.File(path, "a") as file:
        file.copy("GRCh38", "mm10")
        names = file["mm10/barcodes"][()]
        names[:100] = [b"m-%d" % number for number in range(100)]
        file["mm10/barcodes"][...] = names
    with open_reader(path) as reader:
        description = reader.describe()
        assert (description.matrix, description.num_cells, description.num_genes) == ("X", 400, 600)
        assert any("2 genomes" in note for note in description.notes)
        assert reader.genomes == ["GRCh38"] * 300 + ["mm10"] * 300
        counts = planted.counts_CG
        expected = np.zeros((400, 600), np.float32)
        expected[:300, :300] = counts
        expected[100:300, 300:] = counts[100:]
        expected[300:, 300:] = counts[:100]
        assert np.array_equal(reader.read_rows(0, 400).toarray(), expected)
        assert np.array_equal(reader.read_rows(250, 310).toarray(), expected[250:310])
        assert reader.read_rows(40, 40).shape == (0, 600)


def test_mtx_of_cells_by_genes_and_of_real_numbers(plant, build_adata, open_reader, tmp_path):
    import scipy.io

    planted = plant(13)
    values = planted.log_normalised()[:200]
    for name, matrix in {"by_cell": values, "by_gene": values.T}.items():
        folder = tmp_path / name
        folder.mkdir()
        scipy.io.mmwrite(folder / "matrix.mtx", sparse.coo_matrix(matrix), precision=9)
        (folder / "genes.tsv").write_text("".join(f"{gene}\n" for gene in planted.genes))
        (folder / "barcodes.tsv").write_text("".join(f"{cell}\n" for cell in planted.names[:200]))
        with open_reader(folder) as reader:
            assert reader.value_kind == "recoverable"
            assert np.allclose(reader.read_rows(0, 200).toarray(), values)


def test_mtx_under_a_prefix_as_geo_has_them(write_format, plant, build_adata, open_reader, tmp_path):
    folder = tmp_path / "GSE1"
    folder.mkdir()
    planted = {"GSM1_": plant(14), "GSM2_": plant(15)}
    for prefix, cells in planted.items():
        for file in write_format("10x_mtx-3", build_adata(cells), tmp_path / prefix).iterdir():
            file.rename(folder / f"{prefix}{file.name}")
    for prefix, cells in planted.items():
        with open_reader(folder / f"{prefix}matrix.mtx.gz") as reader:
            assert np.array_equal(reader.read_rows(0, 300).toarray(), cells.counts_CG)
    with pytest.raises(CorpusError, match="is a folder that is not a source of cells"):
        open_reader(folder)


def test_scb_entries_of_special_tokens_are_no_genes(write_format, plant, build_adata, open_reader, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    planted = plant(16)
    path = write_format("scb", build_adata(planted), tmp_path) / "counts.datatable.parquet"
    table = pq.read_table(path)
    genes = [[60695, *row] for row in table["genes"].to_pylist()]
    values = [[-2.0, *row] for row in table["expressions"].to_pylist()]
    columns = {"id": table["id"], "genes": pa.array(genes), "expressions": pa.array(values, pa.list_(pa.float32()))}
    pq.write_table(pa.table(columns), path)
    with open_reader(path.parent) as reader:
        assert reader.value_kind == "counts"
        assert np.array_equal(reader.read_rows(0, 300).toarray(), planted.counts_CG)


def test_a_layer_of_a_loom_file(write_format, plant, build_adata, open_reader, tmp_path):
    planted = plant(17)
    path = write_format("loom", build_adata(planted), tmp_path)
    modality = ModalityConfig(name="tsne", matrix="obsm/X_tsne")
    with open_reader(path, matrix="layers/spliced", modalities=(modality,)) as reader:
        assert np.array_equal(reader.read_rows(60, 70).toarray(), planted.counts_CG[60:70] // 2)
        assert np.array_equal(reader.read_modality("tsne", 1, 2).toarray(), [[2.0, 3.0]])
        assert reader.labels("cell_type") == planted.types


def test_cellxgene_files_need_no_telling(plant, build_adata, open_reader, save, tmp_path):
    """Ensembl index, symbols in feature_name, counts in raw.X, normalised values in X."""
    planted = plant(18)
    adata = build_adata(planted, var_names=[f"ENSG{i:011d}" for i in range(300)])
    adata.var["feature_name"] = anndata.AnnData(obs=None).obs.index.tolist() or planted.genes
    adata.var["feature_is_filtered"] = False
    adata.obs["is_primary_data"] = True
    adata.obs["disease"] = "normal"
    adata.raw = adata
    adata.X = sparse.csr_matrix(planted.log_normalised())
    with open_reader(save(adata, tmp_path / "census.h5ad")) as reader:
        description = reader.describe()
        assert (description.matrix, description.value_kind) == ("raw.X", "counts")
        assert (description.id_type, description.species) == ("symbol", "human")
        assert reader.gene_names == planted.genes
        assert reader.ensembl_ids == [f"ENSG{i:011d}" for i in range(300)]
