"""A trained model of genes and peaks: planted links, predictions in the order of names, cells of genes alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from planted_multiome import NUM_GENES, NUM_PEAKS, PEAKS, PlantedMultiome, draw_cells, links_GP, write_corpus_of
from reference_training import train
from scipy import sparse
from sklearn.metrics import roc_auc_score

import cytoray
from cytoray.corpus.stream import open_stream
from cytoray.errors import ModelError
from cytoray.model.bundle import ModelBundle, load_bundle, save_bundle
from cytoray.model.conditions import Conditions
from cytoray.model.config import ModelConfig
from cytoray.model.predictor import CellPredictor
from cytoray.model.transformer import ScGPT
from cytoray.tasks.multiomic.transformer import MultiomicTransformer
from cytoray.tokens.features import extend_vocabulary, find_features
from cytoray.tokens.packed import PackedCells
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.tracking import TrackingConfig
from cytoray.training.config import OptimizerConfig, PretrainConfig, ShapeConfig, TrainConfig
from cytoray.training.multiomic import MultiomicObjective, MultiomicTokens, multiomic_model, multiomic_stream
from cytoray.training.multiomic_config import ModalityTokensConfig, MultiomicConfig

NUM_STEPS, MAX_PEAKS = 400, 64
BASE = GeneVocabulary(GeneVocabulary.load_default().tokens[:200])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    """A small model trained on planted cells in plain torch, saved and loaded."""
    folder = tmp_path_factory.mktemp("multiome")
    cells = draw_cells(600)
    write_corpus_of(cells, str(folder))
    vocabulary = extend_vocabulary(BASE, {"peaks": PEAKS})
    features = find_features(vocabulary, {"peaks": PEAKS}, {"peaks": MAX_PEAKS})
    tokens = MultiomicTokens(vocabulary, tuple(cells.gene_ids.tolist()), features)
    recipe = MultiomicConfig(modalities=(ModalityTokensConfig(name="peaks", max_tokens=MAX_PEAKS),), hide_whole=0.6)
    config = PretrainConfig(
        store=str(folder),
        run="multiome",
        corpus="cells",
        model=ShapeConfig(width=32, num_heads=4, feedforward_width=32, num_layers=2, dropout=0.0),
        tokenizer=TokenizerConfig(max_length=NUM_GENES + 1),
        train=TrainConfig(num_steps=NUM_STEPS, cells_per_step=64),
        optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=20),
        tracking=TrackingConfig(uri="http://127.0.0.1:9"),
    )
    options = multiomic_stream(recipe, tokens, tokenizer=config.tokenizer, train=config.train)
    torch.manual_seed(0)
    shape = multiomic_model(config.model.build(vocabulary_size=BASE.size, num_labels=0), tokens)
    model = ScGPT(shape, pad_id=vocabulary.pad_id)
    train(model, MultiomicObjective.of(recipe, tokens), open_stream(str(folder), "cells", options), config, NUM_STEPS)
    conditions = Conditions(
        task="multiomic",
        features={"peaks": PEAKS},
        context={"peaks": MAX_PEAKS},
        panel=tuple(vocabulary.tokens[gene] for gene in cells.gene_ids),
    )
    made = ModelBundle(model.eval(), vocabulary, config.tokenizer, conditions=conditions)
    save_bundle(made, folder / "bundle")
    return load_bundle(folder / "bundle")


@pytest.fixture(scope="module")
def model(bundle: ModelBundle) -> MultiomicTransformer:
    return MultiomicTransformer(bundle)


@pytest.fixture(scope="module")
def cells() -> PlantedMultiome:
    """Cells that were not trained on."""
    return draw_cells(150, seed=9)


def peaks_of(model: MultiomicTransformer, counts: np.ndarray) -> PackedCells:
    return model.pack("peaks", sparse.csr_matrix(counts), PEAKS)


def genes_of(model: MultiomicTransformer, counts: np.ndarray) -> PackedCells:
    return model.pack("rna", counts, model.names("rna"))


def test_genes_follow_from_the_peaks_they_are_linked_to(model: MultiomicTransformer, cells: PlantedMultiome) -> None:
    predicted = model.predict({"peaks": peaks_of(model, cells.peaks)}, "rna")
    found = [np.corrcoef(predicted[:, gene], np.log1p(cells.genes[:, gene]))[0, 1] for gene in range(NUM_GENES)]
    is_linked = links_GP().any(axis=1)
    assert min(np.array(found)[is_linked]) > 0.5, "0 is chance"
    assert max(np.abs(np.array(found)[~is_linked])) < 0.4


def test_opening_a_peak_changes_the_genes_it_is_linked_to(model: MultiomicTransformer, cells: PlantedMultiome) -> None:
    some, effects_GP = cells.peaks[:10], np.zeros((NUM_GENES, NUM_PEAKS))
    for peak in range(NUM_PEAKS):
        states = [some.copy(), some.copy()]
        for value, counts in enumerate(states):
            counts[:, peak] = value
        shut, opened = (model.predict({"peaks": peaks_of(model, counts)}, "rna") for counts in states)
        effects_GP[:, peak] = (opened - shut).mean(axis=0)
    assert roc_auc_score(links_GP().ravel(), effects_GP.ravel()) > 0.95, "0.5 is chance"


def test_predictions_do_not_depend_on_other_cells_or_the_order_of_names(
    model: MultiomicTransformer, cells: PlantedMultiome
) -> None:
    whole = model.predict({"peaks": peaks_of(model, cells.peaks)}, "rna")
    assert whole.shape == (150, NUM_GENES)
    alone = model.predict({"peaks": peaks_of(model, cells.peaks[77:78])}, "rna")
    np.testing.assert_allclose(alone[0], whole[77], atol=1e-4)
    order = np.random.default_rng(0).permutation(NUM_PEAKS)
    names = [PEAKS[peak] for peak in order] + ["chr9:1-2"]
    counts = np.hstack([cells.peaks[:, order], np.ones((150, 1), np.int64)])
    mixed = model.pack("peaks", counts, names)
    np.testing.assert_allclose(model.predict({"peaks": mixed}, "rna"), whole, atol=1e-4)


def test_a_modality_is_predicted_from_the_others_alone(model: MultiomicTransformer, cells: PlantedMultiome) -> None:
    genes, peaks = genes_of(model, cells.genes), peaks_of(model, cells.peaks)
    from_genes = model.predict({"rna": genes}, "peaks")
    assert from_genes.shape == (150, NUM_PEAKS)
    np.testing.assert_array_equal(model.predict({"rna": genes, "peaks": peaks}, "peaks"), from_genes)


def test_many_features_are_predicted_part_by_part(
    bundle: ModelBundle, model: MultiomicTransformer, cells: PlantedMultiome
) -> None:
    assert bundle.conditions is not None
    tight = replace(bundle, conditions=bundle.conditions.model_copy(update={"context": {"peaks": 10}}))
    genes = genes_of(model, cells.genes)
    found = MultiomicTransformer(tight).predict({"rna": genes}, "peaks")
    assert found.shape == (150, NUM_PEAKS)
    assert np.isfinite(found).all()


def test_cells_are_embedded_by_what_was_measured(
    bundle: ModelBundle, model: MultiomicTransformer, cells: PlantedMultiome
) -> None:
    genes, peaks = genes_of(model, cells.genes), peaks_of(model, cells.peaks)
    both, alone = model.embed({"rna": genes, "peaks": peaks}), model.embed({"rna": genes})
    for embedded in (both, alone):
        assert embedded.shape == (150, 32)
        np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1, atol=1e-5)
    assert np.abs(both - alone).max() > 1e-2
    np.testing.assert_allclose(CellPredictor(bundle).predict(genes).embeddings, alone, atol=1e-5)
    adata = anndata.AnnData(cells.genes.astype(np.float32), var=pd.DataFrame(index=list(model.names("rna"))))
    face = cytoray.scGPT.from_bundle(bundle, configurer=cytoray.scGPTConfig(emb_mode="cls"))
    np.testing.assert_allclose(face.embed(adata), alone, atol=1e-5)
    unmeasured = cells.peaks.copy()
    unmeasured[5:] = 0
    mosaic = model.embed({"rna": genes, "peaks": peaks_of(model, unmeasured)})
    np.testing.assert_allclose(mosaic[:5], both[:5], atol=1e-5)
    np.testing.assert_allclose(mosaic[5:], alone[5:], atol=1e-5)


def test_what_the_model_cannot_use_is_refused(bundle: ModelBundle, model: MultiomicTransformer) -> None:
    with pytest.raises(ModelError, match=r"no modality 'protein'") as caught:
        model.names("protein")
    assert caught.value.remedy == "It has rna, peaks."
    with pytest.raises(ModelError, match=r"peaks has values below zero, such as -1"):
        peaks_of(model, np.full((2, NUM_PEAKS), -1))
    with pytest.raises(ModelError, match="peaks is predicted from another modality"):
        model.predict({"peaks": peaks_of(model, np.ones((2, NUM_PEAKS)))}, "peaks")
    plain = ScGPT(ModelConfig(vocabulary_size=BASE.size, width=16, num_heads=2, num_layers=1), pad_id=BASE.pad_id)
    with pytest.raises(ModelError, match="genes alone"):
        MultiomicTransformer(ModelBundle(plain, BASE, TokenizerConfig()))


def test_a_bundle_must_have_its_features_as_tokens(bundle: ModelBundle) -> None:
    assert bundle.conditions is not None
    renamed = bundle.conditions.model_copy(update={"features": {"peaks": ("chr2:1-2", *PEAKS[1:])}})
    with pytest.raises(ModelError, match=r"does not have 1 features of peaks: peaks:chr2:1-2"):
        replace(bundle, conditions=renamed)
    with pytest.raises(ValueError, match=r"context\.adt has no features"):
        Conditions(task="multiomic", features={"peaks": PEAKS}, context={"adt": 10})


def test_conditions_without_tokens_of_features_keep_their_bytes(tmp_path: Path) -> None:
    assert "context" not in Conditions(task="integration", features={"protein": ("CD3",)}).model_dump(mode="json")
