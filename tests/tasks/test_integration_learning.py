"""scGPT's recipe through Ray Train: a bundle that knows its batches and its panel, and embeds cells by them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planted_batches import planted, write
from small_corpus import write_corpus

from cytoray.errors import CorpusError
from cytoray.model.bundle import ModelBundle, save_bundle
from cytoray.model.conditions import Conditions
from cytoray.model.config import ModelConfig
from cytoray.model.transformer import ScGPT
from cytoray.registry.opening import open_model
from cytoray.tasks.integration.assess_config import AssessIntegrationConfig
from cytoray.tasks.integration.choosing import Features, candidate_rows, choose
from cytoray.tasks.integration.config import FinetuneIntegrationConfig
from cytoray.tasks.integration.embedding import BatchedEmbedder
from cytoray.tasks.integration.learning import initial_weights, prepare
from cytoray.tasks.integration.model import IntegrationModel
from cytoray.tasks.integration.reading import read_batched
from cytoray.tasks.integration.recipe import Recipe
from cytoray.tasks.integration.transformer import embed_cells
from cytoray.tasks.learning import learn
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.tracking import TrackingConfig
from cytoray.training.config import OptimizerConfig, TrainConfig, WorkersConfig
from cytoray.training.integration import integration_model
from cytoray.training.integration_config import IntegrationConfig

NUM_GENES = 40


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A random model of genes and values."""
    vocabulary = GeneVocabulary.load_default()
    torch.manual_seed(0)
    shape = ModelConfig(
        vocabulary_size=vocabulary.size, width=16, num_heads=2, feedforward_width=16, num_layers=1, num_labels=0
    )
    save_bundle(ModelBundle(ScGPT(shape, pad_id=vocabulary.pad_id), vocabulary, TokenizerConfig()), tmp_path / "base")
    return tmp_path / "base"


def build(base: Path, store: Path, **changes: Any) -> FinetuneIntegrationConfig:
    """The smallest run over the corpus ``cells`` of a store."""
    settings: dict[str, Any] = {
        "store": str(store),
        "run": "integrated",
        "corpus": "cells",
        "initial": str(base),
        "num_genes": NUM_GENES,
        "integration": IntegrationConfig(batch_key="batch", cells_per_minibatch=16),
        "train": TrainConfig(num_steps=4, cells_per_step=32, checkpoint_every=4),
        "optimizer": OptimizerConfig(learning_rate=1e-3),
        "workers": WorkersConfig(num_workers=1),
        "tracking": TrackingConfig(uri="http://127.0.0.1:9", journal_folder=str(store / "journal")),
    }
    return FinetuneIntegrationConfig(**(settings | changes))


def test_steps_hold_whole_minibatches_of_each_worker(base: Path, tmp_path: Path) -> None:
    two = WorkersConfig(num_workers=2)
    with pytest.raises(ValueError, match=r"multiple of integration\.cells_per_minibatch times the workers"):
        build(base, tmp_path, train=TrainConfig(num_steps=4, cells_per_step=16), workers=two)


def test_wider_decoders_start_as_the_initial_ones(base: Path) -> None:
    opened = open_model(str(base))
    model = integration_model(opened.bundle.model.config, num_batch_labels=3)
    weights = initial_weights(opened, model, seed=0).weights
    assert weights.keys() == ScGPT(model, pad_id=opened.bundle.vocabulary.pad_id).state_dict().keys()
    old = opened.bundle.model.state_dict()
    assert torch.equal(weights["encoder.embedding.weight"], old["encoder.embedding.weight"])
    first = weights["decoder.fc.0.weight"]
    assert torch.equal(first[:, :16], old["decoder.fc.0.weight"])
    assert not first[:, 16:].any()


