"""Embeddings of genes in Python and as a command, against the model's own tensors and a sum over cells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from typer.testing import CliRunner

import cytoray
from cytoray.api.genes import nearest_genes
from cytoray.cli.main import app
from cytoray.errors import ConfigError, ModelError
from cytoray.model.bundle import ModelBundle, save_bundle
from cytoray.model.config import ModelConfig
from cytoray.model.transformer import ScGPT
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary

GENES = tuple(f"GENE{number:02d}" for number in range(30))


@pytest.fixture(scope="module")
def bundle() -> ModelBundle:
    vocabulary = GeneVocabulary(GENES)
    shape = ModelConfig(
        vocabulary_size=vocabulary.size, width=16, num_heads=4, feedforward_width=16, num_layers=1, dropout=0.0
    )
    torch.manual_seed(0)
    return ModelBundle(ScGPT(shape, pad_id=vocabulary.pad_id).eval(), vocabulary, TokenizerConfig(max_length=64))


@pytest.fixture(scope="module")
def cells() -> anndata.AnnData:
    counts = np.random.default_rng(0).poisson(0.7, (12, 30)).astype(np.float32)
    counts[:, 4] = 0
    counts[:, 0] += 1
    obs = pd.DataFrame(index=[f"c{number}" for number in range(12)])
    return anndata.AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=list(GENES)))


def test_static_embeddings_are_those_of_the_gene_encoder(bundle: ModelBundle):
    table = cytoray.scGPT.from_bundle(bundle).get_gene_embeddings()
    assert table.index.tolist() == list(GENES)
    weights = bundle.model.encoder.embedding.weight.detach()[: len(GENES)]
    wanted = torch.nn.functional.layer_norm(weights, (16,)).numpy()
    np.testing.assert_allclose(table.to_numpy(), wanted, atol=1e-5)


def test_contextual_embeddings_are_means_over_the_cells_with_the_gene(bundle: ModelBundle, cells: anndata.AnnData):
    opened = cytoray.scGPT.from_bundle(bundle)
    dataset = opened.process_data(cells)
    table = opened.get_gene_embeddings(dataset)
    assert "GENE04" not in table.index, "no cell expresses it"
    by_cell = cytoray.scGPT.from_bundle(bundle, configurer=cytoray.scGPTConfig(emb_mode="gene")).get_embeddings(dataset)
    for gene in ("GENE00", "GENE17"):
        states = [states[gene] for states in by_cell if gene in states.index]
        np.testing.assert_allclose(table.loc[gene].to_numpy(), np.mean(states, axis=0), atol=1e-5)
    counts = np.asarray((cells.X > 0).sum(axis=0)).ravel()
    assert table.attrs["num_cells"] == counts[counts > 0].tolist()


def test_the_nearest_gene_is_the_one_that_is_alike():
    rng = np.random.default_rng(1)
    table = pd.DataFrame(rng.normal(size=(20, 8)) + 3, index=[f"G{number}" for number in range(20)])
    table.loc["G7"] = table.loc["G3"] + 0.05
    found = nearest_genes(table, "G3", num=4)
    assert found.index[0] == "G7"
    assert found.iloc[0] > 0.95 > 0.8 > found.iloc[1]
    with pytest.raises(ModelError, match=r"Unknown gene 'G33'.*Did you mean G3"):
        nearest_genes(table, "G33", num=1)


@pytest.mark.parametrize("name", ["genes.parquet", "genes.h5ad"])
def test_the_command_writes_them(bundle: ModelBundle, cells: anndata.AnnData, tmp_path: Path, name: str):
    save_bundle(bundle, tmp_path / "bundle")
    cells.write_h5ad(tmp_path / "cells.h5ad")
    out = tmp_path / name
    options = ["--data", tmp_path / "cells.h5ad", "--out", out, "--nearest", "GENE00", "--num", 3, "--json"]
    answer = run("genes", tmp_path / "bundle", *options)
    assert (answer["num_genes"], answer["width"], len(answer["nearest"])) == (29, 16, 3)
    opened = cytoray.scGPT.from_bundle(bundle)
    wanted = opened.get_gene_embeddings(opened.process_data(cells)).to_numpy()
    written = pd.read_parquet(out).to_numpy() if out.suffix == ".parquet" else np.asarray(anndata.read_h5ad(out).X)
    np.testing.assert_allclose(written, wanted, atol=1e-6)
    with pytest.raises(ConfigError, match=r"neither \.parquet nor \.h5ad"):
        run("genes", tmp_path / "bundle", "--out", tmp_path / "genes.csv")
    with pytest.raises(ConfigError, match="Nothing is asked for"):
        run("genes", tmp_path / "bundle")


def run(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    found: dict[str, Any] = json.loads(result.stdout)
    return found
