"""Files that are damaged, cut short or of another build: refused in words, whatever is wrong with them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy import sparse

from cytoray.corpus.config import SourceConfig
from cytoray.corpus.readers.base import CellReader
from cytoray.corpus.readers.opening import open_source
from cytoray.errors import CorpusError, CytorayError, StorageError

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


def png() -> bytes:
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0\0")),
        (b"IEND", b""),
    ]
    body = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (png(), "looks like a PNG image"),
        (b"\x89HDF\r\n\x1a\n", "cannot be opened|truncated"),
        (b"gene,cell\n" * 1000, "looks like plain text"),
        (b"\x1f\x8b\x08" + bytes(100), "the gzip file cannot be read"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
        (b"PAR1" + bytes(50), "the table cannot be read"),
        (b"ARROW1" + bytes(50), "the table cannot be read"),
        (bytes(4096), "a file of unknown kind"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_that_are_no_h5ad(content: bytes, words: str, tmp_path):
    path = tmp_path / "bad.h5ad"
    path.write_bytes(content)
    with pytest.raises(CorpusError, match=words) as caught:
        open_reader(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path, words in ((tmp_path / "missing.h5ad", "no such object"), (tmp_path / "cells.zarr", "no such object")):
        with pytest.raises(StorageError, match=words) as caught:
            open_reader(path)
        assert str(path) in str(caught.value)
        assert caught.value.remedy


def test_unknown_matrix_and_label_are_answered_with_those_there(planted_file):
    path, _ = planted_file
    with open_reader(path, matrix="layers/cuonts") as reader, pytest.raises(CorpusError) as caught:
        reader.describe()
    assert "layers/cuonts" in caught.value.problem
    assert caught.value.remedy == "This file holds: X."
    with open_reader(path) as reader, pytest.raises(CorpusError) as caught:
        reader.labels("celltype")
    assert "'celltype'" in caught.value.problem
    assert "cell_type, depth" in caught.value.remedy
    assert caught.value.details["columns"] == ["cell_type", "depth"]


def reshape(file: h5py.File, shape: tuple[int, int]) -> None:
    file["X"].attrs["shape"] = shape


def replace(key: str, value: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        if key in file:
            del file[key]
        if value is dict:
            file.create_group(key)
        elif value is not None:
            file[key] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (replace("X", None), "no expression matrix"),
        (replace("obs", None), "there is no 'obs', so this is not an AnnData file"),
        (replace("var", None), "there is no 'var', so this is not an AnnData file"),
        (replace("X", dict), "X cannot be read"),
        (replace("X", 5.0), "X cannot be read"),
        (replace("X", np.zeros(300)), "X cannot be read"),
        (replace("X", np.zeros((300, 300, 2))), "X cannot be read"),
        (replace("X", np.array([[b"a"] * 300] * 300)), "X, rows 0 to 64: cannot be read .*not numbers"),
        (replace("X", np.zeros((300, 299))), "300 along var|X has 299 .* var has 300"),
        (replace("X", np.zeros((299, 300))), "X has 299 .* obs has 300"),
        (lambda file: reshape(file, (300, 7)), "X has 7 entries along var, but var has 300"),
        (lambda file: reshape(file, (200, 300)), "cannot be read|X has 200 .* obs has 300"),
        (replace("X/indices", np.full(10, 2**30)), r"X cannot be read \(data has shape .* indices \(10,\)"),
        (
            lambda file: file["X/indices"].__setitem__(5, 300),
            r"rows 0 to 64: .*a column index is 300, but there are 300",
        ),
        (lambda file: file["X/indices"].__setitem__(5, -1), "a column index is -1, but there are 300"),
        (lambda file: file["X/indptr"].__setitem__(5, 2**31 - 1), "the row pointers .indptr. fall"),
        (lambda file: file["X/indptr"].__setitem__(300, 2**31 - 1), "a row pointer is 2,147,483,647"),
        (replace("X/indptr", np.arange(5)), "indptr has shape .5,., but there are 300 rows"),
        (replace("X/data", None), "X cannot be read .*data"),
        (replace("X/data", dict), "X cannot be read .*data is not an array"),
        (replace("X/indptr", np.arange(301) * -5), "rows 0 to 64: cannot be read .*fall"),
        (replace("obs", 5), "obs cannot be read"),
        (replace("obs", dict), "obs cannot be read"),
        (replace("obs", np.zeros(300)), "obs cannot be read"),
        (replace("obs/_index", None), "obs cannot be read"),
        (replace("obs/cell_type/codes", np.full(300, 99, np.int8)), "obs cannot be read .*obs/cell_type"),
        (replace("var", dict), "var cannot be read"),
        (replace("layers", 5), "the list of matrices cannot be read"),
    ],
)
def test_files_of_another_build_are_refused_in_words(change: Callable, words: str, planted_file):
    path, _ = planted_file
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(CorpusError, match=words) as caught:
        read_everything(path)
    assert str(path) in str(caught.value)
    assert caught.value.remedy


def test_raw_x_and_raw_var_that_disagree(plant, build_adata, save, tmp_path):
    adata = build_adata(plant(0))
    adata.raw = adata
    path = save(adata[:, :40].copy(), tmp_path / "a.h5ad")
    with h5py.File(path, "a") as file:
        del file["raw/var"]
        file.copy("var", "raw/var")
    with open_reader(path) as reader, pytest.raises(CorpusError, match=r"raw\.X has 300 .* raw/var has 40") as caught:
        reader.describe()
    assert caught.value.details["key"] == "raw/var"
    with h5py.File(path, "a") as file:
        del file["raw/var"]
    with open_reader(path) as reader, pytest.raises(CorpusError, match="there is no 'raw/var'"):
        reader.describe()


@pytest.mark.parametrize("layout", FORMATS)
def test_a_truncated_file_is_refused_at_every_length(layout: str, plant, build_adata, save, tmp_path):
    planted = plant(0)
    path = Path(save(build_adata(planted, matrix=FORMATS[layout](planted.counts_CG)), tmp_path / "a.h5ad"))
    whole, cut = path.read_bytes(), tmp_path / "cut.h5ad"
    for length in np.linspace(1, len(whole) - 1, 40).astype(int):
        cut.write_bytes(whole[:length])
        with pytest.raises(CorpusError) as caught:
            read_everything(cut)
        assert str(cut) in str(caught.value)
        assert caught.value.remedy


@pytest.mark.parametrize("layout", FORMATS)
def test_flipped_bytes_never_raise_anything_but_our_errors(layout: str, plant, build_adata, save, tmp_path):
    planted = plant(0)
    adata = build_adata(planted, matrix=FORMATS[layout](planted.counts_CG))
    whole, bad = Path(save(adata, tmp_path / "a.h5ad")).read_bytes(), tmp_path / "bad.h5ad"
    messages: list[str] = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        damaged = np.frombuffer(whole, np.uint8).copy()
        head = seed % 2 == 0
        where = rng.integers(0, 2048 if head else len(whole), rng.integers(1, 20))
        damaged[where] ^= rng.integers(1, 256, len(where), dtype=np.uint8)
        bad.write_bytes(damaged.tobytes())
        try:
            read = read_everything(bad)
        except CytorayError as error:
            messages.append(str(error))
        else:
            # The structure lies in front; the numbers behind it carry no checksum of their own.
            assert not head or np.array_equal(read, planted.counts_CG)
    assert len(messages) > 15
    assert all(str(bad) in message for message in messages)
