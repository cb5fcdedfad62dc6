"""Annotation is judged against labels that the model knows, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cytoray.corpus.config import CheckConfig, IngestConfig, SourceConfig
from cytoray.corpus.ingest import ingest
from cytoray.corpus.reading import NamedCells, read_labelled_cells
from cytoray.errors import ConfigError, ModelError
from cytoray.model.bundle import ModelBundle, load_bundle, save_bundle
from cytoray.model.config import ModelConfig
from cytoray.model.transformer import ScGPT
from cytoray.tasks.annotation.config import FinetuneConfig
from cytoray.tasks.annotation.evaluation import Baseline, evaluate, held_out_stability
from cytoray.tasks.annotation.fitting import AttachAnnotator
from cytoray.tasks.annotation.learning import below_labels, read_label_tree
from cytoray.tasks.annotation.product import load_annotator
from cytoray.tasks.starting import inherited_tokenizer
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.tracking import TrackingConfig
from cytoray.training.config import TrainConfig, ValidationConfig
from cytoray.training.export import BundleRecord


def _finetune_config(**tokenizer: Any) -> FinetuneConfig:
    return FinetuneConfig(
        store="store", run="fine", corpus="cells", initial_run="base", label_key="type",
        tokenizer=TokenizerConfig(**tokenizer), train=TrainConfig(num_steps=1, cells_per_step=2),
        tracking=TrackingConfig(uri="sqlite:///mlflow.db"),
    )  # fmt: skip


def test_the_tokenizer_of_the_pretrained_run_is_inherited():
    parent = TokenizerConfig(n_bins=21, max_length=64, cls_value=0.0, seed=7)
    assert inherited_tokenizer(_finetune_config(), parent) == parent
    longer = inherited_tokenizer(_finetune_config(n_bins=21, max_length=128), parent)
    assert longer == parent.model_copy(update={"max_length": 128})


@pytest.mark.parametrize(("key", "value"), [("n_bins", 51), ("cls_value", -2.0), ("pad_value", 0.0)])
def test_a_tokenizer_that_contradicts_the_pretrained_run_is_refused(key: str, value: float):
    parent = TokenizerConfig(n_bins=21, cls_value=0.0)
    with pytest.raises(ConfigError, match=rf"tokenizer\.{key} is {value}, but 'run:base' was trained with"):
        inherited_tokenizer(_finetune_config(**{key: value}), parent)


def test_a_label_tree_is_read_from_a_table(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "tree.csv").write_text("label,parent\nB,lymphoid\nT,lymphoid\n")
    config = _finetune_config().model_copy(update={"label_tree": str(tmp_path / "tree.csv")})
    tree = read_label_tree(str(tmp_path / "tree.csv"))
    assert below_labels(config, tree, ("B", "lymphoid")) == ((True, False), (True, True))
    assert below_labels(config, tree, ("B", "T")) is None
    assert "puts no label of the corpus below another" in caplog.text
    assert below_labels(_finetune_config(), None, ("B", "lymphoid")) is None
    for name, content in {"none.csv": None, "picture.csv": b"\x89PNG\xff"}.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=r"does not exist|not UTF-8"):
            read_label_tree(str(tmp_path / name))


def test_labels_that_the_model_does_not_know_are_refused(tmp_path: Path):
    vocabulary = GeneVocabulary([*(f"GENE{number}" for number in range(20)), "<pad>", "<cls>", "<eoc>"])
    shape = ModelConfig(
        vocabulary_size=vocabulary.size, width=16, num_heads=4, feedforward_width=16, num_layers=1, num_labels=2
    )
    bundle = ModelBundle(ScGPT(shape, pad_id=vocabulary.pad_id), vocabulary, TokenizerConfig(), ("0", "1"))
    cells = SparseCells(
        np.arange(4, dtype=np.int32), np.ones(4, np.float32), np.array([0, 2, 4]), np.arange(2, dtype=np.uint64)
    )
    held_out = NamedCells(cells, ("a", "b"), ("0.0", "1.0"))
    baseline = Baseline(str(tmp_path / "store"), "no-corpus", "leiden")
    with pytest.raises(ModelError, match=r"share no label: the cells have '0.0', '1.0', the model '0', '1'") as error:
        evaluate(bundle, held_out, baseline, folder=tmp_path / "report")
    assert "label_key" in str(error.value.remedy)
    assert not (tmp_path / "report").exists()


@pytest.fixture
def typed_corpus(tmp_path: Path) -> str:
    """A store with the corpus `cells`: two types, 120 cells of donor D1 and 100 of D2."""
    symbols = ["CD3D", "CD3E", "IL7R", "LYZ", "MS4A1", "CD79A", "NKG7", "CD14", "CST3", "CD8A", "CCR7", "S100A8"]
    rng = np.random.default_rng(0)
    rates = np.where(np.arange(12) < 6, 6.0, 2.0) * np.ones((220, 1))
    rates[::2] = rates[::2, ::-1]
    obs = pd.DataFrame({"type": ["T", "B"] * 110, "donor": ["D1"] * 120 + ["D2"] * 100})
    obs.index = obs.index.astype(str)
    counts = rng.poisson(rates).astype(np.float32)
    adata = anndata.AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=symbols))
    adata.write_h5ad(tmp_path / "cells.h5ad")
    store = str(tmp_path / "store")
    source = SourceConfig(uri=str(tmp_path / "cells.h5ad"))
    checks = CheckConfig(min_genes=1, min_matched_genes=1)
    ingest(IngestConfig(store=store, corpus="cells", sources=(source,), checks=checks))
    return store


def random_bundle() -> ModelBundle:
    vocabulary = GeneVocabulary.load_default()
    shape = ModelConfig(
        vocabulary_size=vocabulary.size, width=8, num_heads=2, feedforward_width=8, num_layers=1, num_labels=2
    )
    return ModelBundle(ScGPT(shape, pad_id=vocabulary.pad_id), vocabulary, TokenizerConfig(), ("B", "T"))


def test_a_fine_tuned_bundle_gets_an_annotator_that_beats_its_random_transformer(typed_corpus: str, tmp_path: Path):
    plain = random_bundle()
    config = _finetune_config().model_copy(update={"store": typed_corpus})
    held_out = config.model_copy(update={"validation": ValidationConfig(select="donor == 'D1'")})
    bundle = AttachAnnotator(held_out, ("B", "T"))(plain)
    save_bundle(bundle, tmp_path / "bundle")
    loaded = load_bundle(tmp_path / "bundle")
    annotator = load_annotator(loaded)
    assert annotator is not None
    assert annotator.joined is not None, "120 cells of validation judged the transformer"
    assert not annotator.uses_transformer, "it knows nothing"
    assert loaded.lineage["annotator"] == "blend"
    held = read_labelled_cells(SourceConfig(uri=str(tmp_path / "cells.h5ad")), "type")
    report = evaluate(loaded, held, Baseline(typed_corpus, "cells", "type"), folder=tmp_path / "report")
    assert report.scores["cytoray"].accuracy > 0.95
    assert report.scores["transformer alone"].accuracy < 0.8
    one_type = config.model_copy(update={"label_key": "one"})
    assert AttachAnnotator(one_type, ("B", "T"))(plain) is plain, "a finished training is not lost for an annotator"
    unvalidated = load_annotator(AttachAnnotator(config, ("B", "T"))(plain))
    assert unvalidated is not None
    assert unvalidated.joined is None, "no cell is new to the transformer"


def test_the_stability_of_a_fine_tuned_model_is_that_on_held_out_cells(typed_corpus: str, tmp_path: Path):
    store, bundle = typed_corpus, random_bundle()
    digest = save_bundle(bundle, tmp_path / "bundle")
    record = BundleRecord(uri=str(tmp_path / "bundle"), digest=digest, lineage={}, mlflow_run_id=None)
    config = _finetune_config().model_copy(update={"store": store})
    assert held_out_stability(config, record) == {}
    held_out = config.model_copy(update={"validation": ValidationConfig(select="donor == 'D1'")})
    found = held_out_stability(held_out, record)
    assert set(found) == {"another seed", "1 % of genes dropped", "counts thinned to 90 %"}
    assert all(row["num_cells"] == 100 for row in found.values())
    assert all(0 <= float(row["labels_kept"] or 0) <= 1 for row in found.values())
