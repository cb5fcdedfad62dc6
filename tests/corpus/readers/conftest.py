"""The same planted cells in every format that is read, each written by another library or by hand."""

# C cells, G genes

from __future__ import annotations

import gzip
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
from anndata.io import write_elem
from scipy import sparse

from cytoray import storage
from cytoray.corpus.config import SourceConfig
from cytoray.corpus.readers.base import CellReader
from cytoray.corpus.readers.opening import open_source

TEXT = h5py.string_dtype()


@pytest.fixture
def open_reader() -> Callable[..., CellReader]:
    """A function that opens a path or URI with the options of SourceConfig."""

    def opened(uri: object, **options: object) -> CellReader:
        return open_source(SourceConfig(uri=str(uri), **options))

    return opened


@pytest.fixture
def upload() -> Callable[[Path, str], str]:
    """A function that copies a file or folder to a prefix in S3 and returns its URI there."""

    def copied(path: Path, prefix: str) -> str:
        uri = f"{prefix}/{path.name}"
        if path.is_dir():
            storage.upload_folder(path, uri)
        else:
            storage.write_bytes(uri, path.read_bytes())
        return uri

    return copied


def write_h5ad(adata: anndata.AnnData, folder: Path) -> Path:
    adata.write_h5ad(folder / "cells.h5ad", compression="gzip")
    return folder / "cells.h5ad"


def write_zarr(adata: anndata.AnnData, folder: Path, *, format: int, sharded: bool = False) -> Path:
    path = folder / "cells.zarr"
    with anndata.settings.override(zarr_write_format=format):
        if not sharded:
            adata.write_zarr(path)
        else:
            import zarr

            def write(func: Any, group: Any, key: str, elem: Any, dataset_kwargs: Any, iospec: Any) -> None:
                if key == "/X":
                    dataset_kwargs = dataset_kwargs | {"chunks": (512,), "shards": (4096,)}
                func(group, key, elem, dataset_kwargs=dataset_kwargs)

            anndata.experimental.write_dispatched(
                zarr.open_group(path, mode="w", zarr_format=3), "/", adata, callback=write
            )
    return path


def write_tenx_v3(adata: anndata.AnnData, folder: Path) -> Path:
    """Cell Ranger 3: features by cells, compressed by column."""
    matrix = sparse.csc_matrix(adata.X.T)
    with h5py.File(folder / "filtered_feature_bc_matrix.h5", "w") as file:
        group = file.create_group("matrix")
        group.create_dataset("barcodes", data=np.array(adata.obs_names, "S"))
        for name, kind in (("data", np.int32), ("indices", np.int64), ("indptr", np.int64)):
            group.create_dataset(
                name, data=getattr(matrix, name).astype(kind), chunks=(1250,), maxshape=(None,), compression=4
            )
        group.create_dataset("shape", data=np.array(matrix.shape, np.int32))
        features = group.create_group("features")
        for name, values in {
            "id": [f"ENSG{i:011d}" for i in range(adata.n_vars)],
            "name": adata.var_names,
            "feature_type": ["Gene Expression"] * adata.n_vars,
            "genome": ["GRCh38"] * adata.n_vars,
        }.items():
            features.create_dataset(name, data=np.array(values, "S"))
        features.create_dataset("_all_tag_keys", data=np.array(["genome"], "S"))
    return folder / "filtered_feature_bc_matrix.h5"


def write_tenx_v2(adata: anndata.AnnData, folder: Path) -> Path:
    """Cell Ranger 2: a group named as the genome."""
    matrix = sparse.csc_matrix(adata.X.T)
    with h5py.File(folder / "filtered_gene_bc_matrices_h5.h5", "w") as file:
        group = file.create_group("GRCh38")
        for name in ("data", "indices", "indptr"):
            group.create_dataset(name, data=getattr(matrix, name).astype(np.int32 if name == "data" else np.int64))
        group.create_dataset("shape", data=np.array(matrix.shape, np.int32))
        group.create_dataset("barcodes", data=np.array(adata.obs_names, "S"))
        group.create_dataset("genes", data=np.array([f"ENSG{i:011d}" for i in range(adata.n_vars)], "S"))
        group.create_dataset("gene_names", data=np.array(adata.var_names, "S"))
    return folder / "filtered_gene_bc_matrices_h5.h5"


def write_mtx(adata: anndata.AnnData, folder: Path, *, version: int) -> Path:
    """The folder of Cell Ranger 2 (genes.tsv) or 3 (gzipped, features.tsv)."""
    path = folder / "filtered_feature_bc_matrix"
    path.mkdir()
    scipy.io.mmwrite(
        path / "matrix.mtx", sparse.coo_matrix(adata.X.T).astype(np.int64), field="integer", symmetry="general"
    )
    (path / "barcodes.tsv").write_text("".join(f"{name}\n" for name in adata.obs_names))
    kind = "\tGene Expression" if version == 3 else ""
    lines = "".join(f"ENSG{i:011d}\t{name}{kind}\n" for i, name in enumerate(adata.var_names))
    (path / ("features.tsv" if version == 3 else "genes.tsv")).write_text(lines)
    if version == 3:
        for file in list(path.iterdir()):
            Path(f"{file}.gz").write_bytes(gzip.compress(file.read_bytes()))
            file.unlink()
    return path


