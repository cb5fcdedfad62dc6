"""Ways in which HDF5 and zarr lay out the same numbers: compression, chunks, number types, encodings of old."""

from __future__ import annotations

import warnings
from pathlib import Path

import anndata
import h5py
import hdf5plugin
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cytoray.corpus.readers import hdf5, ranges, rows
from cytoray.errors import CorpusError

FILTERS: dict[str, dict] = {
    "none": {},
    "gzip": {"compression": "gzip"},
    "gzip, shuffled": {"compression": "gzip", "shuffle": True},
    "gzip with checksums": {"compression": "gzip", "fletcher32": True},
    "lzf": {"compression": "lzf"},
    "blosc": dict(hdf5plugin.Blosc()),
    "zstd": dict(hdf5plugin.Zstd()),
    "bitshuffle": dict(hdf5plugin.Bitshuffle()),
}
RANGES = ((0, 300), (0, 1), (17, 211), (63, 64), (299, 300), (5, 5))


def replace(group: h5py.Group, name: str, **options: object) -> None:
    """Store a dataset in another way."""
    values = group[name][()]
    del group[name]
    group.create_dataset(name, data=values, **options)


@pytest.mark.parametrize("chunk", [1, 7, 1_000, 10**9])
@pytest.mark.parametrize("name", FILTERS)
def test_every_compression_and_chunk_length(name, chunk, plant, build_adata, save, open_reader, tmp_path):
    planted = plant(1)
    if chunk == 1:
        planted = planted.__class__(planted.counts_CG[:20], planted.types[:20], planted.names[:20], planted.genes)
    path = save(build_adata(planted), tmp_path / "a.h5ad")
    with h5py.File(path, "a") as file:
        for part in ("data", "indices", "indptr"):
            length = min(chunk, file["X"][part].shape[0])
            replace(file["X"], part, chunks=(length,) if FILTERS[name] or chunk < 10**9 else None, **FILTERS[name])
    with open_reader(path) as reader:
        for start, stop in RANGES:
            read = reader.read_rows(start, stop)
            assert np.array_equal(read.toarray(), planted.counts_CG[start:stop])


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8", "<f2", "<i8", ">i8", "<u2", "<i4", "u1", "?"])
@pytest.mark.parametrize("name", ["gzip", "gzip, shuffled", "none"])
def test_every_number_type(name, kind, plant, build_adata, save, open_reader, tmp_path):
    planted = plant(2)
    path = save(build_adata(planted), tmp_path / "a.h5ad")
    values = np.minimum(planted.counts_CG, 100)
    with h5py.File(path, "a") as file:
        kept = sparse.csr_matrix(values)
        del file["X/data"]
        file["X"].create_dataset("data", data=kept.data.astype(kind), chunks=(999,), **FILTERS[name])
        for part in ("indices", "indptr"):
            wide = file["X"][part][()].astype(">i8" if kind.startswith(">") else "<i8")
            del file["X"][part]
            file["X"].create_dataset(part, data=wide, chunks=(111,), **FILTERS[name])
    with open_reader(path) as reader:
        assert reader.value_kind == "counts"
        read = reader.read_rows(3, 299)
        assert np.array_equal(read.toarray(), values[3:299].astype(kind))
        assert read.dtype == {"<f2": "float32", "?": "uint8"}.get(kind, np.dtype(kind).newbyteorder("="))
        assert np.array_equal((read + read).toarray(), 2 * read.toarray())  # scipy computes with it


