"""Memory stays flat however large the file is, and a store that fails is not taken for a damaged file."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cytoray import storage
from cytoray.corpus.readers import mtx, ranges, rows, triples, turned
from cytoray.errors import CorpusError, StorageError

NUM_GENES, GENES_A_CELL = 2_000, 200

MEASURE = """
    import sys
    from cytoray.corpus.config import SourceConfig
    from cytoray.corpus.readers.opening import open_source

    def status(field):
        lines = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
        return int(lines[field].split()[0]) // 1024

    with open_source(SourceConfig(uri=sys.argv[1])) as reader:
        num_cells, entries = reader.describe().num_cells, 0
        for start in range(0, num_cells, 2_048):
            entries += reader.read_rows(start, start + 2_048).nnz
            if start == 2_048:
                before = status("VmHWM")  # all is imported, the tables are read
    print(num_cells, entries, status("VmHWM") - before)
"""


def draw_matrix(num_cells: int) -> sparse.csr_matrix:
    """Cells of 200 genes each."""
    rng = np.random.default_rng(0)
    columns = rng.integers(0, NUM_GENES // GENES_A_CELL, (num_cells, GENES_A_CELL))
    columns = columns + np.arange(GENES_A_CELL) * (NUM_GENES // GENES_A_CELL)
    values = rng.integers(1, 300, columns.size).astype(np.float32)
    indptr = np.arange(num_cells + 1) * GENES_A_CELL
    return sparse.csr_matrix((values, columns.ravel().astype(np.int32), indptr), (num_cells, NUM_GENES))


def build(num_cells: int, layout: str) -> anndata.AnnData:
    matrix = draw_matrix(num_cells)
    stored = {"csc": matrix.tocsc, "dense": matrix.toarray}.get(layout, matrix.copy)()
    names, genes = ([f"{kind}{i}" for i in range(count)] for kind, count in (("c", num_cells), ("g", NUM_GENES)))
    obs = pd.DataFrame({"cell_type": "T", "depth": 1.0}, index=names)
    return anndata.AnnData(stored, obs=obs, var=pd.DataFrame(index=genes))


def peak_of_reading(open_reader, path: Path) -> int:
    """Most bytes that Python and numpy held at a time."""
    turned._kept.clear()
    tracemalloc.start()
    with open_reader(path, matrix="X") as reader:
        num_cells, entries = reader.describe().num_cells, 0
        for start in range(0, num_cells, 256):
            entries += reader.read_rows(start, start + 256).nnz
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert entries == num_cells * GENES_A_CELL
    return peak


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("h5ad", "csr"),
        ("h5ad", "csc"),
        ("zarr-3", "csr"),
        *(
            pytest.param(name, layout, marks=pytest.mark.slow)
            for name, layout in [
                ("h5ad", "dense"),
                ("10x_h5-3", "csr"),
                ("10x_mtx-3", "csr"),
                ("loom", "csr"),
                ("scb", "csr"),
                ("triples-parquet", "csr"),
                ("triples-arrow", "csr"),
                ("h5mu", "csr"),
            ]
        ),
    ],
)
def test_memory_is_flat(name: str, layout: str, open_reader, write_format, tmp_path, monkeypatch):
    """Four times the cells take no more memory, but for their names."""
    monkeypatch.setattr(turned, "STRETCH_ENTRIES", 2**15)
    monkeypatch.setattr(mtx, "STRETCH_ENTRIES", 2**15)
    monkeypatch.setattr(triples, "STRETCH_ENTRIES", 2**15)
    monkeypatch.setattr(turned, "BUCKET_ROWS", 256)
    monkeypatch.setattr(rows, "DENSE_PIECE_BYTES", 2**21)
    peaks = []
    for num_cells in (1_024, 1_024, 4_096):
        path = write_format(name, build(num_cells, layout), tmp_path / f"{len(peaks)}")
        peaks.append(peak_of_reading(open_reader, path))  # the first also counts what is imported on the way
    assert peaks[2] < peaks[1] + 500 * (4_096 - 1_024)
    assert peaks[2] < 4_096 * GENES_A_CELL * 12  # less than the whole matrix


def test_resident_memory_is_flat(tmp_path):
    path = tmp_path / "a.h5ad"
    build(25_000, "csr").write_h5ad(path, compression="gzip", compression_opts=1)  # 40 MB of entries
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    num_cells, entries, grown_mib = map(int, done.stdout.split())
    assert (num_cells, entries) == (25_000, 25_000 * GENES_A_CELL)
    assert grown_mib < 10


def unnamed_files(folder: Path) -> int:
    """Open files of this process that have no name any more."""
    links = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return sum(link.startswith(str(folder)) and link.endswith("(deleted)") for link in links)


def test_what_was_turned_does_not_pile_up(plant, build_adata, open_reader, save, tmp_path, monkeypatch):
    monkeypatch.setattr(turned.tempfile, "tempdir", str(tmp_path))
    turned._kept.clear()
    for seed in range(5):
        planted = plant(seed)
        path = save(build_adata(planted, matrix=sparse.csc_matrix(planted.counts_CG)), tmp_path / f"{seed}.h5ad")
        for _ in range(2):
            with open_reader(path) as reader:
                assert np.array_equal(reader.read_rows(10, 20).toarray(), planted.counts_CG[10:20])
        assert 1 <= unnamed_files(tmp_path) <= turned.KEPT_FILES
        assert not list(tmp_path.glob("cytoray-rows-*"))  # nothing stays behind, even of a process that is killed
    turned._kept.clear()
    assert unnamed_files(tmp_path) == 0


def test_rows_on_both_sides_of_a_bucket(plant, build_adata, open_reader, save, tmp_path, monkeypatch):
    monkeypatch.setattr(turned, "BUCKET_ROWS", 7)
    monkeypatch.setattr(turned, "STRETCH_ENTRIES", 100)
    planted = plant(1)
    path = save(build_adata(planted, matrix=sparse.csc_matrix(planted.counts_CG)), tmp_path / "a.h5ad")
    with open_reader(path) as reader:
        for start, stop in ((0, 300), (6, 8), (7, 14), (13, 22), (299, 300), (0, 0)):
            assert np.array_equal(reader.read_rows(start, stop).toarray(), planted.counts_CG[start:stop])


def test_a_full_disk_is_said_so(plant, build_adata, open_reader, save, tmp_path, monkeypatch):
    path = save(build_adata(plant(2), matrix=sparse.csc_matrix(plant(2).counts_CG)), tmp_path / "a.h5ad")
    turned._kept.clear()
    disk = SimpleNamespace(close=lambda: None)

    def full(data: bytes) -> int:
        raise OSError(28, "No space left on device")

    disk.write = full
    monkeypatch.setattr(turned.tempfile, "TemporaryFile", lambda **options: disk)
    with open_reader(path) as reader, pytest.raises(CorpusError, match="No space left in") as caught:
        reader.read_rows(0, 10)
    assert "TMPDIR" in caught.value.remedy


@pytest.mark.parametrize("name", ["h5ad", "zarr-3", "scb", "10x_mtx-3", "triples-parquet"])
def test_a_store_that_fails_is_no_damaged_file(
    name, write_format, plant, build_adata, open_reader, upload, s3_uri, tmp_path, monkeypatch
):
    uri = upload(write_format(name, build_adata(plant(3)), tmp_path), s3_uri)
    monkeypatch.setattr(ranges, "BLOCK_BYTES", 2**12)
    monkeypatch.setattr(ranges, "KEPT_BLOCKS", 2)

    def fail(*arguments: object, **options: object) -> bytes:
        raise StorageError("the store is down")

    with open_reader(uri) as reader:
        if name != "triples-parquet":  # which is read when it is described
            reader.describe()
        turned._kept.clear()
        monkeypatch.setattr(storage, "read_ranges", fail)
        monkeypatch.setattr(storage, "read_bytes", fail)
        with pytest.raises(StorageError, match="the store is down"):
            reader.read_rows(0, 300)


def test_nothing_is_collected_while_hdf5_waits_for_the_store(
    write_format, plant, build_adata, open_reader, upload, s3_uri, tmp_path, monkeypatch
):
    """A garbage collection in the thread that fetches would wait for h5py's lock, which the waiting thread holds."""
    uri = upload(write_format("h5ad", build_adata(plant(3)), tmp_path), s3_uri)
    seen, read_ranges = [], storage.read_ranges

    def watched(uri: str, places: list[tuple[int, int]]) -> list[bytes]:
        seen.append(gc.isenabled())
        return read_ranges(uri, places)

    monkeypatch.setattr(storage, "read_ranges", watched)
    with open_reader(uri) as reader:
        reader.read_rows(0, 10)
    assert seen
    assert not any(seen)
    assert gc.isenabled()
