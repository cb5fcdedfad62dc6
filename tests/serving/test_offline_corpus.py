"""Offline answers over a committed corpus: those of the same cells in their files, shard by shard."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
import torch

from cytoray.config import build_config
from cytoray.corpus.config import IngestConfig, SourceConfig
from cytoray.corpus.ingest import ingest
from cytoray.corpus.manifest import load_manifest
from cytoray.errors import ConfigError, CorpusError
from cytoray.model.bundle import ModelBundle, save_bundle
from cytoray.model.config import ModelConfig
from cytoray.model.transformer import ScGPT
from cytoray.serving.offline import OfflineResult
from cytoray.stages.config import EmbedConfig
from cytoray.stages.run import answer_offline
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary

GENES = ("CD3D", "MS4A1", "LYZ", "NKG7", "CD14", "CD8A", "GNLY", "CST3", "PPBP", "IL7R", "CCR7", "CD79A")
SIZES = {"a.h5ad": 400, "b.h5ad": 200}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files, a corpus of several shards made of them, and a model whose vocabulary has other ids."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "raw").mkdir()
    for seed, (name, num_cells) in enumerate(SIZES.items()):
        counts = np.random.default_rng(seed).poisson(1.5, (num_cells, len(GENES))).astype(np.float32)
        obs = pd.DataFrame(index=[f"{name[0]}{row}" for row in range(num_cells)])
        adata = anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=pd.Index(GENES)))
        adata.write_h5ad(folder / "raw" / name)
    source = SourceConfig(uri=f"{folder}/raw/")
    ingest(IngestConfig(store=f"{folder}/store", corpus="cells", sources=(source,), cells_per_shard=256))
    vocabulary = GeneVocabulary(sorted(GENES)[1:])  # without CCR7
    shape = ModelConfig(
        vocabulary_size=vocabulary.size, width=16, num_heads=4, feedforward_width=24, num_layers=1, dropout=0.0,
        num_labels=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = ScGPT(shape, pad_id=vocabulary.pad_id).eval()
    save_bundle(ModelBundle(network, vocabulary, TokenizerConfig(max_length=8), ("B", "T")), folder / "bundle")
    return folder


def _answer(places: Path, uri: str, out: Path) -> tuple[OfflineResult, pd.DataFrame]:
    data = ({"uri": uri},)
    config = EmbedConfig(
        model=f"{places}/bundle", store=f"{places}/store", data=data, out=str(out), rows_per_task=150, h5ad=True
    )
    result = answer_offline(config)
    return result, pd.concat([pq.read_table(path).to_pandas() for path in sorted(out.glob("part-*.parquet"))])


def test_a_corpus_has_the_answers_of_its_files_and_joins_back(places: Path, tmp_path: Path) -> None:
    result, answers = _answer(places, "corpus:cells@1", tmp_path / "corpus")
    _, wanted = _answer(places, f"{places}/raw/", tmp_path / "files")
    shards = load_manifest(f"{places}/store", "cells").shards
    assert len(shards) > 1
    assert (result.num_cells, result.num_files) == (600, sum(-(-shard.num_cells // 150) for shard in shards))
    assert answers["row"].tolist() == list(range(600))
    joined = answers.merge(wanted, on=["source", "obs_name"], suffixes=("", "_file"))
    assert len(joined) == 600
    assert (joined["cell_id"] == joined["cell_id_file"]).all()
    assert wanted.groupby("source")["row"].max().to_dict() == {"a.h5ad": 399, "b.h5ad": 199}
    np.testing.assert_allclose(np.stack(joined["embedding"]), np.stack(joined["embedding_file"]), atol=1e-5, rtol=0)
    assert (joined["label"] == joined["label_file"]).all()
    written = anndata.read_h5ad(tmp_path / "corpus" / "00000-cells@1.h5ad")
    np.testing.assert_array_equal(written.obsm["X_scGPT"], np.stack(answers["embedding"]))

    (tmp_path / "corpus" / "manifest.json").unlink()
    parts = sorted((tmp_path / "corpus").glob("part-*"))
    before = {path.name: path.stat().st_mtime_ns for path in parts}
    parts[3].unlink()
    assert not _answer(places, f"{places}/store/corpora/cells", tmp_path / "corpus")[0].skipped  # its latest version
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "corpus").glob("part-*")}
    assert {name for name in before if before[name] != after[name]} == {parts[3].name}


def test_what_is_wrong_with_a_corpus_is_found_before_a_model_is_opened(places: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="corpus:cells needs store"):
        build_config(EmbedConfig, overrides=["model=m", 'data={"uri": "corpus:cells"}', "out=o"])
    with pytest.raises(CorpusError, match=r"has no version 2.*It has 1"):
        _answer(places, "corpus:cells@2", tmp_path)
    filtered = ({"uri": "corpus:cells", "filter": "depth > 3"},)
    with pytest.raises(CorpusError, match="only its uri can be given"):
        answer_offline(EmbedConfig(model=f"{places}/bundle", store=f"{places}/store", data=filtered, out=str(tmp_path)))
