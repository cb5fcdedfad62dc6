"""Evidence of a model in which edges are planted: attention and gene embeddings find them, one cell at a time."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from planted_network import EDGES, FACTORS, GENES, build
from planted_reference import build_bundle
from scipy import sparse, stats
from sklearn.metrics import roc_auc_score

from cytoray.model.bundle import ModelBundle
from cytoray.tasks.networks.candidates import Candidates
from cytoray.tasks.networks.model_evidence import ModelEvidence
from cytoray.tasks.networks.reading import NetworkData

CANDIDATES = Candidates(FACTORS, GENES, np.arange(len(FACTORS)), np.arange(len(GENES)))
IS_EDGE = np.array([[gene in EDGES[tf] for gene in GENES] for tf in FACTORS])


@pytest.fixture(scope="module")
def bundle() -> ModelBundle:
    """A model whose genes attend to genes of a like vector; a factor and its targets have nearly the same one."""
    bundle = build_bundle(genes=GENES)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(len(FACTORS), 8))
    program = [next(k for k, tf in enumerate(FACTORS) if gene == tf or gene in EDGES[tf]) for gene in GENES]
    vectors = centres[program] + rng.normal(0, 0.2, (len(GENES), 8))
    tokens = bundle.vocabulary.map_genes(list(GENES), sum_older=True).ids
    model = bundle.model
    with torch.no_grad():
        model.encoder.embedding.weight[list(tokens)] = torch.tensor(vectors, dtype=torch.float32)
        model.value_encoder.norm.weight.zero_()  # values have no effect
        layer = model.transformer_encoder.layers[0].self_attn
        layer.Wqkv.weight.zero_()
        layer.Wqkv.bias.zero_()
        layer.Wqkv.weight[:8] = layer.Wqkv.weight[8:16] = torch.eye(8)  # queries and keys are the vectors themselves
    return bundle


@pytest.fixture(scope="module")
def data() -> NetworkData:
    counts = sparse.csr_matrix(build(30).X)
    return NetworkData(counts, GENES, tuple(f"cell{row}" for row in range(30)), False, "planted")


def aurocs(evidence: np.ndarray) -> list[float]:
    return [
        float(roc_auc_score(IS_EDGE[row, CANDIDATES.valid[row]], evidence[row, CANDIDATES.valid[row]]))
        for row in range(len(FACTORS))
    ]


def test_planted_edges_are_found(bundle: ModelBundle, data: NetworkData) -> None:
    model = ModelEvidence(bundle, num_cells=2)
    assert np.mean(aurocs(model.of_genes(CANDIDATES)["embedding"])) > 0.85, "without its first two components"
    assert np.mean(aurocs(model.of_cells(data, np.arange(30), CANDIDATES)["attention"])) > 0.85


def test_attention_is_ranked_and_held_of_one_cell_at_a_time(
    bundle: ModelBundle, data: NetworkData, monkeypatch: pytest.MonkeyPatch
) -> None:
    attend, scores, alive = bundle.model.attention, [], []

    def watch(batch: Any, **settings: Any) -> list[torch.Tensor]:
        assert all(each() is None for each in alive), "attention of a cell is gone before the next is computed"
        found = attend(batch, **settings)
        alive.extend(weakref.ref(each) for each in found)
        scores.append((batch.gene_ids.numpy().copy(), found[0].numpy().copy()))
        assert len(found) == 1
        return found

    monkeypatch.setattr(bundle.model, "attention", watch)
    found = ModelEvidence(bundle, num_cells=1).of_cells(data, np.arange(6), CANDIDATES)["attention"]
    tokens = np.asarray(bundle.vocabulary.map_genes(list(GENES), sum_older=True).ids)
    sums, counts = np.zeros(found.shape), np.zeros(found.shape)
    for genes, heads in scores:  # rows to ranks, then columns, then the mean of heads (Cui et al. 2024)
        shares = [stats.rankdata(head, axis=1) / len(head) for head in heads]
        mean = np.mean([stats.rankdata(share, axis=0) / len(share) for share in shares], axis=0)
        place = {token: row for row, token in enumerate(genes.tolist())}
        for row, tf in enumerate(tokens[: len(FACTORS)]):
            for column, target in enumerate(tokens):
                if tf in place and target in place:
                    sums[row, column] += mean[place[target], place[tf]]
                    counts[row, column] += 1
    assert len(scores) == 6
    np.testing.assert_allclose(found[counts > 0], (sums / np.maximum(counts, 1))[counts > 0], atol=1e-5)
