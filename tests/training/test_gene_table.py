"""The gene table of a new model: rows by co-expression, and rows that are never used frozen without any state."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cytoray import failpoints, storage
from cytoray.corpus.stream import CorpusStream
from cytoray.model.bundle import load_bundle
from cytoray.model.config import ModelConfig
from cytoray.model.gene_rows import PartlyTrainedEmbedding, merge_rows, train_rows
from cytoray.model.transformer import ScGPT
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.collator import PackedMinibatch
from cytoray.training.config import GenerativeConfig, PretrainConfig
from cytoray.training.gene_table import coexpression_vectors, used_rows
from cytoray.training.pretraining import pretrain


def test_a_divided_table_computes_the_same_and_trains_only_its_rows() -> None:
    torch.manual_seed(0)
    shape = ModelConfig(vocabulary_size=30, width=8, num_heads=2, feedforward_width=8, num_layers=1, dropout=0.0)
    model = ScGPT(shape, pad_id=29)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = torch.tensor([28, 3, 4, 20, 28, 5, 21])
    batch = PackedMinibatch(ids, torch.arange(7.0), (4, 3), np.arange(2, dtype=np.uint64))
    expected = model.embed(batch)
    train_rows(model, np.array([3, 4, 5, 28]))
    assert torch.equal(model.embed(batch), expected)
    assert torch.equal(merge_rows(model.state_dict())["encoder.embedding.weight"], before["encoder.embedding.weight"])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.embed(batch).square().sum().backward()
    model.predict_expression(batch).sum().backward()
    optimizer.step()
    table = model.encoder.embedding
    assert isinstance(table, PartlyTrainedEmbedding)
    assert optimizer.state[table.weight]["exp_avg"].shape == (4, 8)
    assert table.frozen not in optimizer.state
    changed = (merge_rows(model.state_dict())["encoder.embedding.weight"] != before["encoder.embedding.weight"]).any(1)
    assert np.flatnonzero(changed.numpy()).tolist() == [3, 4, 5, 28]


def test_genes_that_vary_together_get_similar_rows() -> None:
    rng = np.random.default_rng(0)
    program = rng.integers(0, 3, 600)
    rates = np.where(np.arange(30)[None, :] // 10 == program[:, None], 6.0, 1.0)
    counts = rng.poisson(np.concatenate([rates, np.zeros((600, 2))], axis=1))
    rows, genes = np.nonzero(counts)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=600))]).astype(np.int64)
    cells = SparseCells(
        genes.astype(np.int32), counts[rows, genes].astype(np.float32), indptr, np.arange(600, dtype=np.uint64)
    )
    found, vectors = coexpression_vectors(cells, vocabulary_size=40, width=8)
    assert found.tolist() == list(range(30))
    assert vectors.shape == (30, 8)
    cosines = vectors @ vectors.T / np.outer(*[np.linalg.norm(vectors, axis=1)] * 2)
    together = np.arange(30)[:, None] // 10 == np.arange(30) // 10
    assert cosines[together].mean() > 0.7
    assert cosines[~together].mean() < 0


def test_used_rows_are_those_of_the_cells_and_of_special_tokens(stream: CorpusStream) -> None:
    seen = {int(gene) for batch in stream.read_steps(0, 12) for gene in np.unique(batch.gene_ids)}
    found = set(used_rows(stream).tolist())
    assert seen - {60694} <= found, "of every token but padding"
    assert len(found) < 130


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_run_with_all_options_ends_as_an_unbroken_one(
    pretrain_config: Callable[..., PretrainConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changes = {
        "objective": {
            "style": "generative",
            "whole_cell": {"num_queries": 24, "contrast": {"label_key": "kind", "batch_key": "kind"}},
        },
        "gene_table": {"initial": "coexpression", "freeze_unseen": True},
        "sampling": {"column": "kind"},
    }
    changes["objective"]["whole_cell"]["contrast"]["cells_per_minibatch"] = 8

    def build(run: str) -> PretrainConfig:
        plain = pretrain_config(run).model_dump(mode="json", exclude={"objective"})
        plain["tokenizer"] |= {"values": "soft", "depth_token": 1e4}
        return PretrainConfig.model_validate_json(json.dumps(plain | changes))

    assert isinstance(build("all").objective, GenerativeConfig)
    unbroken, bundle = pretrain(build("all"))
    monkeypatch.setenv(failpoints.VARIABLE, "train.after_step=kill@5")
    broken, _ = pretrain(build("all-broken"))
    for name, expected in unbroken.checkpoint.load_weights().items():
        assert torch.equal(broken.checkpoint.load_weights()[name], expected), name
    moments = unbroken.checkpoint.load_moments()
    assert moments["exp_avg.encoder.embedding.weight"].shape[0] < 130, "no state of rows that are never used"
    storage.download_folder(bundle.uri, tmp_path / "bundle")
    loaded = load_bundle(tmp_path / "bundle")
    assert loaded.tokenizer_config.values == "soft"
    assert "gene_statistics.safetensors" in loaded.attachments
    assert loaded.model.encoder.embedding.weight.shape[0] == loaded.vocabulary.size
