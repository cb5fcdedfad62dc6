"""Protein models: fitted, kept as a folder, used on cells without proteins; joint neighbours."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch
from planted_proteins import GENES, PROTEINS, build
from typer.testing import CliRunner

import cytoray
from cytoray.cli.main import app
from cytoray.errors import ConflictError, CorpusError, DigestError
from cytoray.evaluation.splits import stratified_folds
from cytoray.model.bundle import ModelBundle, save_bundle
from cytoray.model.config import ModelConfig
from cytoray.model.transformer import ScGPT
from cytoray.tasks.multiomic import assessment, members
from cytoray.tasks.multiomic.blending import choose_blend, fit_weights
from cytoray.tasks.multiomic.joint import weighted_neighbours
from cytoray.tasks.multiomic.paired import centred_log_ratio
from cytoray.tasks.multiomic.scoring import mean_correlation, weighted_correlations
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller networks: the cells are few."""
    monkeypatch.setattr(assessment, "NUM_FOLDS", 2)
    monkeypatch.setattr(members, "NUM_NETWORKS", 1)
    monkeypatch.setattr(members, "LAYERS", (16,))


def test_a_model_is_fitted_kept_and_used(tmp_path: Path) -> None:
    build(150).write_h5ad(tmp_path / "cite.h5ad")
    query = build(50, seed=4)
    truth = query.obsm.pop("protein_counts").to_numpy()
    query.write_h5ad(tmp_path / "query.h5ad")
    run = CliRunner().invoke
    options = ["--data", str(tmp_path / "cite.h5ad"), "--out", str(tmp_path / "m"), "--json"]
    fitted = run(app, ["proteins", "fit", *options], catch_exceptions=False)
    confidence = json.loads(fitted.stdout)["confidence"]
    assert list(confidence) == list(PROTEINS)
    assert min(confidence.values()) > 0.4
    options = [
        "--data",
        str(tmp_path / "query.h5ad"),
        "--model",
        str(tmp_path / "m"),
        "--out",
        str(tmp_path / "o.h5ad"),
    ]
    run(app, ["proteins", "predict", *options], catch_exceptions=False)
    written = anndata.read_h5ad(tmp_path / "o.h5ad")
    predicted = written.obsm["X_protein_predicted"]
    assert mean_correlation(centred_log_ratio(truth), predicted.astype(float)) > 0.75
    assert list(written.uns["X_protein_predicted_names"]) == list(PROTEINS)
    assert list(written.obs.columns) == ["cell_type"], "the file is kept as it is"
    half_width = written.uns["protein_prediction"]["half_width"]
    inside = np.abs(centred_log_ratio(truth) - predicted) <= half_width
    assert 0.8 < inside.mean() <= 1
    with pytest.raises(ConflictError, match="already exists"):
        run(app, ["proteins", "predict", *options], catch_exceptions=False)


