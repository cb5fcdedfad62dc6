"""Bad values through a real ingest: refused with rule, cell and remedy, or dropped and counted, as the rule is set."""

from __future__ import annotations

import json
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
from cytoray.corpus.stream import load_cells
from cytoray.corpus.synthetic import SynthConfig, synthesise
from cytoray.corpus.versions import verify
from cytoray.errors import CorpusError

from .conftest import make_config

pytestmark = pytest.mark.faults
ROWS = (7, 130)  # spoilt, in different tasks


def _put(value: float) -> Callable[[anndata.AnnData], None]:
    def change(adata: anndata.AnnData) -> None:
        for row in ROWS:
            adata.X.data[adata.X.indptr[row]] = value

    return change


def _empty(adata: anndata.AnnData) -> None:
    for row in ROWS:
        adata.X.data[adata.X.indptr[row] : adata.X.indptr[row + 1]] = 0


def _few(adata: anndata.AnnData) -> None:
    for row in ROWS:
        adata.X.data[adata.X.indptr[row] + 3 : adata.X.indptr[row + 1]] = 0


def _copy(adata: anndata.AnnData) -> None:
    dense = adata.X.toarray()
    for row in ROWS:
        dense[row] = dense[row + 1]
    adata.X = type(adata.X)(dense)


CELLS = {  # rule -> how two cells of a file come to break it
    "not_finite": _put(np.nan),
    "not_finite (Inf)": _put(np.inf),
    "negative": _put(-2.0),
    "non_integer": _put(2.5),
    "empty_cell": _empty,
    "too_few_genes": _few,
    "duplicate_cell": _copy,
}


@pytest.fixture
def spoil(sources: Path, tmp_path: Path) -> Callable[..., Path]:
    """A function that copies the sources, their second file changed."""

    def copy(change: Callable[[anndata.AnnData], object]) -> Path:
        folder = tmp_path / "sources"
        shutil.copytree(sources, folder)
        path = folder / "part-001.h5ad"
        adata = anndata.read_h5ad(path)
        change(adata)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # doubled names are meant
            adata.write_h5ad(path)
        return folder

    return copy


def _checks(rule: str, severity: str) -> dict[str, object]:
    return {"rules": {rule: severity}, "min_genes": 4 if rule == "too_few_genes" else 1}


@pytest.mark.parametrize("kind", CELLS)
def test_a_bad_cell_is_dropped_and_counted(kind: str, spoil, ingest_here, tmp_path, outcome):
    rule = kind.partition(" ")[0]
    config = make_config(tmp_path / "store", spoil(CELLS[kind]), checks=_checks(rule, "drop"))
    result = ingest_here(config)
    assert result.manifest.num_cells == 600 - len(ROWS)
    dropped = {source.identity: source.dropped for source in result.manifest.sources}
    assert dropped == {"part-000.h5ad": {}, "part-001.h5ad": {rule: len(ROWS)}, "part-002.h5ad": {}}
    assert f'"{rule}": {len(ROWS)}' in _report(result)
    assert verify(config.store, "cells").damaged == ()
    outcome(f"F6 {kind}, drop", len(ROWS), f"{len(ROWS)} cells dropped, in manifest and report")


@pytest.mark.parametrize("kind", CELLS)
def test_a_bad_cell_refuses_its_file(kind: str, spoil, ingest_here, tmp_path, clean, outcome):
    rule = kind.partition(" ")[0]
    folder = spoil(CELLS[kind])
    with pytest.raises(CorpusError) as caught:
        ingest_here(make_config(tmp_path / "strict", folder, checks=_checks(rule, "error")))
    error = caught.value
    assert error.details["rule"] == rule
    assert "part-001.h5ad" in str(error)
    assert error.remedy
    assert storage.list_files(str(tmp_path / "strict" / "corpora" / "cells" / "versions")) == []
    text = str(error).split(".h5ad", 1)[-1].strip(" :")
    outcome(f"F6 {kind}, error", 1, f"refused: {text[:75]}")


def _report(result: IngestResult) -> str:
    folder = storage.join(result.uri, result.manifest.increments[-1].report_key or "")
    text = storage.read_bytes(storage.join(folder, "report.json")).decode()
    return json.dumps(json.loads(text))  # with one space after each colon