def test_any_model_embeds_cells(base: Path, tmp_path: Path) -> None:
    cells = read_batched(str(write(tmp_path, planted((40, 40)))), "batch")
    embedded = embed_cells(cells, AssessIntegrationConfig(data="cells.h5ad", model=str(base))).embeddings
    assert embedded.shape == (80, 16)
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1, atol=1e-5)
    choice = choose(Features(cells, embeddings=embedded))
    assert "with transformer" in [row["name"] for row in candidate_rows(choice)]
    unknown = replace(cells, genes=tuple(f"not-a-gene-{n}" for n in range(len(cells.genes))))
    with pytest.raises(CorpusError, match="knows none of the genes"):
        embed_cells(unknown, AssessIntegrationConfig(data="cells.h5ad", model=str(base)))


def test_a_model_of_batches_embeds_cells_by_theirs(base: Path, tmp_path: Path) -> None:
    adata = planted((40, 40))
    plain = open_model(str(base)).bundle
    model = integration_model(plain.model.config, num_batch_labels=2)
    torch.manual_seed(1)
    network = ScGPT(model, pad_id=plain.vocabulary.pad_id)
    assert network.dsbn is not None
    with torch.no_grad():
        network.dsbn.bns[1].running_mean.add_(2)
    genes = tuple(sorted(adata.var_names[:NUM_GENES]))
    conditions = Conditions(task="integration", columns={"batch": ("batch 0", "batch 1")}, panel=genes)
    tokenizer = TokenizerConfig(max_length=NUM_GENES + 1)
    save_bundle(ModelBundle(network, plain.vocabulary, tokenizer, conditions=conditions), tmp_path / "batches")

    config = AssessIntegrationConfig(data="cells.h5ad", model=str(tmp_path / "batches"))
    cells = read_batched(str(write(tmp_path, adata)), "batch")
    embedded = embed_cells(cells, config).embeddings
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1, atol=1e-5)
    swapped = replace(cells, batches=cells.batches[::-1])
    assert np.abs(embedded - embed_cells(swapped, config).embeddings).max() > 1e-4
    reordered = np.random.default_rng(0).permutation(80)
    np.testing.assert_allclose(embed_cells(cells.take(reordered), config).embeddings, embedded[reordered], atol=1e-5)
    with pytest.raises(CorpusError, match="does not know batch 3"):
        embed_cells(replace(cells, batches=("batch 3", *cells.batches[1:])), config)
    # An integration maps it: as if it were of each batch in turn.
    embedder = BatchedEmbedder(open_model(config.model).bundle, "batches", maps_new=True)
    new = embedder.embed(replace(cells, batches=("batch 3",) * 80))
    every = [embedder.embed(replace(cells, batches=(name,) * 80)) for name in ("batch 0", "batch 1")]
    mean = (every[0] + every[1]) / 2
    np.testing.assert_allclose(new, mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-5)
    recipe = Recipe("with transformer", views=("expression", "model"))
    model = IntegrationModel.fit(cells, recipe=recipe, embedder=BatchedEmbedder(embedder.bundle, "batches"))
    assert np.isfinite(model.transform(replace(cells, batches=("batch 3",) * 80))).all()


@pytest.mark.usefixtures("ray_cluster")
def test_a_fine_tuned_model_embeds_cells_by_their_batches(base: Path, tmp_path: Path) -> None:
    adata = planted((40, 40))
    genes = GeneVocabulary.load_default().map_genes(list(adata.var_names)).ids
    write_corpus(str(tmp_path / "store"), adata.X.toarray(), genes, {"batch": adata.obs["batch"].tolist()})
    result, record = learn(prepare(build(base, tmp_path / "store")))
    assert [point["step"] for point in result.history] == [1, 2, 3, 4]
    assert np.isfinite([point["loss"] for point in result.history]).all()
    bundle = open_model(record.uri).bundle
    assert bundle.conditions is not None
    assert bundle.conditions.task == "integration"
    assert bundle.conditions.columns == {"batch": ("batch 0", "batch 1")}
    assert bundle.conditions.panel is not None
    assert len(bundle.conditions.panel) == NUM_GENES

    cells = read_batched(str(write(tmp_path, adata)), "batch")
    embedded = embed_cells(cells, AssessIntegrationConfig(data="cells.h5ad", model=record.uri)).embeddings
    assert embedded.shape == (80, 16)
    assert np.isfinite(embedded).all()