def test_equal_predictions_in_memory_and_from_the_folder(tmp_path: Path) -> None:
    adata = build(100)
    model = cytoray.ProteinModel.fit(adata, "protein_counts")
    model.save(tmp_path / "m")
    loaded = cytoray.ProteinModel.load(tmp_path / "m")
    expected = model.predict(adata)
    np.testing.assert_array_equal(loaded.predict(adata).values, expected.values)
    shuffled = loaded.predict(adata[:, ::-1].copy())
    np.testing.assert_allclose(shuffled.values, expected.values, atol=1e-5)
    assert not shuffled.warnings
    table = adata.obsm["protein_counts"]
    again = cytoray.ProteinModel.fit(adata, table.to_numpy(), names=list(table.columns))
    np.testing.assert_array_equal(again.predict(adata).values, expected.values)
    assert {path.name for path in (tmp_path / "m").iterdir()} == {"arrays.safetensors", "model.json"}
    data = bytearray((tmp_path / "m" / "arrays.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "m" / "arrays.safetensors").write_bytes(data)
    with pytest.raises(DigestError, match="changed or damaged"):
        cytoray.ProteinModel.load(tmp_path / "m")


def test_a_model_is_read_as_it_was_fitted_whatever_is_fitted_today(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adata = build(100)
    model = cytoray.ProteinModel.fit(adata, "protein_counts")
    assert any(member.kind == "network" for member in model.members.values())
    expected = model.predict(adata).values
    model.save(tmp_path / "m")
    monkeypatch.setattr(members, "NUM_NETWORKS", 2)
    monkeypatch.setattr(members, "LAYERS", (8, 8))
    np.testing.assert_array_equal(cytoray.ProteinModel.load(tmp_path / "m").predict(adata).values, expected)


def test_missing_genes_are_named_and_strangers_refused() -> None:
    adata = build(100)
    model = cytoray.ProteinModel.fit(adata, "protein_counts")
    fewer = model.predict(adata[:, 5:].copy())
    assert "5 of the model's 60 genes are missing (" in fewer.warnings[0]
    assert np.isfinite(fewer.values).all()
    adata.var_names = [f"other{number}" for number in range(adata.n_vars)]
    with pytest.raises(CorpusError, match=r"0 of the model's 60 genes"):
        model.predict(adata)
    with pytest.raises(CorpusError, match=r"No proteins under 'adt'.*protein_counts"):
        cytoray.ProteinModel.fit(adata, "adt")


def test_a_transformer_stands_beside_the_other_methods(tmp_path: Path) -> None:
    build(60).write_h5ad(tmp_path / "cite.h5ad")
    vocabulary = GeneVocabulary(GENES)
    sizes = {"width": 16, "num_heads": 2, "feedforward_width": 16, "num_layers": 1}
    torch.manual_seed(0)
    model = ScGPT(ModelConfig(vocabulary_size=vocabulary.size, **sizes), pad_id=vocabulary.pad_id).eval()
    save_bundle(ModelBundle(model, vocabulary, TokenizerConfig(max_length=64)), tmp_path / "bundle")
    report = cytoray.assess(
        "multiomic", data=str(tmp_path / "cite.h5ad"), model=str(tmp_path / "bundle"), out=str(tmp_path / "out")
    )
    row = report["metrics"]["pearson"]
    assert row["floor"] < row["model"] < row["product"]
    assert "transformer ridge" in {each["member"] for each in report["details"]["weights"]}
    assert report["model"] == str(tmp_path / "bundle")


def test_the_simple_method_stays_unless_something_is_clearly_better() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(300, 3))
    good, bad = truth + rng.normal(size=truth.shape), rng.normal(size=truth.shape)
    folds = stratified_folds(["cell"] * 300, num_folds=3, seed=0)
    names = ("ridge", "neighbours", "kernel", "network")
    held_out = dict.fromkeys(names, bad[None]) | {"kernel": good[None]}
    _, chosen, why, scores = choose_blend(held_out, truth, folds)
    assert chosen == "kernel"
    assert "kernel" in why
    assert scores["kernel"] == max(scores.values()) or "standard error" in why
    held_out["network"] = (truth + rng.normal(size=truth.shape))[None]
    blend, chosen, _, _ = choose_blend(held_out, truth, folds)
    assert chosen == "weights per protein"
    assert all((weight >= 0).all() for weight in blend.weights.values())
    assert (blend.weights["network"] > 2 * blend.weights["ridge"]).all()


def test_weights_are_those_of_least_squares() -> None:
    rng = np.random.default_rng(1)
    answers = {name: rng.normal(size=(1, 2000, 2)) for name in ("a", "b")}
    truth = 0.3 * answers["a"][0] + 0.9 * answers["b"][0] + 2
    blend = fit_weights(answers, truth)
    np.testing.assert_allclose(blend.weights["a"], 0.3, atol=0.02)
    np.testing.assert_allclose(blend.weights["b"], 0.9, atol=0.02)
    np.testing.assert_allclose(blend.intercept, 2, atol=0.05)


def test_correlations_of_draws_are_those_of_the_rows_drawn() -> None:
    rng = np.random.default_rng(2)
    truth, predicted = rng.normal(size=(2, 50, 3)) + 100
    rows = rng.integers(0, 50, 50)
    weights = np.bincount(rows, minlength=50)[None].astype(float)
    expected = [np.corrcoef(truth[rows, place], predicted[rows, place])[0, 1] for place in range(3)]
    np.testing.assert_allclose(weighted_correlations(truth, predicted, weights)[0], expected)


def test_joint_neighbours_trust_the_modality_that_tells_cells_apart() -> None:
    rng = np.random.default_rng(3)
    kinds = np.repeat(np.arange(4), 30)
    signal = (np.eye(4)[kinds] * 10 + rng.normal(size=(120, 4))).astype(np.float32)
    noise = rng.normal(size=(120, 4)).astype(np.float32)
    for rna, proteins, is_rna in ((signal, noise, True), (noise, signal, False)):
        found = weighted_neighbours(rna, proteins, num=10)
        assert (found.rna_weight.mean() > 0.5) == is_rna
        assert (kinds[found.places] == kinds[:, None]).mean() > 0.9
        assert not (found.places == np.arange(120)[:, None]).any(), "no cell is its own neighbour"


def test_a_joint_embedding_is_written(tmp_path: Path) -> None:
    build(60).write_h5ad(tmp_path / "cite.h5ad")
    options = ["--data", str(tmp_path / "cite.h5ad"), "--out", str(tmp_path / "joint.h5ad")]
    CliRunner().invoke(app, ["proteins", "joint", *options], catch_exceptions=False)
    written = anndata.read_h5ad(tmp_path / "joint.h5ad")
    assert written.obsm["X_joint"].shape == (60, 50 + 5)
    assert "protein_counts" in written.obsm
