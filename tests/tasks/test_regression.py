"""A number of each cell through Ray Train, and the bundle that predicts it in its own units."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from planted_batches import planted
from scipy import sparse
from small_corpus import write_corpus

from cytoray import scGPTConfig, scGPTFineTuningModel
from cytoray.errors import CorpusError, RequestError
from cytoray.model.bundle import ModelBundle, save_bundle
from cytoray.model.config import ModelConfig
from cytoray.model.predictor import CellPredictor
from cytoray.model.transformer import ScGPT
from cytoray.registry.opening import open_model
from cytoray.tasks.annotation.answers import check_labels
from cytoray.tasks.endpoint import ServedModel
from cytoray.tasks.learning import learn
from cytoray.tasks.messages import ModelInfo
from cytoray.tasks.regression.config import FinetuneRegressionConfig
from cytoray.tasks.regression.learning import parse_numbers, prepare
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.tracking import TrackingConfig
from cytoray.training.config import OptimizerConfig, TrainConfig, ValidationConfig, WorkersConfig

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
NUM_CELLS = 96


def aged() -> tuple[anndata.AnnData, np.ndarray]:
    """Cells of which half express the first genes and are 10 years older than the others, who express the last."""
    rng = np.random.default_rng(0)
    names = list(planted((2,)).var_names)[:30]
    old = np.arange(NUM_CELLS) % 2
    counts = (1 + rng.poisson(3.0, (NUM_CELLS, 30))) * ((np.arange(30) < 15) == old[:, None].astype(bool))
    ages = 45 + 10.0 * old + rng.normal(0, 0.5, NUM_CELLS)
    obs = pd.DataFrame({"age": ages}, index=[f"c{n}" for n in range(NUM_CELLS)])
    return anndata.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=pd.DataFrame(index=names)), ages


def build(tmp_path: Path, **changes: object) -> FinetuneRegressionConfig:
    """A short run over the corpus ``cells`` of ``tmp_path``, from random weights."""
    vocabulary = GeneVocabulary.load_default()
    torch.manual_seed(0)
    shape = ModelConfig(
        vocabulary_size=vocabulary.size, width=32, num_heads=4, feedforward_width=32, num_layers=1, dropout=0.0
    )
    if not (tmp_path / "base").exists():
        network = ScGPT(shape, pad_id=vocabulary.pad_id)
        save_bundle(ModelBundle(network, vocabulary, TokenizerConfig(max_length=31)), tmp_path / "base")
    settings = {
        "store": str(tmp_path / "store"),
        "run": "aged",
        "corpus": "cells",
        "initial": str(tmp_path / "base"),
        "target_key": "age",
        "train": TrainConfig(num_steps=20, cells_per_step=32, checkpoint_every=10),
        "optimizer": OptimizerConfig(learning_rate=5e-3),
        "workers": WorkersConfig(num_workers=1),
        "validation": ValidationConfig(select="held == 'yes'", max_cells=24),
        "tracking": TrackingConfig(uri="http://127.0.0.1:9", journal_folder=str(tmp_path / "journal")),
    }
    return FinetuneRegressionConfig(**(settings | changes))


def write(tmp_path: Path, columns: dict[str, list[object]]) -> anndata.AnnData:
    adata, _ = aged()
    genes = GeneVocabulary.load_default().map_genes(list(adata.var_names)).ids
    write_corpus(str(tmp_path / "store"), adata.X.toarray(), genes, columns)
    return adata


@pytest.mark.usefixtures("ray_cluster")
def test_a_fine_tuned_model_predicts_numbers_in_their_own_units(tmp_path: Path):
    _, ages = aged()
    held = np.arange(NUM_CELLS) % 8 < 2
    held_column = ["yes" if each else "no" for each in held]
    adata = write(tmp_path, {"age": ages.tolist(), "held": held_column})
    result, record = learn(prepare(build(tmp_path)))
    point = result.checkpoint.state.validation[-1]
    assert point["pearson"] > 0.9
    assert point["r2"] > 0.8
    assert point["regression"] == pytest.approx(1 - point["r2"], abs=0.3), "in units of the variance"
    bundle = open_model(record.uri).bundle
    assert (bundle.labels, bundle.classes) == (("age",), ())
    tuned = scGPTFineTuningModel.from_bundle(bundle, configurer=scGPTConfig(), fine_tuning_head="regression")
    predicted = tuned.predict(tuned.process_data(adata))
    assert np.corrcoef(predicted[held], ages[held])[0, 1] > 0.9
    assert np.abs(predicted[held] - ages[held]).mean() < 2.5

    assert CellPredictor(bundle).predict(tuned.process_data(adata).cells).probabilities is None
    served = ServedModel(bundle, CellPredictor(bundle), ModelInfo(name="aged", version="1", digest=record.digest))
    with pytest.raises(RequestError, match="was not trained to label cells"):
        check_labels(served)


def test_a_column_of_other_values_is_refused_before_anything_starts(tmp_path: Path):
    write(tmp_path, {"age": ["young", "old"] * (NUM_CELLS // 2), "held": ["yes", "no"] * (NUM_CELLS // 2)})
    with pytest.raises(CorpusError, match=r"obs/age: 2 of 2 distinct values are not finite numbers: 'old', 'young'"):
        prepare(build(tmp_path))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("1", "inf"), "1 of 2 distinct values are not finite numbers: 'inf'"),
        (("2.5",), "every cell has the number 2.5"),
    ],
)
def test_numbers_are_checked(texts: tuple[str, ...], message: str):
    with pytest.raises(CorpusError, match=message):
        parse_numbers(texts, where="obs/age")
    assert parse_numbers(("1e3", "-2"), where="obs/age").tolist() == [1_000.0, -2.0]
