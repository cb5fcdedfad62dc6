"""Synthetic cells are as sparse, skewed and labelled as said, the same each time, and made in bounded memory."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from cytoray.corpus.config import SourceConfig
from cytoray.corpus.readers.opening import open_source
from cytoray.corpus.synthetic import SynthConfig, gene_names, synthesise
from cytoray.corpus.synthetic_kernels import build_alias, draw_cells
from cytoray.errors import CorpusError
from cytoray.tokens.vocabulary import GeneVocabulary


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic")
    synthesise(folder, SynthConfig(num_cells=3_000, num_files=3, num_genes=8_000, mean_genes=800.0, num_donors=6))
    return folder


def test_cells_are_sparse_skewed_counts(folder: Path):
    matrix = anndata.concat([anndata.read_h5ad(path) for path in sorted(folder.glob("*.h5ad"))]).X
    assert matrix.has_canonical_format
    assert matrix.shape == (3_000, 8_000)
    assert (matrix.data == np.rint(matrix.data)).all()
    assert matrix.data.min() == 1
    genes = np.diff(matrix.indptr)
    assert abs(genes.mean() - 800) < 40
    assert 300 < np.quantile(genes, 0.05) < 400
    assert 1_500 < np.quantile(genes, 0.95) < 1_750
    assert 0.35 < (matrix.data == 1).mean() < 0.55
    assert (matrix.data > 100).any()


def test_labels_are_there_and_donors_stand_in_runs(folder: Path):
    files = [anndata.read_h5ad(path).obs for path in sorted(folder.glob("*.h5ad"))]
    for obs in files:
        assert {"cell_type", "donor", "tissue", "disease", "is_primary_data", "n_counts"} == set(obs)
        assert (obs["donor"].to_numpy()[1:] != obs["donor"].to_numpy()[:-1]).sum() == 1
        assert (obs["cell_type"].to_numpy()[1:] != obs["cell_type"].to_numpy()[:-1]).sum() < 20
    donors = [set(obs["donor"]) for obs in files]
    assert len(set.union(*donors)) == 6
    assert sum(map(len, donors)) == 6
    names = [name for obs in files for name in obs.index]
    assert len(set(names)) == 3_000


def test_types_differ_and_their_own_cells_agree(folder: Path):
    """Cells of one type are nearer to their type's mean than to another's: nearest centroid on held-out cells."""
    adata = anndata.concat([anndata.read_h5ad(path) for path in sorted(folder.glob("*.h5ad"))])
    dense = adata.X.toarray()
    logged = np.log1p(dense / dense.sum(axis=1, keepdims=True) * 1e4)
    types = adata.obs["cell_type"].astype(str).to_numpy()
    common = [name for name in np.unique(types) if (types == name).sum() >= 40][:8]
    centroids = np.stack([logged[types == name][::2].mean(axis=0) for name in common])
    rest = np.concatenate([np.flatnonzero(types == name)[1::2] for name in common])
    distances = ((logged[rest][:, None, :1_000] - centroids[None, :, :1_000]) ** 2).sum(axis=2)
    assert (np.array(common)[distances.argmin(axis=1)] == types[rest]).mean() > 0.95


def test_the_same_settings_give_the_same_bytes(folder: Path, tmp_path: Path):
    again = SynthConfig(num_cells=3_000, num_files=3, num_genes=8_000, mean_genes=800.0, num_donors=6)
    for path in synthesise(tmp_path / "again", again):
        with h5py.File(path) as new, h5py.File(folder / path.name) as old:
            for key in ("X/data", "X/indices", "X/indptr", "obs/cell_type/codes", "obs/n_counts"):
                assert (new[key][:] == old[key][:]).all()
    other = synthesise(tmp_path / "other", again.model_copy(update={"seed": 1}))
    digests = {hashlib.sha256(path.read_bytes()).digest() for path in [*other, *folder.glob("*.h5ad")]}
    assert len(digests) == 6


@pytest.mark.parametrize("compression", ["fast", "gzip", "none"])
def test_every_compression_reads_back_the_same(compression: str, tmp_path: Path):
    config = SynthConfig(num_cells=150, num_files=1, num_genes=500, mean_genes=200.0, compression="none")
    (plain,) = synthesise(tmp_path / "plain", config)
    (path,) = synthesise(tmp_path / compression, config.model_copy(update={"compression": compression}))
    assert (anndata.read_h5ad(path).X != anndata.read_h5ad(plain).X).nnz == 0
    assert (path.stat().st_size < plain.stat().st_size) == (compression != "none")


def test_genes_are_symbols_of_the_vocabulary():
    for number in (50, 20_000, 30_000):
        names = gene_names(number)
        ids = [GeneVocabulary.load_default().index[name] for name in names]
        assert len(set(names)) == number
        assert ids == sorted(ids)
    assert not any(re.match("LINC|MIR", name) for name in gene_names(15_000))


def test_a_reader_of_corpora_takes_them(folder: Path):
    with open_source(SourceConfig(uri=str(folder / "part-000.h5ad"))) as reader:
        described = reader.describe()
    assert (described.num_cells, described.num_genes, described.value_kind) == (1_000, 8_000, "counts")
    assert described.id_type == "symbol"
    assert {"cell_type", "donor"} <= set(described.label_columns)


def test_batches_and_perturbations_are_planted(tmp_path: Path):
    gene = gene_names(500)[250]
    size = {"num_cells": 2_000, "num_files": 1, "num_genes": 500, "mean_genes": 250.0}
    config = SynthConfig(**size, num_types=2, num_batches=3, perturbed_genes=(gene,), shuffled_genes=True)
    (path,) = synthesise(tmp_path, config)
    adata = anndata.read_h5ad(path)
    assert set(adata.obs["batch_label"]) == {"batch 0", "batch 1", "batch 2"}
    down = adata[adata.obs["perturbation"] == gene, gene].X.mean()
    control = adata[adata.obs["perturbation"] == "control", gene].X.mean()
    assert down < 0.4 * control
    assert list(adata.var_names) != sorted(adata.var_names)
    with pytest.raises(CorpusError, match="NOTAGENE"):
        synthesise(tmp_path / "none", config.model_copy(update={"perturbed_genes": ("NOTAGENE",)}))


def test_genes_are_drawn_by_their_weights():
    weights = np.array([[0.5, 0.25, 0.125, 0.0625, 0.0625], [0.2, 0.2, 0.2, 0.2, 0.2]])
    alias = build_alias(weights)
    keys = np.arange(4_000, dtype=np.uint64)
    for row in range(2):
        drawn = draw_cells(alias, np.full(4_000, row), np.full(4_000, 50.0), keys)
        counts = np.bincount(drawn.gene_ids, drawn.values, minlength=5)
        assert np.allclose(counts / counts.sum(), weights[row], atol=0.006)


def test_impossible_settings_are_refused():
    for wrong in ({"num_cells": 0}, {"num_genes": 100_000}, {"compression": "zip"}, {"cells": 5}):
        with pytest.raises(ValidationError):
            SynthConfig.model_validate(wrong)


def test_the_command_writes_and_tells(tmp_path: Path):
    from cytoray.cli.data import app

    arguments = [
        "synth",
        "--cells",
        "300",
        "--genes",
        "400",
        "--mean-genes",
        "80",
        "--files",
        "2",
        "--out",
        str(tmp_path / "out"),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "300 cells in 2 files" in result.output
    assert len(list((tmp_path / "out").glob("*.h5ad"))) == 2


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_cells(tmp_path: Path):
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from cytoray.corpus.synthetic import SynthConfig, synthesise\n"
        "config = SynthConfig(num_cells=int(sys.argv[2]), num_files=2, num_genes=5_000, mean_genes=500.0)\n"
        "synthesise(Path(sys.argv[1]), config)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    peaks = []
    for number in (4_000, 60_000):
        command = [sys.executable, "-c", code, str(tmp_path / str(number)), str(number)]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    assert peaks[1] < peaks[0] + 100  # MiB; its files are 230 MB
