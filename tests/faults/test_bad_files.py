"""Malformed files through a real ingest: quarantined with file, place and reason, or refused where none may be bad."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest

from cytoray import storage
from cytoray.corpus.ingest import IngestResult
from cytoray.corpus.versions import verify
from cytoray.errors import CorpusError

from .conftest import make_config

pytestmark = pytest.mark.faults
PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 2_000


def _edit(change: Callable[[h5py.File], None]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file)

    return edit


def _replace(file: h5py.File, key: str, value: np.ndarray) -> None:
    attributes = dict(file[key].attrs)
    del file[key]
    file.create_dataset(key, data=value).attrs.update(attributes)


def _set(key: str, place: int, value: int) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        array = file[key][:]
        array[place] = value
        _replace(file, key, array)

    return change


def _fall(file: h5py.File) -> None:
    indptr = file["X/indptr"][:]
    indptr[50], indptr[51] = indptr[51], indptr[50]
    _replace(file, "X/indptr", indptr)


def _link_out(file: h5py.File) -> None:
    with h5py.File(Path(file.filename).parent.with_suffix(".elsewhere"), "w") as other:
        other["data"] = file["X/data"][:]
    del file["X/data"]
    file["X/data"] = h5py.ExternalLink("../sources.elsewhere", "data")


def _virtual(file: h5py.File) -> None:
    data = file["X/data"][:]
    with h5py.File(Path(file.filename).parent.with_suffix(".elsewhere"), "w") as other:
        other["data"] = data
    layout = h5py.VirtualLayout(data.shape, data.dtype)
    layout[:] = h5py.VirtualSource("../sources.elsewhere", "data", data.shape)
    del file["X/data"]
    file.create_virtual_dataset("X/data", layout)


def _raw_without_its_var(file: h5py.File) -> None:
    raw = file.create_group("raw")
    file.copy("X", raw)
    raw.attrs.update({"encoding-type": "raw", "encoding-version": "0.1.0"})
    file.copy("var", raw)
    _replace(raw, "var/_index", raw["var/_index"][:-7])
    _replace(file, "X/data", np.sqrt(file["X/data"][:]) * 0.37)  # so that the counts of raw.X are wanted


def _truncate(share: float) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def _garble(path: Path) -> None:
    with h5py.File(path) as file:
        chunk = file["X/data"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + 200] = bytes(200)
    path.write_bytes(bytes(content))


def _missing(*keys: str) -> Callable[[Path], None]:
    def change(file: h5py.File) -> None:
        for key in keys:
            del file[key]

    return _edit(change)


BAD = {
    "cut off at half": _truncate(0.5),
    "cut off at 99 %": _truncate(0.99),
    "zero bytes": lambda path: path.write_bytes(b""),
    "a PNG by another name": lambda path: path.write_bytes(PNG),
    "a text by another name": lambda path: path.write_text("cell,gene,count\n" * 50),
    "X missing": _missing("X"),
    "X/indices missing": _missing("X/indices"),
    "obs missing": _missing("obs"),
    "var missing": _missing("var"),
    "obs shorter than X": _edit(lambda file: file["X"].attrs.update(shape=np.array([150, 300]))),
    "raw.X and raw.var disagree": _edit(_raw_without_its_var),
    "an index out of range": _edit(_set("X/indices", 40, 5_000)),
    "a negative index": _edit(_set("X/indices", 40, -3)),
    "indptr falling": _edit(_fall),
    "indptr past the end": _edit(_set("X/indptr", -1, 10**7)),
    "X/data linked to another file": _edit(_link_out),
    "X/data virtual": _edit(_virtual),
    "a garbled chunk": _garble,
    "unknown encoding": _edit(lambda file: file["X"].attrs.update({"encoding-type": "quilt_matrix"})),
}


@pytest.fixture
def beside(sources: Path, tmp_path: Path) -> Path:
    """A copy of the clean sources, with a fourth file to be spoilt."""
    folder = tmp_path / "sources"
    shutil.copytree(sources, folder)
    shutil.copy(folder / "part-000.h5ad", folder / "spoilt.h5ad")
    return folder


@pytest.mark.parametrize("kind", BAD)
def test_a_malformed_file_is_quarantined_and_the_run_goes_on(
    kind: str, beside, tmp_path, ingest_here, clean: IngestResult, outcome
):
    BAD[kind](beside / "spoilt.h5ad")
    with pytest.raises(CorpusError) as caught:
        ingest_here(make_config(tmp_path / "strict", beside))
    message = str(caught.value)
    assert "spoilt.h5ad" in message
    assert caught.value.remedy
    assert "\n" not in message
    assert not storage.list_files(str(tmp_path / "strict" / "corpora" / "cells" / "versions"))

    config = make_config(tmp_path / "store", beside, checks={"max_bad_files": 1})
    result = ingest_here(config)
    (record,) = result.manifest.quarantined
    assert record.uri.endswith("spoilt.h5ad")
    assert record.reason
    assert record.remedy
    assert result.manifest.num_cells == clean.manifest.num_cells
    assert {source.identity for source in result.manifest.sources} == {f"part-00{i}.h5ad" for i in range(3)}
    assert "spoilt.h5ad" in _report(result)
    assert verify(config.store, "cells").damaged == ()
    outcome(f"F5 {kind}", 1, f"quarantined: {record.reason.split('.h5ad')[-1].strip(' :')[:70]}")


def _report(result: IngestResult) -> str:
    """The data report of a version, as text."""
    folder = storage.join(result.uri, result.manifest.increments[-1].report_key or "")
    return storage.read_bytes(storage.join(folder, "report.json")).decode()


def test_through_ray_all_are_told_from_the_good(beside, tmp_path, start_driver, clean, outcome):
    """Some are found by the driver, some by workers amid their rows."""
    kinds = ("cut off at half", "a PNG by another name", "an index out of range", "indptr falling", "a garbled chunk")
    for number, kind in enumerate(kinds):
        path = beside / f"bad-{number}.h5ad"
        shutil.copy(beside / "part-000.h5ad", path)
        BAD[kind](path)
    (beside / "spoilt.h5ad").unlink()
    config = make_config(tmp_path / "store", beside, checks={"max_bad_files": len(kinds)})
    found = start_driver(config, ray=True).outcome()
    assert [Path(record["uri"]).name for record in found["quarantined"]] == [f"bad-{i}.h5ad" for i in range(len(kinds))]
    assert found["cells"] == clean.manifest.num_cells
    strict = start_driver(make_config(tmp_path / "strict", beside), ray=True).outcome()
    assert strict["error"] == "CorpusError"
    assert "bad-" in strict["text"]
    outcome("F5 five bad files of eight, through Ray", len(kinds), "each quarantined; with none allowed, refused")


def test_more_bad_files_than_allowed_stop_the_run(beside: Path, tmp_path, ingest_here, outcome):
    for number in (1, 2):
        (beside / f"bad-{number}.h5ad").write_bytes(PNG)
    (beside / "spoilt.h5ad").unlink()
    with pytest.raises(CorpusError, match="max_bad_files") as caught:
        ingest_here(make_config(tmp_path / "store", beside, checks={"max_bad_files": 1}))
    assert "bad-2.h5ad" in str(caught.value)
    outcome("F5 two bad files, one allowed", 2, "refused, naming the second")


def test_a_quarantine_leaves_no_trace_in_the_cells(beside, tmp_path, ingest_here, clean, sources, outcome):
    """Found only while its rows are read, after others of its rows were spilled."""
    BAD["an index out of range"](beside / "spoilt.h5ad")
    with_bad = ingest_here(make_config(tmp_path / "with", beside, cells_per_shard=5_000, checks={"max_bad_files": 1}))
    without = ingest_here(make_config(tmp_path / "without", sources, cells_per_shard=5_000))
    assert len(with_bad.manifest.quarantined) == 1
    assert with_bad.manifest.content_digest == without.manifest.content_digest
    outcome("F5 found bad amid its rows", 1, "cells equal to a run without the file")


ODD = {
    "indices unsorted": lambda adata: _reverse_rows(adata),
    "indices twice": lambda adata: _split_entries(adata),
    "mixed objects in obs": lambda adata: adata.obs.__setitem__(
        "mixed", pd.Series(["a", 1, None, 2.5] * 50, index=adata.obs_names, dtype=object).astype(str)
    ),
}


def _reverse_rows(adata: anndata.AnnData) -> None:
    matrix = adata.X
    for start, stop in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True):
        matrix.indices[start:stop] = matrix.indices[start:stop][::-1].copy()
        matrix.data[start:stop] = matrix.data[start:stop][::-1].copy()
    matrix.has_sorted_indices = False


def _split_entries(adata: anndata.AnnData) -> None:
    """Each count of two and more as two entries of its column."""
    from scipy import sparse

    matrix = adata.X
    many = matrix.data > 1
    repeats = 1 + many.astype(int)
    data = np.repeat(matrix.data, repeats)
    firsts = np.cumsum(repeats) - repeats
    data[firsts[many]] = 1
    data[firsts[many] + 1] = matrix.data[many] - 1
    rows = np.add.reduceat(repeats, matrix.indptr[:-1])
    indptr = np.concatenate([[0], np.cumsum(rows)])
    built = sparse.csr_matrix(matrix.shape, dtype=np.float32)
    built.data, built.indices, built.indptr = data, np.repeat(matrix.indices, repeats), indptr.astype(np.int32)
    adata.X = built


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_file_gives_the_same_cells(kind: str, sources, tmp_path, ingest_here, clean, outcome):
    folder = tmp_path / "sources"
    shutil.copytree(sources, folder)
    for path in folder.glob("*.h5ad"):
        adata = anndata.read_h5ad(path)
        ODD[kind](adata)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adata.write_h5ad(path)
    result = ingest_here(make_config(tmp_path / "store", folder))
    assert result.manifest.content_digest == clean.manifest.content_digest
    warned = sum(source.warned.get("unsorted_indices", 0) for source in result.manifest.sources)
    if "indices" in kind:
        assert warned > 0
    outcome(f"F5 {kind}", max(warned, 1), "read as it was meant: the clean corpus")
