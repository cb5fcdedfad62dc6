"""What an export writes, read by AnnData and compared with what went in."""

from __future__ import annotations

import json
import subprocess
import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from typer.testing import CliRunner

from cytoray.cli.main import app
from cytoray.corpus import ingest as ingest_module
from cytoray.corpus.config import IngestConfig, ModalityConfig, SourceConfig
from cytoray.corpus.export import ExportOptions, export
from cytoray.corpus.ingest import ingest
from cytoray.corpus.manifest import load_manifest
from cytoray.errors import CorpusError

ANNBATCH = Path(__file__).parents[2] / ".venv-bench/bin/python"


@pytest.fixture(scope="module")
def made(plant, build_adata, save, tmp_path_factory) -> tuple[str, anndata.AnnData]:
    """A corpus of two shards with proteins, and the cells that went in."""
    folder = tmp_path_factory.mktemp("export")
    planted = plant(1, num_cells=400)
    adata = build_adata(planted)
    rng = np.random.default_rng(0)
    adata.obs["score"] = np.where(np.arange(400) % 5 == 0, np.nan, np.arange(400) / 4)
    adata.obs["control"] = pd.array([None, True, False, True] * 100, dtype="boolean")
    adata.obs["lane"] = np.arange(400) % 3
    adata.obs.loc[adata.obs_names[3], "cell_type"] = None
    adata.obsm["protein"] = pd.DataFrame(rng.integers(0, 9, (400, 2)), index=adata.obs_names, columns=["CD3", "CD4"])
    uri = save(adata, folder / "cells.h5ad")
    source = SourceConfig(uri=uri, modalities=(ModalityConfig(name="protein", matrix="obsm/protein"),))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest_module, "_map_tasks", lambda items, work, concurrency: map(work, items))
        ingest(IngestConfig(store=str(folder), corpus="cells", sources=(source,), cells_per_shard=256))
    return str(folder), adata


def read(path: Path, format: str) -> anndata.AnnData:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return anndata.read_h5ad(path) if format == "h5ad" else anndata.read_zarr(path)


@pytest.mark.parametrize("format", ["h5ad", "zarr"])
def test_everything_comes_back(format: Any, made, tmp_path, vocabulary):
    store, adata = made
    result = export(store, "cells", ExportOptions(to=str(tmp_path / "back"), format=format))
    back = read(tmp_path / "back", format)
    known = [gene for gene in adata.var_names if gene in vocabulary.index and adata[:, gene].X.sum() > 0]
    assert (result.num_cells, result.num_genes) == back.shape == (400, len(known))
    assert set(back.var_names) == set(known)
    assert set(back.obs_names) == set(adata.obs_names)
    back, adata = back[adata.obs_names, known].copy(), adata[:, known].copy()
    assert back.X.dtype == np.uint32
    assert (back.X != adata.X).nnz == 0
    assert (back.obsm["protein"].toarray() == adata.obsm["protein"].to_numpy()).all()
    assert list(back.uns["protein_features"]) == ["CD3", "CD4"]
    for column in ("cell_type", "depth", "score", "control", "lane"):
        seen, truth = back.obs[column].astype(object), adata.obs[column].astype(object)
        assert (seen.isna() == truth.isna()).all()
        assert (seen[~seen.isna()] == truth[~truth.isna()]).all(), column
    assert (back.obs["_source"].astype(str).str.endswith("cells.h5ad")).all()
    assert back.var["ensembl_id"].str.startswith("ENSG").mean() > 0.9


def test_a_selection_is_written(made, tmp_path):
    store, adata = made
    chosen = "cell_type == 'B cell' and lane > 0"
    result = export(store, "cells", ExportOptions(to=str(tmp_path / "b.h5ad"), select=chosen))
    expected = set(adata.obs_names[(adata.obs["cell_type"] == "B cell") & (adata.obs["lane"] > 0)])
    back = read(tmp_path / "b.h5ad", "h5ad")
    assert set(back.obs_names) == expected
    assert result.num_cells == len(expected)
    assert np.asarray(back.X.sum(1)).ravel().tolist() == adata[back.obs_names].X[:, :].sum(1).ravel().tolist()[0]


