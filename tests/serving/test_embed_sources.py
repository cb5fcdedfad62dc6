"""Offline embedding by Ray Data or in this process: every cell of every file, as the Python face has it, once."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from scipy import sparse

from cytoray.api import scGPT, scGPTConfig
from cytoray.config import build_config
from cytoray.corpus.config import SourceConfig
from cytoray.errors import ConfigError, CorpusError
from cytoray.model.bundle import save_bundle
from cytoray.model.public_checkpoint import save_public_checkpoint
from cytoray.serving.offline import OfflineTask, answer_sources
from cytoray.stages.config import EmbedConfig
from cytoray.tasks.messages import ModelInfo

through_ray = pytest.mark.usefixtures("ray_cluster")
SIZES = {"a.h5ad": 130, "b.h5ad": 50}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Two files below one prefix, each with a cell without genes."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for seed, (name, num_cells) in enumerate(SIZES.items()):
        counts = np.random.default_rng(seed).poisson(0.8, (num_cells, 30)).astype(np.float32)
        counts[7] = 0
        obs = pd.DataFrame(index=[f"{name[0]}{row}" for row in range(num_cells)])
        var = pd.DataFrame(index=[f"GENE{gene:02d}" for gene in range(30)])
        anndata.AnnData(sparse.csr_matrix(counts), obs=obs, var=var).write_h5ad(folder / name)
    return folder


@pytest.fixture
def task(files: Path, build_bundle: Any, tmp_path: Path) -> OfflineTask:
    digest = save_bundle(build_bundle(), tmp_path / "bundle")
    model = ModelInfo(name="tiny", version="7", digest=digest)
    sources = (SourceConfig(uri=f"{files}/"),)
    return OfflineTask(sources, str(tmp_path / "bundle"), model, str(tmp_path / "out"), rows_per_file=64, h5ad=True)


def _read(task: OfflineTask, pattern: str = "part-*.parquet") -> pd.DataFrame:
    return pd.concat([pq.read_table(path).to_pandas() for path in sorted(Path(task.out).glob(pattern))])


@through_ray
def test_every_cell_is_there_and_equals_the_python_face(
    task: OfflineTask, files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[float] = []
    result = answer_sources(task, advance=lambda amount, note="", *, already=False: seen.append(amount))
    assert (result.num_cells, result.num_empty, result.num_files) == (180, 2, 4)
    assert sum(seen) == 180
    assert "2 of 180 cells have no gene that the model knows: a7, b7. Their embeddings are NaN" in caplog.text
    table = _read(task)
    assert table["obs_name"].tolist() == [f"a{row}" for row in range(130)] + [f"b{row}" for row in range(50)]
    assert set(table["source"]) == set(SIZES)
    face = scGPT(scGPTConfig(model=task.bundle, emb_mode="cls"))
    for number, name in enumerate(SIZES):
        with pytest.warns(UserWarning, match="no gene that the model knows"):
            wanted = face.get_embeddings(face.process_data(files / name))
        got = np.stack(table[table["source"] == name]["embedding"])
        np.testing.assert_allclose(got, wanted, atol=1e-5, rtol=0)
        assert np.isnan(got[7]).all()
        written = anndata.read_h5ad(Path(task.out) / f"{number:05d}-{name}")
        np.testing.assert_array_equal(written.obsm["X_scGPT"], got)
        assert written.obs_names[0] == f"{name[0]}0"
        assert written.uns["cytoray_model"]["digest"] == task.model.digest
        assert pd.isna(written.obs["label"].iloc[7])
    metadata = pq.read_schema(next(Path(task.out).glob("part-*"))).metadata
    assert metadata[b"cytoray.model_digest"].decode() == task.model.digest


def test_what_is_there_is_not_done_again(task: OfflineTask) -> None:
    answer_sources(task)
    parts = sorted(Path(task.out).glob("part-*"))
    before = {path.name: path.stat().st_mtime_ns for path in parts}
    whole = [path.read_bytes() for path in parts]
    assert answer_sources(task).skipped
    (Path(task.out) / "manifest.json").unlink()
    parts[1].unlink()
    parts[2].write_bytes(whole[2][:-20])
    again = answer_sources(task)
    assert not again.skipped
    assert (again.num_cells, again.num_empty) == (180, 2)
    after = {path.name: path.stat().st_mtime_ns for path in sorted(Path(task.out).glob("part-*"))}
    assert {name for name in before if after[name] != before[name]} == {parts[1].name, parts[2].name}
    tables = [pq.read_table(io.BytesIO(data)) for data in whole]
    assert all(pq.read_table(parts[number]).equals(tables[number]) for number in (1, 2))


@through_ray
def test_a_bad_value_is_told_by_cell_and_gene_and_what_was_done_stays(task: OfflineTask, files: Path) -> None:
    bad = anndata.read_h5ad(files / "a.h5ad")
    bad.X.data[bad.X.indptr[100]] = -1.0
    bad.write_h5ad(files / "a.h5ad")
    with pytest.raises(CorpusError, match="negative") as caught:
        answer_sources(task)
    assert caught.value.details["cell"] == "a100"
    assert not (Path(task.out) / "manifest.json").exists()


def test_another_model_makes_other_files(task: OfflineTask, build_bundle: Any, tmp_path: Path) -> None:
    answer_sources(task)
    digest = save_bundle(build_bundle(labels=()), tmp_path / "other")
    model = ModelInfo(name="tiny", version="8", digest=digest)
    other = OfflineTask(task.sources, str(tmp_path / "other"), model, task.out, rows_per_file=64)
    assert not answer_sources(other).skipped
    assert len(list(Path(task.out).glob("part-*"))) == 8


def test_a_stage_takes_a_public_checkpoint_and_a_list_of_files(
    task: OfflineTask, build_bundle: Any, tmp_path: Path
) -> None:
    from cytoray.stages.run import answer_offline

    bundle = build_bundle(labels=())
    save_public_checkpoint(bundle.model, bundle.vocabulary, bundle.tokenizer_config, tmp_path / "public")
    config = EmbedConfig(
        model=str(tmp_path / "public"),
        data=[{"uri": f"{tmp_path}/raw/{name}"} for name in SIZES],
        out=str(tmp_path / "embedded"),
    )
    result = answer_offline(config)
    assert (result.num_cells, result.num_files) == (180, 2)


def test_what_a_model_needs_is_told_before_anything_starts() -> None:
    sets = ['data={"uri": "x.h5ad"}', "out=o"]
    with pytest.raises(ConfigError, match="run:NAME needs store"):
        build_config(EmbedConfig, overrides=[*sets, "model=run:a"])
    with pytest.raises(ConfigError, match="needs tracking"):
        build_config(EmbedConfig, overrides=[*sets, "model=models:/a@b"])
