"""Proteins and peaks beside genes: an ingest keeps their counts and names, and refuses what lost its counts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from anndata.io import write_elem
from decode_corpus import read_corpus
from scipy import sparse

from cytoray.corpus import ingest as ingest_module
from cytoray.corpus.config import IngestConfig, ModalityConfig, SourceConfig
from cytoray.corpus.ingest import ingest
from cytoray.corpus.ingesting.planning import plan_ingest
from cytoray.errors import CorpusError

PROTEINS, PEAKS = ("CD3", "CD19"), tuple(f"chr1:{1000 * n}-{1000 * n + 500}" for n in range(30))
TYPED = {"protein": "mod/Antibody Capture", "peaks": "mod/Peaks"}


@dataclasses.dataclass(frozen=True)
class Multiome:
    """Cells with three kinds of features, as an AnnData of one matrix would have them."""

    genes: anndata.AnnData
    proteins: np.ndarray
    peaks: np.ndarray

    def typed(self) -> anndata.AnnData:
        """One matrix, columns of all kinds mixed, with ``feature_types``."""
        names = [*self.genes.var_names, *PROTEINS, *PEAKS]
        kinds = ["Gene Expression"] * self.genes.n_vars + ["Antibody Capture"] * 2 + ["Peaks"] * len(PEAKS)
        values = np.hstack([self.genes.X.toarray(), self.proteins, self.peaks])
        order = np.random.default_rng(0).permutation(len(names))
        var = pd.DataFrame({"feature_types": np.array(kinds)[order]}, index=np.array(names)[order])
        return anndata.AnnData(sparse.csr_matrix(values[:, order]), obs=self.genes.obs, var=var)

    def expected(self, uri: str) -> dict[str, dict[tuple[str, str], dict[int, int]]]:
        """Counts by modality, cell and place of the feature among the sorted names."""
        found = {}
        for name, values, features in (("protein", self.proteins, PROTEINS), ("peaks", self.peaks, PEAKS)):
            order = np.argsort(features)
            found[name] = {
                (uri, cell): {place: int(row[at]) for place, at in enumerate(order) if row[at]}
                for cell, row in zip(self.genes.obs_names, values, strict=True)
            }
        return found


@pytest.fixture
def multiome(plant, build_adata) -> Multiome:
    rng = np.random.default_rng(3)
    genes = build_adata(plant(3, num_cells=70))
    return Multiome(genes, rng.integers(0, 700, (70, 2)), rng.poisson(0.3, (70, len(PEAKS))))


@pytest.fixture(autouse=True)
def _in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_module, "_map_tasks", lambda items, work, concurrency: map(work, items))


def configure(folder: Path, uri: str, matrices: dict[str, str]) -> IngestConfig:
    modalities = tuple(ModalityConfig(name=name, matrix=matrix) for name, matrix in matrices.items())
    source = SourceConfig(uri=uri, modalities=modalities)
    return IngestConfig(store=str(folder / "store"), corpus="cells", sources=(source,), rows_per_task=25)


def write_h5mu(multiome: Multiome, path: Path) -> str:
    frames = {
        "rna": multiome.genes,
        "prot": anndata.AnnData(multiome.proteins, obs=multiome.genes.obs[[]], var=pd.DataFrame(index=PROTEINS)),
        "atac": anndata.AnnData(multiome.peaks, obs=multiome.genes.obs[[]], var=pd.DataFrame(index=PEAKS)),
    }
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "MuData", "encoding-version": "0.1.0"})
        for name, modality in frames.items():
            write_elem(file, f"mod/{name}", modality)
        write_elem(file, "obs", multiome.genes.obs[[]])
    return str(path)


@pytest.mark.parametrize("form", ["typed h5ad", "h5mu", "obsm"])
def test_proteins_and_peaks_come_back_exactly(form, multiome, save, tmp_path):
    matrices = {
        "typed h5ad": TYPED,
        "h5mu": {"protein": "mod/prot", "peaks": "mod/atac"},
        "obsm": {"protein": "obsm/proteins", "peaks": "obsm/peaks"},
    }[form]
    if form == "typed h5ad":
        uri = str(save(multiome.typed(), tmp_path / "cells.h5ad"))
    elif form == "h5mu":
        uri = write_h5mu(multiome, tmp_path / "cells.h5mu")
    else:
        adata = multiome.genes.copy()
        adata.obsm["proteins"] = pd.DataFrame(multiome.proteins, index=adata.obs_names, columns=PROTEINS)
        adata.obsm["peaks"] = sparse.csr_matrix(multiome.peaks)
        adata.uns["peaks_names"] = np.array(PEAKS, object)
        uri = str(save(adata, tmp_path / "cells.h5ad"))
    result = ingest(configure(tmp_path, uri, matrices))
    manifest = result.manifest
    assert manifest.modalities == {"protein": tuple(sorted(PROTEINS)), "peaks": tuple(sorted(PEAKS))}
    assert manifest.modality_values == {"protein": "counts", "peaks": "counts"}
    for name, cells in multiome.expected(uri).items():
        assert read_corpus(Path(result.uri), modality=name) == cells
    folder = Path(result.uri) / str(manifest.increments[-1].report_key)
    (file,) = json.loads((folder / "report.json").read_text())["files"]
    notes = " ".join(file["description"]["notes"])
    assert "modality protein (2 features: " in notes
    assert "modality peaks (30 features: chr1:" in notes
    assert notes.count("holds counts, kept exactly") == 2


def test_centred_proteins_are_refused_before_any_cell_is_read(multiome, save, tmp_path):
    adata = multiome.genes.copy()
    logged = np.log1p(multiome.proteins)
    adata.obsm["proteins"] = pd.DataFrame(
        logged - logged.mean(axis=1, keepdims=True), index=adata.obs_names, columns=PROTEINS
    )
    uri = str(save(adata, tmp_path / "cells.h5ad"))
    with pytest.raises(CorpusError, match=r"'protein' holds -.* centred \(CLR\) or scaled") as caught:
        plan_ingest(configure(tmp_path, uri, {"protein": "obsm/proteins"}))
    assert "raw counts" in caught.value.remedy


def test_a_negative_value_in_a_late_row_is_refused_with_its_feature(multiome, save, tmp_path):
    adata = multiome.genes.copy()
    values = np.repeat(multiome.proteins / 2 + 0.25, 5, axis=0)
    adata = anndata.concat([multiome.genes] * 5, index_unique="-")
    values[300, 1] = -1.5
    adata.obsm["proteins"] = pd.DataFrame(values, index=adata.obs_names, columns=PROTEINS)
    uri = str(save(adata, tmp_path / "cells.h5ad"))
    config = configure(tmp_path, uri, {"protein": "obsm/proteins"})
    rules = config.checks.rules.model_copy(update={"duplicate_cell": "warn"})
    config = config.model_copy(update={"checks": config.checks.model_copy(update={"rules": rules})})
    with pytest.raises(CorpusError, match=r"'protein' holds -1\.5 for 'CD19' in row 300, which is not a count"):
        ingest(config)


def test_values_that_are_not_counts_are_kept_with_a_note(multiome, save, tmp_path):
    adata = multiome.genes.copy()
    adata.obsm["peaks"] = sparse.csr_matrix(multiome.peaks * 0.37)
    uri = str(save(adata, tmp_path / "cells.h5ad"))
    result = ingest(configure(tmp_path, uri, {"peaks": "obsm/peaks"}))
    assert result.manifest.modality_values == {"peaks": "expression"}
    folder = Path(result.uri) / str(result.manifest.increments[-1].report_key)
    notes = json.loads((folder / "report.json").read_text())["files"][0]["description"]["notes"]
    assert any("modality peaks" in note and "not counts: kept as they are" in note for note in notes)


def test_cells_without_a_measurement_may_be_filtered_out(multiome, save, tmp_path):
    adata = multiome.genes.copy()
    values = multiome.proteins.astype(float)
    values[:10] = np.nan
    adata.obs["has_proteins"] = np.arange(70) >= 10
    adata.obsm["proteins"] = pd.DataFrame(values, index=adata.obs_names, columns=PROTEINS)
    uri = str(save(adata, tmp_path / "cells.h5ad"))
    config = configure(tmp_path, uri, {"protein": "obsm/proteins"})
    with pytest.raises(CorpusError, match="'protein' holds nan for 'CD3' in row 0, which is not a count"):
        ingest(config)
    result = ingest(config.model_copy(update={"filter": "has_proteins == True"}))
    assert result.manifest.num_cells == 60
    assert result.manifest.modality_values == {"protein": "counts"}