def test_what_was_exported_can_be_ingested_again(made, tmp_path, monkeypatch):
    store, _ = made
    export(store, "cells", ExportOptions(to=str(tmp_path / "cells.h5ad")))
    monkeypatch.setattr(ingest_module, "_map_tasks", lambda items, work, concurrency: map(work, items))
    source = SourceConfig(uri=str(tmp_path / "cells.h5ad"))
    again = ingest(IngestConfig(store=str(tmp_path), corpus="again", sources=(source,))).manifest
    first = load_manifest(store, "cells")
    assert (again.num_cells, again.num_entries) == (first.num_cells, first.num_entries)
    assert again.obs_columns.keys() == first.obs_columns.keys()


def test_nothing_is_overwritten_and_an_empty_selection_is_refused(made, tmp_path):
    store, _ = made
    (tmp_path / "there").write_text("mine")
    with pytest.raises(CorpusError, match="already exists"):
        export(store, "cells", ExportOptions(to=str(tmp_path / "there")))
    with pytest.raises(CorpusError, match="no cell is selected"):
        export(store, "cells", ExportOptions(to=str(tmp_path / "x"), select="lane > 7"))
    with pytest.raises(CorpusError, match=r"lanes.*lane"):
        export(store, "cells", ExportOptions(to=str(tmp_path / "x"), select="lanes > 7"))
    assert (tmp_path / "there").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_the_command(made, tmp_path):
    store, _ = made
    arguments = ["data", "export", "cells", "--store", store, "--to", str(tmp_path / "a.h5ad"), "--select", "lane == 1"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "133 cells" in done.output


def test_a_collection_has_datasets_of_whole_shards(made, tmp_path, monkeypatch):
    store, adata = made
    monkeypatch.setattr("cytoray.corpus.export.CELLS_PER_DATASET", 100)
    export(store, "cells", ExportOptions(to=str(tmp_path / "c.zarr"), format="annbatch"))
    assert sorted(path.name for path in (tmp_path / "c.zarr").glob("dataset_*")) == ["dataset_0", "dataset_1"]
    parts = [read(tmp_path / "c.zarr" / f"dataset_{number}", "zarr") for number in range(2)]
    sizes = [shard.num_cells for shard in load_manifest(store, "cells").shards]
    assert [part.n_obs for part in parts] == sizes
    assert (parts[0].var_names == parts[1].var_names).all()
    assert sparse.vstack([part.X for part in parts]).sum() == adata[:, parts[0].var_names].X.sum()


READER = """
import json, sys, warnings
warnings.simplefilter("ignore")
import anndata
from annbatch import DatasetCollection, Loader

def load(group):
    return anndata.AnnData(X=anndata.io.sparse_dataset(group["X"]), obs=anndata.io.read_elem(group["obs"])[["lane"]])

loader = Loader(batch_size=50, chunk_size=10, preload_nchunks=5, shuffle=True)
loader.use_collection(DatasetCollection(sys.argv[1], mode="r"), load_adata=load)
cells, total = 0, 0.0
for batch in loader:
    cells, total = cells + batch["X"].shape[0], total + float(batch["X"].sum())
print(json.dumps([cells, total]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not ANNBATCH.exists(), reason="annbatch lives in .venv-bench: make bench-setup")
def test_annbatch_reads_the_collection(made, tmp_path):
    store, adata = made
    export(store, "cells", ExportOptions(to=str(tmp_path / "c.zarr"), format="annbatch"))
    command = [str(ANNBATCH), "-c", READER, str(tmp_path / "c.zarr")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    back = read(tmp_path / "c.zarr" / "dataset_0", "zarr")
    assert json.loads(done.stdout) == [400, float(adata[:, back.var_names].X.sum())]
