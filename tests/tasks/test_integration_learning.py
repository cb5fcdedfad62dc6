"""scGPT's recipe through Ray Train: a bundle that knows its batches and its panel, and embeds cells by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planted_batches import planted, write
from small_corpus import write_corpus

from cytoray.errors import CorpusError
from cytoray.model.bundle import ModelBundle, save_bundle
from cytoray.model.config import ModelConfig
from cytoray.model.transformer import ScGPT
from cytoray.registry.opening import open_model
from cytoray.tasks.integration.assess_config import AssessIntegrationConfig
from cytoray.tasks.integration.cells import read_batched
from cytoray.tasks.integration.config import FinetuneIntegrationConfig
from cytoray.tasks.integration.learning import finetune, initial_weights
from cytoray.tasks.integration.transformer import embed_cells
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.tracking import TrackingConfig
from cytoray.training.config import OptimizerConfig, TrainConfig, WorkersConfig
from cytoray.training.integration import IntegrationConfig, integration_model

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
        "workers": WorkersConfig(num_workers=2),
        "tracking": TrackingConfig(uri="http://127.0.0.1:9", journal_folder=str(store / "journal")),
    }
    return FinetuneIntegrationConfig(**(settings | changes))


def test_steps_hold_whole_minibatches_of_each_worker(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"multiple of integration\.cells_per_minibatch times the workers"):
        build(base, tmp_path, train=TrainConfig(num_steps=4, cells_per_step=16))


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


@pytest.mark.usefixtures("ray_cluster")
def test_a_fine_tuned_model_embeds_cells_by_their_batches(base: Path, tmp_path: Path) -> None:
    adata = planted((40, 40))
    genes = GeneVocabulary.load_default().map_genes(list(adata.var_names)).ids
    write_corpus(str(tmp_path / "store"), adata.X.toarray(), genes, {"batch": adata.obs["batch"].tolist()})
    result, record = finetune(build(base, tmp_path / "store"))
    assert [point["step"] for point in result.history] == [1, 2, 3, 4]
    assert np.isfinite([point["loss"] for point in result.history]).all()
    bundle = open_model(record.uri).bundle
    assert bundle.conditions is not None
    assert bundle.conditions.task == "integration"
    assert bundle.conditions.columns == {"batch": ("batch 0", "batch 1")}
    assert bundle.conditions.panel is not None
    assert len(bundle.conditions.panel) == NUM_GENES

    cells = read_batched(str(write(tmp_path, adata)), "batch")
    config = AssessIntegrationConfig(data="cells.h5ad", model=record.uri)
    embedded = embed_cells(cells, config).embeddings
    assert embedded.shape == (80, 16)
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1, atol=1e-5)
    swapped = planted((40, 40))
    swapped.obs["batch"] = swapped.obs["batch"].to_numpy()[::-1]
    others = embed_cells(read_batched(str(write(tmp_path, swapped)), "batch"), config).embeddings
    assert np.abs(embedded - others).max() > 1e-4, "the batch label reaches the embedding"
    foreign = read_batched(str(write(tmp_path, planted((40, 40), first_batch=3))), "batch")
    with pytest.raises(CorpusError, match="does not know batch 3, batch 4"):
        embed_cells(foreign, config)
