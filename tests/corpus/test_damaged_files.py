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
from cytoray.corpus.readers import H5adReader
from cytoray.errors import CorpusError, CytorayError, StorageError

FORMATS: dict[str, Callable[[np.ndarray], object]] = {
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "dense": np.asarray,
}


def open_reader(path: str | Path, **options: object) -> H5adReader:
    return H5adReader(SourceConfig(uri=str(path), **options))


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
        (png(), "not an h5ad file"),
        (b"\x89HDF\r\n\x1a\n", "cannot be opened|truncated"),
        (b"gene,cell\n" * 1000, "not an h5ad file"),
    ],
)
def test_files_that_are_no_h5ad(content: bytes, words: str, tmp_path):
    path = tmp_path / "bad.h5ad"
    path.write_bytes(content)
    with pytest.raises(CorpusError, match=words) as caught:
        open_reader(path)
    assert str(path) in str(caught.value)
    assert caught.value.remedy


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path, words in ((tmp_path / "missing.h5ad", "no such object"), (tmp_path, "is a folder")):
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
        (replace("obs", None), "no 'obs', so it is not an AnnData file"),
        (replace("var", None), "no 'var', so it is not an AnnData file"),
        (replace("X", dict), "X cannot be read"),
        (replace("X", 5.0), "X cannot be read"),
        (replace("X", np.zeros(300)), "X cannot be read"),
        (replace("X", np.zeros((300, 300, 2))), "X cannot be read"),
        (replace("X", np.array([[b"a"] * 300] * 300)), "X, rows 0 to 256: cannot be read"),
        (replace("X", np.zeros((300, 299))), "300 along var|X has 299 .* var has 300"),
        (replace("X", np.zeros((299, 300))), "X has 299 .* obs has 300"),
        (lambda file: reshape(file, (300, 7)), "X, rows 0 to 256: cannot be read"),
        (lambda file: reshape(file, (200, 300)), "cannot be read|X has 200 .* obs has 300"),
        (replace("X/indices", np.full(10, 2**30)), "X, rows 0 to 256: cannot be read"),
        (replace("X/data", None), "X, rows 0 to 256: cannot be read"),
        (replace("X/data", dict), "X, rows 0 to 256: cannot be read"),
        (replace("X/indptr", np.arange(301) * -5), "X, rows 0 to 256: cannot be read"),
        (replace("obs", 5), "obs cannot be read"),
        (replace("obs", dict), "obs cannot be read"),
        (replace("obs", np.zeros(300)), "obs cannot be read"),
        (replace("obs/_index", None), "obs cannot be read"),
        (replace("obs/cell_type/codes", np.full(300, 99, np.int8)), "obs cannot be read"),
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
