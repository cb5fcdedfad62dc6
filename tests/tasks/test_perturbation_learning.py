"""Perturbation fine-tuning as a stage: the screen that is read, what a run learns, and a bundle that predicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planted_generator import CHANGED, DEFAULT, GENES, TARGETS, build_settings, save_base, write_screen
from reference_training import train

from cytoray.corpus.manifest import load_manifest
from cytoray.corpus.stream import open_stream
from cytoray.errors import CorpusError, ModelError, RequestError
from cytoray.model.bundle import Conditions, ModelBundle
from cytoray.model.transformer import ScGPT
from cytoray.registry.opening import open_model
from cytoray.tasks.perturbation.config import FinetunePerturbationConfig
from cytoray.tasks.perturbation.corpus_screen import Screen, read_screen
from cytoray.tasks.perturbation.generator import predict_deltas
from cytoray.tasks.perturbation.learning import (
    Measured,
    build_objective,
    finetune,
    held_out_scores,
    initial_weights,
    perturbation_stream,
    targets_of,
)
from cytoray.tokens.features import extend_vocabulary
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.training.perturbation import PerturbationObjective, perturbation_model
from cytoray.training.perturbation_config import PerturbationConfig
from cytoray.training.validation import held_in, open_held_out

LEARNING = 240  # steps until the changes are learnt


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("screen"))
    write_screen(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


def build(store: str, base: Path, **changes: Any) -> FinetunePerturbationConfig:
    settings = build_settings(store, base, base.parent / "journal")
    for section, values in changes.items():
        settings[section] = {**settings[section], **values} if isinstance(values, dict) else values
    return FinetunePerturbationConfig.model_validate_json(json.dumps(settings))


def prepare(config: FinetunePerturbationConfig) -> tuple[Screen, Any, PerturbationObjective]:
    """The screen, options of the stream and the objective, as ``finetune`` makes them."""
    manifest = load_manifest(config.store, config.corpus)
    screen = read_screen(config.store, manifest, config.perturbation, DEFAULT)
    measured = Measured.read(config, open_model(config.initial_uri), manifest, screen)
    panel = tuple(sorted({*measured.genes, *targets_of(screen, DEFAULT)}))
    config = config.model_copy(update={"tokenizer": TokenizerConfig(max_length=len(panel))})
    options = perturbation_stream(config, screen, DEFAULT, panel)
    return screen, options, build_objective(config, screen, measured, DEFAULT, panel)


def test_unassigned_cells_are_left_out_and_counted(store: str) -> None:
    manifest = load_manifest(store, "cells")
    screen = read_screen(store, manifest, PerturbationConfig(batch_key="batch"), DEFAULT)
    assert screen.names == (*sorted(TARGETS), "control")
    assert screen.num_left_out == {"unassigned": 32}
    assert screen.perturbations["STAT1+BRD4"].genes == ("STAT1", "BRD4")
    assert screen.batches == ("one", "two")


def test_screens_that_cannot_be_used_are_refused(store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = load_manifest(store, "cells")
    with pytest.raises(CorpusError, match="no control cells") as caught:
        read_screen(store, manifest, PerturbationConfig(control="controls"), DEFAULT)
    assert "Values there: control" in caught.value.remedy
    with pytest.raises(CorpusError, match="obs has no column 'guide'"):
        read_screen(store, manifest, PerturbationConfig(perturbation_key="guide"), DEFAULT)
    kept_out = tuple(name for name in TARGETS if name != "STAT1")
    with pytest.raises(CorpusError, match=r"has 1 perturbations that can be used \(STAT1\)"):
        read_screen(store, manifest, PerturbationConfig(left_out=kept_out), DEFAULT)
    write_screen(str(tmp_path), others=("dexamethasone", "IRF9_TSS"))
    manifest = load_manifest(str(tmp_path), "cells")
    with pytest.raises(CorpusError, match="not genes that the model knows: dexamethasone") as caught:
        read_screen(str(tmp_path), manifest, PerturbationConfig(), DEFAULT)
    assert "condition" in caught.value.remedy
    found = read_screen(str(tmp_path), manifest, PerturbationConfig(unknown_targets="leave_out"), DEFAULT)
    assert found.num_left_out == {"dexamethasone": 32}
    assert found.perturbations["IRF9_TSS"].genes == ("IRF9",)
    assert "IRF9_TSS → IRF9" in caplog.text
    found = read_screen(str(tmp_path), manifest, PerturbationConfig(unknown_targets="condition"), DEFAULT)
    assert found.conditions == ("dexamethasone",)


def test_models_that_need_more_than_genes_and_values_are_refused(store: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="needs modalities for each cell already"):
        finetune(build(store, save_base(tmp_path, num_modalities=5)))


def test_a_run_starts_with_the_encoders_of_the_initial_model(base: Path) -> None:
    opened = open_model(str(base))
    vocabulary = extend_vocabulary(DEFAULT, {"perturbation": ["dexamethasone"]})
    model = perturbation_model(opened.bundle.model.config, vocabulary_size=vocabulary.size, dropout=0.0)
    weights, old = initial_weights(opened, model, seed=0).weights, opened.bundle.model.state_dict()
    for name, tensor in weights.items():
        if name == "encoder.embedding.weight":
            assert torch.equal(tensor[: DEFAULT.size], old[name])
            assert tensor[DEFAULT.size :].abs().sum() > 0
        elif name.startswith(("encoder.", "value_encoder.", "transformer_encoder.")):
            assert torch.equal(tensor, old[name]), name
        else:
            assert name.startswith(("decoder.coeff", "decoder.bias", "pert_encoder")), name
    assert not weights["pert_encoder.weight"][0].any(), "a gene that is not perturbed is as before"


@pytest.mark.parametrize("loss", ["mse", "weighted"])
def test_training_learns_the_changes_of_seen_perturbations(store: str, base: Path, loss: str) -> None:
    config = build(
        store,
        base,
        perturbation={"loss": loss, "balanced": True, "control_cells": loss == "mse"},
        train={"num_steps": LEARNING, "cells_per_step": 32},
        optimizer={"epsilon": 1e-8},
    )
    _, options, objective = prepare(config)
    stream = open_stream(store, "cells", held_in(options, config))
    shape = perturbation_model(open_model(str(base)).bundle.model.config, vocabulary_size=DEFAULT.size, dropout=0.0)
    torch.manual_seed(0)
    model = ScGPT(shape, pad_id=DEFAULT.pad_id)
    model.load_state_dict(initial_weights(open_model(str(base)), shape, seed=0).weights)
    history = train(model, objective, stream, config, LEARNING)
    assert np.mean([step["expression"] for step in history[-5:]]) < 0.3 * history[0]["expression"]

    panel = tuple(DEFAULT.tokens[gene] for gene in objective.panel.tolist())
    bundle = ModelBundle(
        model, DEFAULT, TokenizerConfig(), conditions=Conditions(task="perturbation", columns={}, panel=panel)
    )
    counts = np.random.default_rng(1).poisson(20.0, (40, len(GENES)))
    controls = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    names = ("STAT1", "SMAD4", "BRD4")
    deltas = predict_deltas(bundle, controls, GENES, names)
    for name, delta in zip(names, deltas, strict=True):
        means = np.full(len(GENES), 20.0)
        means[list(CHANGED[name])] *= 4.0
        means[[column for column, gene in enumerate(GENES) if gene == name]] *= 0.2
        expected = np.log(means / means.sum() * len(GENES))
        changed = list(CHANGED[name])
        others = [column for column in range(2, 18) if column not in changed]
        assert delta[changed].mean() > delta[others].mean() + 0.3, (name, delta)
        if loss == "mse":
            assert np.corrcoef(delta[:18], expected[:18])[0, 1] > 0.5, (name, delta)
    assert predict_deltas(bundle, controls, GENES, ["TP53"]).shape == (1, len(GENES)), "any gene can be asked for"
    with pytest.raises(RequestError, match="does not know dexamethasone"):
        predict_deltas(bundle, controls, GENES, ["STAT1", "dexamethasone"])


def test_held_out_figures_are_those_of_mean_predictions(store: str, base: Path) -> None:
    config = build(store, base)
    screen, options, objective = prepare(config)
    stream = open_stream(store, "cells", held_in(options, config))
    held_out = open_held_out(options, config, like=stream)
    assert held_out is not None
    assert objective.held_out is not None
    batch = held_out.read_step(0, rank=0, world_size=1)
    assert {screen.names[code] for code in batch.columns["perturbation"].tolist()} == {"IRF1"}
    torch.manual_seed(0)
    shape = perturbation_model(open_model(str(base)).bundle.model.config, vocabulary_size=DEFAULT.size, dropout=0.0)
    model = ScGPT(shape, pad_id=DEFAULT.pad_id).eval()
    with torch.no_grad():
        parts = [objective.judge(model, objective.prepare(part)) for part in batch.split(3)]
        prepared = objective.prepare(batch)
        predicted = model.predict_expression(prepared.cells).reshape(batch.gene_ids.shape).numpy()
    totals = {"changes": sum(part["changes"].total for part in parts)}
    figures = objective.summarise(totals, {"expression": 1.0})
    assert next(iter(figures)) == "delta_error", "the best checkpoint is chosen by it"
    truth = objective.held_out.truth[0]
    delta = (predicted - batch.source_values).mean(axis=0)
    measured = [place for place, gene in enumerate(objective.panel) if DEFAULT.tokens[gene] in GENES]
    assert figures["delta_error"] == pytest.approx(np.mean((delta - truth)[measured] ** 2), rel=1e-4)
    scored = [place for place in measured if DEFAULT.tokens[objective.panel[place]] != "IRF1"]
    expected = np.corrcoef(delta[scored], truth[scored])[0, 1]
    assert figures["pearson_delta"] == pytest.approx(expected, rel=1e-4)
    assert 0 < figures["mean_of_seen_pearson_delta"] < 1, "IRF1 shares two genes with STAT1"
    assert truth[scored].max() > 0.7


def test_effects_of_a_corpus_are_those_of_an_assessment(store: str, base: Path, tmp_path: Path) -> None:
    cells = write_screen(str(tmp_path))
    kinds, batches = (np.array(cells[key]) for key in ("perturbation", "batch"))
    normal = np.log1p(cells["counts"] / cells["counts"].sum(axis=1, keepdims=True) * 1e4)
    expected = np.zeros(len(GENES))
    for batch in ("one", "two"):  # half of the cells each
        here = batches == batch
        expected += (
            normal[here & (kinds == "IRF1")].mean(axis=0) - normal[here & (kinds == "control")].mean(axis=0)
        ) / 2
    for loss in ("mse", "weighted"):
        held_out = prepare(build(store, base, perturbation={"batch_key": "batch", "loss": loss}))[2].held_out
        assert held_out is not None
        own = held_out.weights[0][~held_out.scored[0]]
        np.testing.assert_allclose(np.sort(held_out.truth[0])[-3:], np.sort(expected)[-3:], rtol=1e-5)
        assert held_out.weights.sum() == pytest.approx(1)
        assert own.any() == (loss == "mse"), "the perturbed gene does not count among weighted ones"


def test_losses_weigh_genes_by_their_change(store: str, base: Path) -> None:
    screen, _, objective = prepare(build(store, base, perturbation={"loss": "weighted"}))
    row = objective.gene_weights[screen.names.index("SMAD4")]
    genes = [DEFAULT.tokens[gene] for gene in objective.panel]
    changed = [genes.index(GENES[column]) for column in CHANGED["SMAD4"]]
    assert set(np.argsort(-row)[:2].tolist()) == set(changed)
    assert row[objective.predicted].mean() == pytest.approx(1, rel=1e-5)
    assert not row[[genes.index("SMAD4"), genes.index("BRD4")]].any(), "what was not measured is not predicted"


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.timeout(900)
def test_a_fine_tuned_bundle_predicts(base: Path, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    write_screen(store, others=("unassigned", "dexamethasone"))
    recipe = {"unknown_targets": "condition", "max_tokens": 12}
    result, record = finetune(build(store, base, perturbation=recipe, workers={"num_workers": 1}))
    assert [point["step"] for point in result.checkpoint.state.validation] == [4, 8, 12]
    assert {"delta_error", "pearson_delta", "mean_of_seen_pearson_delta"} <= dict(
        result.checkpoint.state.validation[0]
    ).keys()
    scores = held_out_scores(result)
    assert scores["mean of seen"]["pearson_delta"] > 0
    assert scores["generator"].keys() == scores["mean of seen"].keys()
    bundle = open_model(record.uri).bundle
    assert bundle.conditions is not None
    assert bundle.conditions.features == {"perturbation": ("dexamethasone",)}
    assert bundle.conditions.columns["perturbation"] == (*sorted((*TARGETS, "dexamethasone")), "control")
    assert bundle.vocabulary.size == GeneVocabulary.load_default().size + 1
    controls = np.random.default_rng(0).random((10, len(GENES)))
    deltas = predict_deltas(bundle, controls, GENES, ["STAT1", "dexamethasone", "STAT1+dexamethasone"])
    assert np.isfinite(deltas).all()
    assert not np.allclose(deltas[0], deltas[1])
