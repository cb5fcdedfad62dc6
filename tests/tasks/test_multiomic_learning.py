"""Multi-omic fine-tuning as a stage: what a run starts from, and a bundle that embeds and predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_corpus import write_corpus

from cytoray.errors import CorpusError, ModelError
from cytoray.model.bundle import ModelBundle, save_bundle
from cytoray.model.config import ModelConfig
from cytoray.model.predictor import CellPredictor
from cytoray.model.transformer import ScGPT
from cytoray.registry.opening import open_model
from cytoray.tasks.learning import learn
from cytoray.tasks.multiomic.config import FinetuneMultiomicConfig
from cytoray.tasks.multiomic.learning import choose_panel, coding_id, initial_weights, prepare
from cytoray.tasks.multiomic.transformer import MultiomicTransformer
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.collator import PackedMinibatch
from cytoray.tokens.features import extend_vocabulary, find_features
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.tracking import TrackingConfig
from cytoray.training.config import OptimizerConfig, TrainConfig, WorkersConfig
from cytoray.training.multiomic import MultiomicTokens, multiomic_model
from cytoray.training.multiomic_config import ModalityTokensConfig, MultiomicConfig

PROTEINS, NUM_CELLS = ("CD3", "CD19", "isotype"), 48
FEATURES = {"protein": PROTEINS}
MULTIOMIC = MultiomicConfig(modalities=(ModalityTokensConfig(name="protein", max_tokens=10),))
DEFAULT = GeneVocabulary.load_default()
GENES = ("CD3E", "CD19", *DEFAULT.tokens[500:530])


def save_base(folder: Path, vocabulary: GeneVocabulary = DEFAULT, **shape: Any) -> Path:
    """A random model of genes and values."""
    torch.manual_seed(0)
    size: dict[str, Any] = {"width": 16, "num_heads": 2, "feedforward_width": 16, "num_layers": 1, "dropout": 0.0}
    config = ModelConfig(vocabulary_size=vocabulary.size, num_labels=0, **(size | shape))
    save_bundle(ModelBundle(ScGPT(config, pad_id=vocabulary.pad_id), vocabulary, TokenizerConfig()), folder / "base")
    return folder / "base"


@pytest.fixture
def counts(tmp_path: Path) -> dict[str, np.ndarray]:
    """Cells of which the two genes that code for proteins hardly vary, in a corpus."""
    rng = np.random.default_rng(0)
    genes = rng.poisson(rng.gamma(0.5, 4.0, (NUM_CELLS, len(GENES))))
    genes[:, :2] = 1
    proteins = 1 + rng.poisson(20, (NUM_CELLS, 3))
    ids = np.array([DEFAULT.index[gene] for gene in GENES])
    obs: dict[str, list[str | None]] = {"donor": [f"d{row % 3}" for row in range(NUM_CELLS)]}
    write_corpus(str(tmp_path / "store"), genes, ids, obs, {"protein": (proteins, PROTEINS)})
    return {"rna": genes, "protein": proteins}


def build(base: Path, folder: Path, **changes: Any) -> FinetuneMultiomicConfig:
    """The smallest run over the corpus ``cells`` of a store."""
    settings: dict[str, Any] = {
        "store": str(folder / "store"),
        "run": "multiomic",
        "corpus": "cells",
        "initial": str(base),
        "num_genes": 12,
        "multiomic": MULTIOMIC,
        "train": TrainConfig(num_steps=4, cells_per_step=32, checkpoint_every=4),
        "optimizer": OptimizerConfig(learning_rate=1e-3),
        "workers": WorkersConfig(num_workers=2),
        "tracking": TrackingConfig(uri="http://127.0.0.1:9", journal_folder=str(folder / "journal")),
    }
    return FinetuneMultiomicConfig(**(settings | changes))


@pytest.mark.usefixtures("counts")
def test_the_panel_has_the_most_variable_genes_and_those_of_the_proteins(tmp_path: Path) -> None:
    own = GeneVocabulary(["<pad>", "<cls>", "<eoc>", *reversed(GENES[:25])])
    for vocabulary in (DEFAULT, own):
        base = save_base(tmp_path / str(vocabulary.size), vocabulary)
        panel = choose_panel(build(base, tmp_path), open_model(str(base)), FEATURES)
        names = [vocabulary.tokens[gene] for gene in panel]
        assert {"CD3E", "CD19"} <= set(names) <= set(GENES)
        assert len(names) == 14


def test_a_run_starts_as_the_initial_model_with_proteins_like_their_genes(tmp_path: Path) -> None:
    opened = open_model(str(save_base(tmp_path)))
    vocabulary = extend_vocabulary(DEFAULT, FEATURES)
    tokens = MultiomicTokens(vocabulary, (5, 6), find_features(vocabulary, FEATURES, {"protein": 10}))
    shape = multiomic_model(opened.bundle.model.config, tokens, num_batch_labels=2)
    initial = initial_weights(opened, shape, FEATURES, seed=0)
    model, base = ScGPT(shape, pad_id=vocabulary.pad_id).eval(), opened.bundle.model.eval()
    model.load_state_dict(initial.weights)
    ids = torch.tensor([vocabulary.cls_id, 40, 41, 42])
    batch = PackedMinibatch(ids, torch.tensor([-2.0, 3.0, -1.0, 9.0]), (4,), np.zeros(1, np.uint64))
    seen = PackedMinibatch(ids, batch.values, (4,), batch.cell_ids, torch.tensor([1]), torch.tensor([0, 1, 1, 1]))
    with torch.no_grad():
        before, after = base(batch), model(seen)
    assert before.cell_conditioned is not None
    assert after.cell_conditioned is not None
    torch.testing.assert_close(after.expression.value, before.expression.value)
    torch.testing.assert_close(after.cell_conditioned.value, before.cell_conditioned.value)
    rows, old = initial.weights["encoder.embedding.weight"], base.encoder.embedding.weight.detach()
    shifts = [rows[DEFAULT.size + place] - old[DEFAULT.index[gene]] for place, gene in enumerate(("CD3E", "CD19"))]
    torch.testing.assert_close(shifts[0], shifts[1])
    assert coding_id(opened, "isotype") is None
    query = initial.weights["mvc_decoder.gene2query.weight"]
    assert len(torch.unique(query[16:], dim=0)) == 16, "new queries differ, or they would stay equal"


@pytest.mark.usefixtures("counts")
def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path)
    missing = MultiomicConfig(modalities=(ModalityTokensConfig(name="atac"),))
    with pytest.raises(CorpusError, match=r"no modality 'atac'") as caught:
        prepare(build(base, tmp_path, multiomic=missing))
    assert "Modalities there: protein" in caught.value.remedy
    other = save_base(tmp_path / "other", num_modalities=5)
    with pytest.raises(
        ModelError, match=r"needs modalities for each cell; finetune-multiomic starts from a model of genes"
    ):
        prepare(build(other, tmp_path))
    with pytest.raises(ValueError, match=r"modality 'rna' occurs twice"):
        MultiomicConfig(modalities=(ModalityTokensConfig(name="rna"),))


@pytest.mark.slow  # Ray under a task is tested with the other tasks, the steps in training/test_multiomic.py
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.timeout(900)
def test_a_fine_tuned_model_embeds_and_predicts(counts: dict[str, np.ndarray], tmp_path: Path) -> None:
    recipe = MULTIOMIC.model_copy(update={"batch_key": "donor"})
    result, record = learn(prepare(build(save_base(tmp_path), tmp_path, multiomic=recipe)))
    assert [point["step"] for point in result.history] == [1, 2, 3, 4]
    assert {"masked_rna", "masked_protein", "cell_conditioned_protein", "adversarial"} <= result.history[0].keys()
    assert np.isfinite([point["loss"] for point in result.history]).all()
    bundle = open_model(record.uri).bundle
    assert bundle.conditions is not None
    assert bundle.conditions.features == FEATURES
    assert bundle.conditions.columns == {"donor": ("d0", "d1", "d2")}
    assert bundle.vocabulary.size == DEFAULT.size + 3

    model = MultiomicTransformer(bundle)
    genes = model.pack("rna", counts["rna"], GENES)
    proteins = model.pack("protein", counts["protein"], PROTEINS)
    assert model.predict({"rna": genes}, "protein").shape == (NUM_CELLS, 3)
    assert np.isfinite(model.embed({"rna": genes, "protein": proteins})).all()

    np.testing.assert_allclose(CellPredictor(bundle).predict(genes).embeddings, model.embed({"rna": genes}), atol=1e-5)
    empty = SparseCells(np.empty(0, np.int32), np.empty(0, np.float32), np.zeros(2, np.int64), np.zeros(1, np.uint64))
    assert np.isnan(CellPredictor(bundle, empty_cells="nan").predict(empty).embeddings).all()