def test_gzip_chunks_are_inflated_by_isal(plant, build_adata, save, open_reader, tmp_path, monkeypatch):
    planted = plant(3)
    path = save(build_adata(planted), tmp_path / "a.h5ad")
    with h5py.File(path, "a") as file:
        for part in ("data", "indices"):
            replace(file["X"], part, chunks=(500,), compression="gzip")
    inflated: list[int] = []
    inflate = hdf5.isal_zlib.decompress

    def counted(packed: bytes, **options: int) -> bytes:
        inflated.append(len(packed))
        return inflate(packed, **options)

    monkeypatch.setattr(hdf5.isal_zlib, "decompress", counted)
    with open_reader(path) as reader:
        num_chunks = 2 * -(-np.count_nonzero(planted.counts_CG) // 500)
        for start in range(0, 300, 10):
            reader.read_rows(start, start + 10)
        assert len(inflated) == num_chunks  # those that ranges straddle are inflated once


def test_chunks_that_were_never_written_hold_the_fill_value(open_reader, plant, build_adata, save, tmp_path):
    planted = plant(4)
    path = save(build_adata(planted), tmp_path / "a.h5ad")
    with h5py.File(path, "a") as file:
        values = file["X/data"][()]
        del file["X/data"]
        data = file["X"].create_dataset("data", values.shape, "f4", chunks=(64,), compression="gzip", fillvalue=3)
        data[640:] = values[640:]
    with open_reader(path) as reader:
        read = reader.read_rows(0, 300)
        assert (read.data[:640] == 3).all()
        assert np.array_equal(read.data[640:], values[640:])


@pytest.mark.parametrize("layout", ["csr", "csc"])
def test_a_flipped_byte_in_gzip_is_found(layout, plant, build_adata, save, open_reader, tmp_path):
    planted = plant(5)
    matrix = {"csr": sparse.csr_matrix, "csc": sparse.csc_matrix}[layout](planted.counts_CG)
    path = Path(save(build_adata(planted, matrix=matrix), tmp_path / "a.h5ad"))
    with h5py.File(path, "a") as file:
        for part in ("data", "indices"):
            replace(file["X"], part, chunks=(1_000,), compression="gzip")
        place, size = (lambda info: (info.byte_offset, info.size))(file["X/data"].id.get_chunk_info(3))
    whole = path.read_bytes()
    for offset in (2, size // 3, size // 2, size - 2):
        flipped = bytearray(whole)
        flipped[place + offset] ^= 0x40
        path.write_bytes(flipped)
        with open_reader(path) as reader, pytest.raises(CorpusError, match=r"X.* cannot be read"):
            reader.read_rows(0, 300)


@pytest.mark.parametrize("piece_bytes", [1_000, 2**26])
@pytest.mark.parametrize("chunks", [None, (1, 300), (300, 1), (7, 3), (64, 64), (300, 300)])
def test_dense_chunks_of_any_form(chunks, piece_bytes, plant, build_adata, save, open_reader, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "DENSE_PIECE_BYTES", piece_bytes)
    planted = plant(6)
    path = save(build_adata(planted, matrix=planted.counts_CG), tmp_path / "a.h5ad")
    with h5py.File(path, "a") as file:
        attributes = dict(file["X"].attrs)
        replace(file, "X", chunks=chunks, compression="gzip" if chunks else None)
        file["X"].attrs.update(attributes)
    with open_reader(path) as reader:
        for start, stop in RANGES:
            assert np.array_equal(reader.read_rows(start, stop).toarray(), planted.counts_CG[start:stop])


def test_a_dense_matrix_is_never_dense_in_memory_beyond_a_piece(open_reader, tmp_path):
    import tracemalloc

    path = tmp_path / "wide.h5ad"
    adata = anndata.AnnData(np.zeros((2, 60_000), np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.write_h5ad(path)
    with h5py.File(path, "a") as file:
        del file["X"], file["obs"]
        anndata.io.write_elem(file, "obs", pd.DataFrame(index=[str(i) for i in range(4_000)]))
        data = file.create_dataset("X", (4_000, 60_000), "f4", chunks=(100, 6_000), compression="gzip", fillvalue=0)
        data.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        data[:, 17] = np.arange(1, 4_001)
    with open_reader(path, matrix="X") as reader:
        tracemalloc.start()
        read = reader.read_rows(0, 4_000)  # 960 MB dense
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert np.array_equal(read[:, [17]].toarray().ravel(), np.arange(1, 4_001))
    assert peak < 220 * 2**20


# --- encodings of old, and tables of many kinds


def test_sparse_matrices_of_before_anndata_0_7(plant, build_adata, save, open_reader, tmp_path):
    planted = plant(7)
    for layout in (sparse.csr_matrix, sparse.csc_matrix):
        path = save(build_adata(planted, matrix=layout(planted.counts_CG)), tmp_path / f"{layout.__name__}.h5ad")
        with h5py.File(path, "a") as file:
            attributes = file["X"].attrs
            attributes["h5sparse_format"] = str(attributes["encoding-type"])[:3]
            attributes["h5sparse_shape"] = attributes["shape"]
            for name in ("encoding-type", "encoding-version", "shape"):
                del attributes[name]
            codes = np.array([sorted(set(planted.types)).index(name) for name in planted.types], np.int8)
            obs = np.zeros(300, [("index", "S12"), ("cell_type", "i1"), ("depth", "f4"), ("note", "S3")])
            obs["index"], obs["cell_type"], obs["depth"], obs["note"] = planted.names, codes, 2.5, "n"
            var = np.zeros(300, [("index", "S12"), ("n", "i8")])
            var["index"] = planted.genes
            del file["obs"], file["var"]
            file["obs"], file["var"] = obs, var
            file["uns/cell_type_categories"] = np.array(sorted(set(planted.types)), "S")
        with open_reader(path) as reader:
            description = reader.describe()
            assert any("before AnnData 0.7" in note for note in description.notes)
            assert description.label_columns == ("cell_type",)
            assert reader.gene_names == planted.genes
            assert list(reader.obs.index) == planted.names
            assert reader.labels("cell_type") == planted.types
            assert reader.labels("note")[0] == "n"
            assert np.array_equal(reader.read_rows(9, 200).toarray(), planted.counts_CG[9:200])


def test_raw_under_its_keys_of_before_2020(plant, build_adata, save, open_reader, tmp_path):
    planted = plant(8)
    path = save(build_adata(planted, matrix=planted.log_normalised()), tmp_path / "a.h5ad")
    counts = sparse.csr_matrix(planted.counts_CG)
    with h5py.File(path, "a") as file:
        group = file.create_group("raw.X")
        group.attrs["h5sparse_format"], group.attrs["h5sparse_shape"] = "csr", counts.shape
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(counts, name)
        var = np.zeros(300, [("index", "S12")])
        var["index"] = planted.genes
        file["raw.var"] = var
    with open_reader(path) as reader:
        assert (reader.matrix, reader.value_kind) == ("raw.X", "counts")
        assert np.array_equal(reader.read_rows(1, 20).toarray(), planted.counts_CG[1:20])
        assert reader.gene_names == planted.genes


@pytest.mark.parametrize("format", ["h5ad", "zarr-2", "zarr-3"])
def test_tables_of_any_kind(format, write_format, plant, build_adata, save, open_reader, tmp_path):
    adata = build_adata(plant(9))
    obs = adata.obs
    obs.index.name = "barcode"
    adata.var.index.name = "symbol"
    obs["object"] = np.array(["x", "y"] * 150, dtype=object)
    obs["flag"] = np.arange(300) % 3 == 0
    obs["nullable_flag"] = pd.array([None, True, False] * 100, dtype="boolean")
    obs["nullable_number"] = pd.array([None, 1, 2] * 100, dtype="Int64")
    obs["ordered"] = pd.Categorical(["low", "high"] * 150, categories=["low", "high"], ordered=True)
    obs["numbers"] = pd.Categorical([3, 1, 2] * 100)
    obs["one"] = "always"
    obs["text"] = pd.array(["a", None, "b"] * 100, dtype="string")
    with anndata.settings.override(allow_write_nullable_strings=True):
        path = write_format(format, adata, tmp_path) if format != "h5ad" else save(adata, tmp_path / "a.h5ad")
    with open_reader(path) as reader:
        assert list(reader.obs.index) == list(obs.index)
        assert reader.labels("object")[:3] == ["x", "y", "x"]
        assert reader.labels("text")[:3] == ["a", None, "b"]
        assert reader.labels("nullable_flag")[:3] == [None, "True", "False"]
        assert reader.labels("nullable_number")[:3] == [None, "1", "2"]
        assert reader.labels("ordered")[:2] == ["low", "high"]
        assert reader.labels("numbers")[:2] == ["3", "1"]
        expected = {"cell_type", "object", "flag", "nullable_flag", "ordered", "numbers", "text"}
        assert set(reader.describe().label_columns) == expected


def test_a_column_that_cannot_be_read_is_named(plant, build_adata, save, open_reader, tmp_path):
    path = save(build_adata(plant(10)), tmp_path / "a.h5ad")
    with h5py.File(path, "a") as file:
        file["obs/depth"].attrs["encoding-type"] = "something-of-the-future"
    with open_reader(path) as reader, pytest.raises(CorpusError, match="its column obs/depth") as caught:
        reader.describe()
    assert "\n" not in str(caught.value)


# --- rows that are not as they should be


@pytest.mark.parametrize("format", ["csr", "csc"])
def test_unsorted_and_doubled_entries_are_put_right_and_counted(
    format, plant, build_adata, save, open_reader, tmp_path
):
    planted = plant(11)
    path = save(build_adata(planted), tmp_path / "a.h5ad")
    with h5py.File(path, "a") as file:
        if format == "csc":
            file["X"].attrs["encoding-type"] = "csc_matrix"  # the same arrays are then the transposed matrix
        pointers = file["X/indptr"][()]
        for row in (4, 100, 299):
            part = slice(pointers[row], pointers[row + 1])
            for name in ("data", "indices"):
                file["X"][name][part] = file["X"][name][part][::-1]
        first = pointers[200]
        file["X/indices"][first + 1] = file["X/indices"][first]
        doubled = file["X/data"][first : first + 2].sum()
        moved = int(file["X/indices"][first])
        gone = np.flatnonzero(planted.counts_CG[200])[1]
    expected = planted.counts_CG.copy()
    expected[200, gone], expected[200, moved] = 0, doubled
    with open_reader(path) as reader:
        read = reader.read_rows(0, 300)
        assert read.has_canonical_format
        assert np.array_equal(read.toarray(), expected if format == "csr" else expected.T)
        if format == "csr":
            assert reader.num_unsorted_rows == 4
            assert any("not in order" in note for note in reader.describe().notes)


def test_the_sum_of_doubled_entries_does_not_run_over(open_reader, plant, build_adata, save, tmp_path):
    planted = plant(12)
    path = save(build_adata(planted, matrix=sparse.csr_matrix(planted.counts_CG.astype(np.uint8))), tmp_path / "a.h5ad")
    with h5py.File(path, "a") as file:
        first = file["X/indptr"][7]
        file["X/data"][first : first + 2] = 200
        file["X/indices"][first + 1] = file["X/indices"][first]
    with open_reader(path) as reader:
        assert reader.read_rows(7, 8).max() == 400


# --- by range from object storage


def test_rows_are_read_from_s3_by_range(plant, build_adata, save, open_reader, upload, s3_uri, tmp_path, monkeypatch):
    planted = plant(13, num_cells=6_000)
    paths = {
        "dense": Path(save(build_adata(planted, matrix=planted.counts_CG), tmp_path / "dense.h5ad")),
        "sparse": Path(save(build_adata(planted), tmp_path / "sparse.h5ad")),
    }
    monkeypatch.setattr(ranges, "BLOCK_BYTES", 2**14)
    fetched: list[int] = []
    read_ranges = ranges.storage.read_ranges

    def counted(uri: str, wanted: list[tuple[int, int]]) -> list[bytes]:
        fetched.extend(end - start for start, end in wanted)
        return read_ranges(uri, wanted)

    monkeypatch.setattr(ranges.storage, "read_ranges", counted)
    for path in paths.values():
        fetched.clear()
        with open_reader(upload(path, s3_uri), matrix="X") as reader:
            assert np.array_equal(reader.read_rows(1500, 1550).toarray(), planted.counts_CG[1500:1550])
            assert 50 * 60 * 4 < sum(fetched) < path.stat().st_size / 4


def test_reading_on_fetches_more_at_once(s3_uri, monkeypatch):
    data = np.random.default_rng(0).bytes(100_000)
    uri = f"{s3_uri}/object"
    ranges.storage.write_bytes(uri, data)
    monkeypatch.setattr(ranges, "BLOCK_BYTES", 1_000)
    calls: list[int] = []
    read_ranges = ranges.storage.read_ranges
    monkeypatch.setattr(
        ranges.storage, "read_ranges", lambda uri, wanted: calls.append(len(wanted)) or read_ranges(uri, wanted)
    )
    with ranges.RangeFile(uri, len(data)) as file:
        assert b"".join(iter(lambda: file.read(777), b"")) == data
        assert calls[:7] == [1, 1, 1, 2, 4, 4, 4]  # requests for 1, 2, 4, 8, 16, 16, 16 blocks
        for start, size in ((99_999, 50), (0, 10), (50_123, 2_000), (100_000, 5)):
            file.seek(start)
            assert file.read(size) == data[start : start + size]
        assert len(file._blocks) <= ranges.KEPT_BLOCKS
