"""Bombs and malformed h5ad files: the sandbox refuses each, or is killed, and the service takes little memory."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
import scipy.sparse as sp
from refusals import MIB, refusal_of
from request_bodies import h5ad_body

from cytoray.serving.payloads.media import H5AD, Form

GENES = [f"GENE{number:02d}" for number in range(40)]
COUNTS = sp.csr_matrix(np.random.default_rng(0).poisson(1.0, (5, 40)).astype(np.float32))
ZEROS = bytes(64 * MIB)


def _external_link(file: h5py.File) -> None:
    del file["X/data"]
    file["X/data"] = h5py.ExternalLink("/etc/passwd", "/data")


def _external_storage(file: h5py.File) -> None:
    del file["X/data"]
    file["X"].create_dataset("data", (4,), np.float32, external=[("/etc/passwd", 0, 16)])


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), np.float32)
    layout[:] = h5py.VirtualSource("/etc/passwd", "data", (4,))
    del file["X/data"]
    file["X"].create_virtual_dataset("data", layout)


def _other_filter(file: h5py.File) -> None:
    del file["X/data"]
    file["X"].create_dataset("data", data=COUNTS.data, **hdf5plugin.Blosc())


def _dangling(file: h5py.File) -> None:
    del file["X/data"]
    file["X/data"] = h5py.SoftLink("/nowhere")


def _endless(file: h5py.File) -> None:
    group = file
    for _ in range(40):
        group = group.create_group("deeper")


def _circle(file: h5py.File) -> None:
    file["uns/again"] = file["/"]  # harmless by itself
    del file["obs"]


def _huge_matrix(file: h5py.File) -> None:
    """A matrix of zeros that takes nothing in the file, and 400 GB in memory."""
    del file["X"]
    file.create_dataset("X", (5, 40), np.float32)
    del file["var/_index"]
    file["var"].create_dataset("_index", (10**11,), h5py.string_dtype(), chunks=(1024,))


def _huge_values(file: h5py.File) -> None:
    del file["X/data"]
    file["X"].create_dataset("data", (10**12,), np.float32, chunks=(MIB,))


def _huge_chunk(file: h5py.File) -> None:
    del file["X/data"]
    file["X"].create_dataset("data", (10**12,), np.float32, chunks=(10**9,))


def _bomb_in_a_chunk(file: h5py.File) -> None:
    """A chunk of 16 KiB whose gzip stream goes on for 2 GiB."""
    del file["X/data"]
    made = file["X"].create_dataset("data", (4096,), np.float32, chunks=(4096,), compression="gzip")
    made.id.write_direct_chunk((0,), _deflated_zeros())


def _deflated_zeros() -> bytes:
    packer = zlib.compressobj(1)
    return b"".join(packer.compress(ZEROS) for _ in range(8)) + packer.flush()


def _set(key: str, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[key][...] = value

    return change


def _remove(key: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[key]

    return change


def _rename_encoding(file: h5py.File) -> None:
    file["X"].attrs["encoding-type"] = "coo_matrix"


def _numbers_for_names(file: h5py.File) -> None:
    del file["var/_index"]
    file["var/_index"] = np.arange(40)


H5ADS: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "a link to another file": (_external_link, "malformed_payload"),
    "data in another file": (_external_storage, "malformed_payload"),
    "a virtual dataset": (_virtual, "malformed_payload"),
    "a filter that would be loaded": (_other_filter, "malformed_payload"),
    "a link to nowhere": (_dangling, "malformed_payload"),
    "forty levels": (_endless, "malformed_payload"),
    "a circle": (_circle, "malformed_payload"),
    "names without end": (_huge_matrix, "too_large"),
    "values without end": (_huge_values, "too_large"),
    "a chunk of 4 GB": (_huge_chunk, "malformed_payload"),
    "a bomb in a chunk": (_bomb_in_a_chunk, "malformed_payload"),
    "indptr that falls": (_set("X/indptr", [0, 9, 5, 20, 30, COUNTS.nnz]), "malformed_payload"),
    "an index beyond the genes": (_set("X/indices", 40), "malformed_payload"),
    "no X": (_remove("X"), "malformed_payload"),
    "no names of genes": (_remove("var/_index"), "malformed_payload"),
    "an unknown encoding": (_rename_encoding, "malformed_payload"),
    "numbers for names": (_numbers_for_names, "malformed_payload"),
    "values that are not finite": (_set("X/data", np.inf), "bad_values"),
}


@pytest.mark.parametrize("case", H5ADS)
def test_h5ad_bombs(case: str, tmp_path: Path) -> None:
    change, code = H5ADS[case]
    error = refusal_of(h5ad_body(GENES, COUNTS, tmp_path, change=change), Form(H5AD))
    assert error.code == code
    assert "passwd" not in str(error)


@pytest.mark.parametrize("body", [b"", ZEROS[:MIB], b"\x89HDF\r\n\x1a\n" + ZEROS[:1000]])
def test_bodies_that_are_no_h5ad(body: bytes) -> None:
    assert refusal_of(body, Form(H5AD)).code == "malformed_payload"


def test_a_sandbox_that_takes_too_long_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("cytoray.serving.payloads.h5ad_cells.WALL_S", 0)
    error = refusal_of(h5ad_body(GENES, COUNTS, tmp_path), Form(H5AD))
    assert "memory or time" in str(error)