def write_loom(adata: anndata.AnnData, folder: Path) -> Path:
    """Loom 3: genes by cells, dense, in chunks of 64 by 64."""
    with h5py.File(folder / "cells.loom", "w") as file:
        file.create_group("attrs").create_dataset("LOOM_SPEC_VERSION", data="3.0.0", dtype=TEXT)
        chunks = {"chunks": (64, 64), "maxshape": (None, None), "compression": "gzip", "shuffle": False}
        file.create_dataset("matrix", data=np.asarray(adata.X.T.todense()), **chunks)
        file.create_group("layers").create_dataset("spliced", data=np.asarray(adata.X.T.todense()) // 2, **chunks)
        rows, columns = file.create_group("row_attrs"), file.create_group("col_attrs")
        rows.create_dataset("Gene", data=np.array(adata.var_names, object), dtype=TEXT)
        rows.create_dataset("Accession", data=[f"ENSG{i:011d}" for i in range(adata.n_vars)], dtype=TEXT)
        columns.create_dataset("CellID", data=np.array(adata.obs_names, object), dtype=TEXT)
        columns.create_dataset("cell_type", data=np.array(adata.obs["cell_type"], object), dtype=TEXT)
        columns.create_dataset("depth", data=adata.obs["depth"].to_numpy())
        columns.create_dataset("X_tsne", data=np.arange(2.0 * adata.n_obs).reshape(-1, 2))
        for name in ("row_graphs", "col_graphs"):
            file.create_group(name)
    return folder / "cells.loom"


def write_scb(adata: anndata.AnnData, folder: Path) -> Path:
    """What scGPT's DataBank leaves: lists of vocabulary ids, not sorted, and running numbers for names."""
    path = folder / "cells.scb"
    path.mkdir()
    ids = {name: 7 * i + 3 for i, name in enumerate(adata.var_names)}
    vocabulary = {"<pad>": 60694, "<cls>": 60695, "<eoc>": 60696} | ids
    (path / "gene_vocab.json").write_text(json.dumps(vocabulary))
    manifest = {"on_disk_format": "parquet", "main_data": "counts", "gene_vocab_md5": None}
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / "studytable.json").write_text('{"study_ids": null}')
    rows = [adata.X[i] for i in range(adata.n_obs)]
    table = pa.table(
        {
            "id": pa.array(range(adata.n_obs), pa.int64()),
            "genes": pa.array([(7 * row.indices[::-1] + 3).tolist() for row in rows], pa.list_(pa.int64())),
            "expressions": pa.array([row.data[::-1].tolist() for row in rows], pa.list_(pa.float32())),
        }
    )
    pq.write_table(table, path / "counts.datatable.parquet", row_group_size=70)
    return path


def write_triples(adata: anndata.AnnData, folder: Path, *, kind: str) -> Path:
    """One entry a row, sorted by cell in parquet, in no order in Arrow."""
    entries = sparse.coo_matrix(adata.X)
    order = np.random.default_rng(0).permutation(entries.nnz)
    if kind == "parquet":
        order = np.argsort(entries.row, kind="stable")
    table = pa.table(
        {
            "gene_symbol": pa.array(np.array(adata.var_names)[entries.col[order]]).dictionary_encode(),
            "Cell_Barcode": pa.array(np.array(adata.obs_names)[entries.row[order]]),
            "umi_count": pa.array(entries.data[order].astype(np.int32)),
        }
    )
    path = folder / f"cells.{kind}"
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=5_000)
    elif kind == "feather":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=5_000)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=5_000)
    return path


def write_h5mu(adata: anndata.AnnData, folder: Path) -> Path:
    """Genes, and proteins of other cells in another order."""
    proteins = adata[::-2, :4].copy()
    proteins.var_names = ["CD3", "CD19", "CD4", "CD8"]
    with h5py.File(folder / "cells.h5mu", "w") as file:
        file.attrs.update({"encoding-type": "MuData", "encoding-version": "0.1.0"})
        for name, modality in {"prot": proteins, "rna": adata}.items():
            write_elem(file, f"mod/{name}", modality)
        names = adata.obs_names
        frame = pd.DataFrame({"rna:depth": 1.0, "donor": [f"d{i % 3}" for i in range(len(names))]}, index=names)
        write_elem(file, "obs", frame.iloc[::-1])
        write_elem(file, "obsmap", {"rna": np.arange(len(names)) + 1, "prot": np.arange(len(names))})
    return folder / "cells.h5mu"


WRITERS: dict[str, Callable[[anndata.AnnData, Path], Path]] = {
    "h5ad": write_h5ad,
    "zarr-2": lambda adata, folder: write_zarr(adata, folder, format=2),
    "zarr-3": lambda adata, folder: write_zarr(adata, folder, format=3),
    "zarr-3-sharded": lambda adata, folder: write_zarr(adata, folder, format=3, sharded=True),
    "10x_h5-2": write_tenx_v2,
    "10x_h5-3": write_tenx_v3,
    "10x_mtx-2": lambda adata, folder: write_mtx(adata, folder, version=2),
    "10x_mtx-3": lambda adata, folder: write_mtx(adata, folder, version=3),
    "loom": write_loom,
    "scb": write_scb,
    "triples-parquet": lambda adata, folder: write_triples(adata, folder, kind="parquet"),
    "triples-feather": lambda adata, folder: write_triples(adata, folder, kind="feather"),
    "triples-arrow": lambda adata, folder: write_triples(adata, folder, kind="arrow"),
    "h5mu": write_h5mu,
}


@pytest.fixture(params=WRITERS)
def format_name(request) -> str:
    """Each format in turn, behind a dash its variant."""
    return request.param


@pytest.fixture(scope="session")
def write_format() -> Callable[..., Path]:
    """A function that writes AnnData in a format of ``WRITERS`` into a folder and returns the path."""

    def write(name: str, adata: anndata.AnnData, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of anndata and zarr, about formats to come
            return WRITERS[name](adata, folder)

    return write