def test_a_duplicate_across_files_is_kept_once(sources, ingest_here, tmp_path, clean, outcome):
    folder = tmp_path / "sources"
    shutil.copytree(sources, folder)
    shutil.copy(folder / "part-000.h5ad", folder / "part-003.h5ad")
    result = ingest_here(make_config(tmp_path / "store", folder))
    assert result.manifest.num_cells == 600
    dropped = {source.identity: source.dropped.get("duplicate_cell", 0) for source in result.manifest.sources}
    assert dropped["part-003.h5ad"] == 200  # the smaller identity keeps its cells
    outcome("F6 a file copied under another name", 200, "each cell kept once, of the first file")


def test_doubled_names_are_counted(spoil, ingest_here, tmp_path, clean, outcome):
    def double(adata: anndata.AnnData) -> None:
        names = adata.obs_names.to_numpy().copy()
        names[list(ROWS)] = names[0]
        adata.obs_names = pd.Index(names)

    result = ingest_here(make_config(tmp_path / "store", spoil(double)))
    warned = result.manifest.sources[1].warned["duplicate_barcode"]
    assert warned == len(ROWS)
    assert result.manifest.num_cells == 600  # cell ids tell the rows apart
    outcome("F6 duplicate barcodes", warned, "warned of, all cells kept")


def test_columns_of_one_gene_are_summed(spoil, ingest_here, tmp_path, sources, outcome):
    def double(adata: anndata.AnnData) -> None:
        genes = adata.var_names.to_numpy().copy()
        genes[11] = genes[10]
        adata.var_names = pd.Index(genes)

    result = ingest_here(make_config(tmp_path / "store", spoil(double)))
    assert '"duplicate_gene": "' in _report(result)  # which says how many, and which
    expected = 0
    for path in (tmp_path / "sources").glob("*.h5ad"):
        with h5py.File(path) as file:
            expected += file["X/data"][:].sum()
    assert load_cells(str(tmp_path / "store"), result.manifest).values.sum() == expected
    outcome("F6 duplicate genes", 1, "counts summed, none lost")


def test_ensembl_ids_give_the_same_cells(sources, ingest_here, tmp_path, clean, outcome):
    import gzip
    from importlib.resources import files

    table = gzip.decompress((files("cytoray.tokens") / "data" / "human_genes.tsv.gz").read_bytes()).decode()
    rows = [line.split("\t") for line in table.splitlines()[1:]]
    ensembl = {row[1]: row[0] for row in rows if row[0] and row[1]}
    folder = tmp_path / "sources"
    shutil.copytree(sources, folder)
    changed = 0
    for path in folder.glob("*.h5ad"):
        adata = anndata.read_h5ad(path)
        names = [f"{ensembl[name]}.7" if name in ensembl else name for name in adata.var_names]
        changed += sum(new != old for new, old in zip(names, adata.var_names, strict=True))
        adata.var_names = names
        adata.write_h5ad(path)
    result = ingest_here(make_config(tmp_path / "store", folder))
    assert result.manifest.content_digest == clean.manifest.content_digest
    outcome("F6 Ensembl ids with versions", changed, "the clean corpus")


@pytest.mark.parametrize("kind", ["mouse", "nonsense"])
def test_genes_of_another_world_are_refused(kind: str, spoil, ingest_here, tmp_path, outcome):
    def rename(adata: anndata.AnnData) -> None:
        new = [name.capitalize() if kind == "mouse" else f"probe_{i}_at" for i, name in enumerate(adata.var_names)]
        adata.var_names = new

    with pytest.raises(CorpusError) as caught:
        ingest_here(make_config(tmp_path / "store", spoil(rename)))
    assert "part-001.h5ad" in str(caught.value)
    if kind == "mouse":
        assert "mouse" in str(caught.value)
    outcome(f"F6 genes: {kind}", 1, f"refused: {str(caught.value).split('.h5ad', 1)[-1].strip(' :')[:75]}")


def test_all_kinds_at_once_leave_the_good_files(tmp_path, ingest_here, outcome):
    folder = tmp_path / "sources"
    synthesise(folder, SynthConfig(num_cells=1_200, num_files=6, num_genes=300, mean_genes=60.0))
    for number, kind in enumerate(("not_finite", "negative", "non_integer")):
        path = folder / f"part-00{number}.h5ad"
        adata = anndata.read_h5ad(path)
        CELLS[kind](adata)
        adata.write_h5ad(path)
    config = make_config(tmp_path / "store", folder, checks={"max_bad_files": 3})
    result = ingest_here(config)
    assert sorted(record.rule for record in result.manifest.quarantined) == ["negative", "non_integer", "not_finite"]
    assert result.manifest.num_cells == 600
    outcome("F6 three bad files of six", 3, "each quarantined by its rule, the rest ingested")
