"""Compressed files and archives, recognised by content: read like the file in them, with nothing left on disk."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cytoray.corpus.readers import unpacking
from cytoray.errors import CorpusError

FORMATS = ("h5ad", "10x_h5-3", "loom", "triples-parquet", "zarr-2", "zarr-3", "10x_mtx-3", "scb", "h5mu")
COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}


def zipped(path: Path, target: Path, *, root: str = "") -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file():
                archive.write(file, root + str(file.relative_to(path) if path.is_dir() else file.name))
    return target


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_from_its_package(
    name: str, write_format, plant, build_adata, open_reader, upload, s3_uri, tmp_path
):
    path = write_format(name, build_adata(plant(1)), tmp_path / "in")
    packed = tmp_path / f"{path.name}.gz"
    if path.is_dir():
        packed = zipped(path, tmp_path / f"{path.name}.zip", root="" if name == "zarr-2" else f"{path.name}/")
    else:
        packed.write_bytes(gzip.compress(path.read_bytes()))
    with open_reader(path) as plain:
        for uri in (packed, upload(packed, s3_uri)):
            with open_reader(uri) as reader:
                description = reader.describe()
                assert description.format == name.partition("-")[0]
                assert description.num_bytes == packed.stat().st_size
                assert reader.gene_names == plain.gene_names
                assert list(reader.obs.index) == list(plain.obs.index)
                assert (reader.read_rows(0, 300) != plain.read_rows(0, 300)).nnz == 0


@pytest.mark.parametrize("ending", COMPRESSED)
def test_the_content_tells_the_compression_whatever_the_name(
    ending: str, write_format, plant, build_adata, open_reader, tmp_path
):
    planted = plant(2)
    path = write_format("h5ad", build_adata(planted), tmp_path)
    data = path.read_bytes()
    path.write_bytes(COMPRESSED[ending](data))  # an .h5ad that is compressed
    plain = tmp_path / f"plain.h5ad.{ending}"
    plain.write_bytes(data)  # what the browser unpacked, under its old name
    for uri in (path, plain):
        with open_reader(uri) as reader:
            assert np.array_equal(reader.read_rows(0, 300).toarray(), planted.counts_CG)


def test_tables_of_mtx_are_unpacked_by_content(write_format, plant, build_adata, open_reader, tmp_path):
    planted = plant(3)
    for version, change in ((2, gzip.compress), (3, gzip.decompress)):
        folder = write_format(f"10x_mtx-{version}", build_adata(planted), tmp_path / str(version))
        for file in folder.iterdir():
            file.write_bytes(change(file.read_bytes()))
        with open_reader(folder) as reader:
            assert np.array_equal(reader.read_rows(0, 300).toarray(), planted.counts_CG)


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_the_matrix_in_a_tar_archive_is_read(ending: str, write_format, plant, build_adata, open_reader, tmp_path):
    planted = plant(4)
    folder = write_format("10x_mtx-3", build_adata(planted), tmp_path)
    path = tmp_path / f"filtered_feature_bc_matrix.{ending}"
    with tarfile.open(path, "w:gz" if ending.endswith("gz") else "w") as archive:
        archive.add(folder, "./filtered_feature_bc_matrix")
    with open_reader(path) as reader:
        assert np.array_equal(reader.read_rows(0, 300).toarray(), planted.counts_CG)


def test_an_archive_of_several_sources_or_of_none_is_refused(planted_file, open_reader, tmp_path):
    path = Path(planted_file[0])
    both = tmp_path / "both.zip"
    with zipfile.ZipFile(both, "w") as archive:
        archive.write(path, "s1/a.h5ad")
        archive.write(path, "s2/a.h5ad")
    with pytest.raises(CorpusError, match=r"holds 2 sources of cells \(s1/a.h5ad, s2/a.h5ad\)") as caught:
        open_reader(both)
    assert caught.value.remedy == "Unpack it and name the folder."
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(CorpusError, match="holds no file of cells"):
        open_reader(tmp_path / "none.zip")


@pytest.mark.parametrize("ending", [*COMPRESSED, "zip", "tar.gz"])
def test_a_truncated_package_is_refused_with_its_own_name(ending: str, planted_file, open_reader, tmp_path):
    path = Path(planted_file[0])
    if ending == "zip":
        data = zipped(path, tmp_path / "whole.zip").read_bytes()
    elif ending == "tar.gz":
        sink = io.BytesIO()
        with tarfile.open(fileobj=sink, mode="w:gz") as archive:
            archive.add(path, path.name)
        data = sink.getvalue()
    else:
        data = COMPRESSED[ending](path.read_bytes())
    for length in (20, len(data) // 2, len(data) - 9):
        cut = tmp_path / f"cut-{length}.h5ad.{ending}"
        cut.write_bytes(data[:length])
        with pytest.raises(CorpusError) as caught:
            open_reader(cut)
        assert str(cut) in str(caught.value)
        assert "copy or download it again" in caught.value.remedy


def test_nothing_stays_on_disk_even_if_the_process_is_killed(planted_file, tmp_path):
    path, scratch = Path(planted_file[0]), tmp_path / "scratch"
    scratch.mkdir()
    packed = tmp_path / "a.h5ad.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    code = """
import os, signal, sys
from cytoray.corpus.config import SourceConfig
from cytoray.corpus.readers.opening import open_source
reader = open_source(SourceConfig(uri=sys.argv[1]))
assert reader.describe().num_cells == 300
assert not os.listdir(os.environ["TMPDIR"])
os.kill(os.getpid(), signal.SIGKILL)
"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(packed)], env={**os.environ, "TMPDIR": str(scratch)}, capture_output=True
    )
    assert run.returncode == -9, run.stderr
    assert not list(scratch.iterdir())


def test_a_file_is_unpacked_once_for_many_readers(planted_file, open_reader, tmp_path, monkeypatch):
    packed = tmp_path / "a.h5ad.gz"
    packed.write_bytes(gzip.compress(Path(planted_file[0]).read_bytes()))
    made: list[int] = []
    scratch = unpacking.Scratch
    monkeypatch.setattr(unpacking, "Scratch", lambda: made.append(1) or scratch())
    for _ in range(3):
        with open_reader(packed) as reader:
            reader.read_rows(0, 10)
    assert len(made) == 1


def test_a_full_disk_is_named(planted_file, open_reader, tmp_path, monkeypatch):
    packed = tmp_path / "a.h5ad.gz"
    packed.write_bytes(gzip.compress(Path(planted_file[0]).read_bytes()))

    class Full:
        def write(self, data: bytes) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(unpacking, "Scratch", Full)
    with pytest.raises(CorpusError, match=f"No space left in {tempfile.gettempdir()}") as caught:
        open_reader(packed)
    assert "TMPDIR" in caught.value.remedy
