"""Fine-tuning learns, keeps its best epoch, ends in eval mode and is saved whole; wrong labels are told by name."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy
import torch
from scipy import sparse

from cytoray.api import scGPT, scGPTConfig, scGPTDataset, scGPTFineTuningModel
from cytoray.errors import ConfigError, ModelError, TrainingError
from cytoray.model.bundle import load_bundle
from cytoray.model.fitting import Fit, hold_out
from cytoray.model.predictor import CellPredictor

MakeAnnData = Callable[..., anndata.AnnData]
REDUCED = Path(scanpy.__file__).parent / "datasets" / "10x_pbmc68k_reduced.h5ad"
FAST = {"epochs": 30, "learning_rate": 5e-3, "batch_size": 16}


@pytest.fixture
def separable(make_adata: MakeAnnData) -> tuple[anndata.AnnData, list[str]]:
    """60 cells of three kinds, each with genes of its own."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.2, (60, 30)).astype(np.float32)
    for row in range(60):
        counts[row, (row % 3) * 6 : (row % 3) * 6 + 6] += 12
    return make_adata(60, X=sparse.csr_matrix(counts)), [("B", "NK", "T")[row % 3] for row in range(60)]


def _tuned(folder: Path, output_size: int = 3, **changes: Any) -> scGPTFineTuningModel:
    head = changes.pop("fine_tuning_head", "classification")
    config = scGPTConfig(model=folder, **changes)
    return scGPTFineTuningModel(scGPT_config=config, fine_tuning_head=head, output_size=output_size)


def _weights(model: scGPT) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.bundle.model.state_dict().items()}


def _same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_the_model_card_fine_tunes():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of anndata, on the file's age
        reduced = anndata.read_h5ad(REDUCED)
    adata = reduced.raw.to_adata()[:60].copy()
    labels = list(adata.obs["bulk_labels"])
    config = scGPTConfig(batch_size=10, nlayers=2, nheads=4, embsize=64, d_hid=64)
    with pytest.warns(UserWarning, match="RANDOM weights"):
        tuned = scGPTFineTuningModel(
            scGPT_config=config, fine_tuning_head="classification", output_size=len(set(labels))
        )
    data = tuned.process_data(adata, use_raw_counts=False)
    tuned.train(train_input_data=data, train_labels=labels)
    outputs = tuned.get_outputs(data)
    assert outputs.shape == (60, len(set(labels)))
    assert outputs.dtype == np.float32
    assert set(tuned.predict(data)) <= set(labels)
    assert tuned.history[0].keys() == {"epoch", "train_loss", "validation_loss", "accuracy"}
    assert tuned.get_embeddings(data).shape == (60, 64)


def test_a_separable_problem_is_learned(separable: Any, bundle_folder: Path):
    adata, labels = separable
    tuned = _tuned(bundle_folder)
    data = tuned.process_data(adata)
    before = scGPT(scGPTConfig(model=bundle_folder)).get_embeddings(data)
    np.testing.assert_allclose(tuned.get_embeddings(data), before, atol=1e-6)  # the weights were taken over
    history = tuned.train(data, labels, **FAST)
    assert history is tuned.history
    assert history[-1]["accuracy"] == 1.0
    assert (tuned.predict(data) == np.array(labels, object)).all()
    assert tuned.bundle.labels == ("B", "NK", "T")
    assert not tuned.bundle.model.training
    assert np.abs(tuned.get_embeddings(data) - before).max() > 1e-2


def test_long_training_shows_its_progress(
    separable: Any, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    adata, labels = separable
    tuned = _tuned(bundle_folder)
    data = tuned.process_data(adata)
    monkeypatch.setattr("cytoray.progress.LINE_EVERY_S", 1e9)
    tuned.train(data, labels)
    assert capsys.readouterr().err == ""  # it is over before anybody waits
    monkeypatch.setattr("cytoray.progress.LINE_EVERY_S", 0.0)
    tuned.train(data, labels, epochs=2)
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"  train: \d+/108 cells, .*/s( .* left)? epoch 1, loss [\d.]+", lines[1])
    assert lines[-1].startswith("  train: 108/108 cells")


def test_training_depends_on_its_seed_alone(separable: Any, bundle_folder: Path):
    adata, labels = separable
    outputs = []
    for seed, noise in ((1, 7), (1, 8), (2, 7)):
        torch.manual_seed(noise)
        tuned = _tuned(bundle_folder, dropout=0.3)
        data = tuned.process_data(adata)
        state = torch.get_rng_state()
        tuned.train(data, labels, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        outputs.append(tuned.get_outputs(data))
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert np.abs(outputs[0] - outputs[2]).max() > 1e-3


def test_micro_batches_do_not_change_a_step(separable: Any, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch):
    adata, labels = separable
    losses, weights = [], []
    for most_tokens in (4096, 25):
        monkeypatch.setattr("cytoray.model.fitting.MOST_TOKENS", most_tokens)
        tuned = _tuned(bundle_folder)
        data = tuned.process_data(adata)
        tuned.train(data, labels, batch_size=20, validation_fraction=0)
        losses.append(tuned.history[0]["train_loss"])
        weights.append(_weights(tuned))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=2e-4), name


def test_the_loss_is_the_mean_over_the_cells(separable: Any, bundle_folder: Path):
    adata, labels = separable
    tuned = _tuned(bundle_folder, max_length=40)  # nothing is sampled
    data = tuned.process_data(adata)
    logits = torch.from_numpy(tuned.get_outputs(data))
    codes = torch.tensor([["B", "NK", "T"].index(label) for label in labels])
    expected = torch.nn.functional.cross_entropy(logits, codes).item()
    tuned.train(data, labels, batch_size=60, validation_fraction=0)
    assert tuned.history[0]["train_loss"] == pytest.approx(expected, rel=0.1)  # ties are broken anew in each epoch
    tuned = _tuned(bundle_folder)
    tuned.train(data, labels, validation_input_data=data, validation_labels=labels, learning_rate=1e-12)
    judged = torch.from_numpy(tuned.get_outputs(data))
    assert tuned.history[0]["validation_loss"] == pytest.approx(
        torch.nn.functional.cross_entropy(judged, codes).item(), abs=1e-4
    )


def test_the_best_epoch_stays(separable: Any, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch):
    adata, labels = separable
    seen: list[dict[str, torch.Tensor]] = []
    losses = iter([3.0, 1.0, 2.0, 1.5, 9.0])

    def judge(self: Fit, examples: Any) -> dict[str, float]:
        seen.append({name: tensor.clone() for name, tensor in self._model.state_dict().items()})
        return {"validation_loss": next(losses)}

    monkeypatch.setattr(Fit, "judge", judge)
    tuned = _tuned(bundle_folder)
    history = tuned.train(tuned.process_data(adata), labels, epochs=5, learning_rate=1e-2, patience=2)
    assert [record["validation_loss"] for record in history] == [3.0, 1.0, 2.0, 1.5]  # then patience was at its end
    assert _same(_weights(tuned), seen[1])
    assert not _same(_weights(tuned), seen[3])
    assert not tuned.bundle.model.training


def test_whatever_happens_the_model_ends_in_eval_mode(
    separable: Any, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    adata, labels = separable
    tuned = _tuned(bundle_folder)
    data = tuned.process_data(adata)

    def interrupted(self: Fit, *args: Any) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(Fit, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tuned.train(data, labels, freeze_layers=1)
    assert not tuned.bundle.model.training
    assert all(parameter.requires_grad for parameter in tuned.bundle.model.parameters())


def test_frozen_layers_stay(separable: Any, bundle_folder: Path):
    adata, labels = separable
    tuned = _tuned(bundle_folder)
    before = _weights(tuned)
    tuned.train(tuned.process_data(adata), labels, freeze_layers=1)
    changed = {name for name, tensor in _weights(tuned).items() if not torch.equal(tensor, before[name])}
    assert not {name for name in changed if name.startswith(("encoder.", "transformer_encoder.layers.0."))}
    assert any(name.startswith("transformer_encoder.layers.1.") for name in changed)
    assert any(name.startswith("cls_decoder.") for name in changed)
    with pytest.raises(ConfigError, match=r"freeze_layers is 3.*2 layers"):
        tuned.train(tuned.process_data(adata), labels, freeze_layers=3)


def test_lower_layers_learn_more_slowly(separable: Any, bundle_folder: Path):
    """Adam's first step is as long as the learning rate, whatever the gradient."""
    adata, labels = separable
    tuned = _tuned(bundle_folder)
    before = _weights(tuned)
    num_cells = adata.n_obs
    tuned.train(tuned.process_data(adata), labels, layer_decay=0.1, validation_fraction=0, batch_size=num_cells)
    step = {name: float((tensor - before[name]).abs().max()) for name, tensor in _weights(tuned).items()}
    assert step["transformer_encoder.layers.0.linear1.weight"] == pytest.approx(1e-4 * 0.01, rel=0.05)
    assert step["transformer_encoder.layers.1.linear1.weight"] == pytest.approx(1e-4 * 0.1, rel=0.05)
    assert step["cls_decoder.out_layer.weight"] == pytest.approx(1e-4, rel=0.05)


def test_the_source_is_not_changed(separable: Any, bundle_folder: Path):
    adata, labels = separable
    source = load_bundle(bundle_folder)
    before = {name: tensor.clone() for name, tensor in source.model.state_dict().items()}
    tuned = scGPTFineTuningModel.from_bundle(source, output_size=3)
    tuned.train(tuned.process_data(adata), labels, learning_rate=1e-2)
    assert _same(before, source.model.state_dict())
    assert tuned.bundle.lineage["parent_bundle_digest"] == source.digest


def test_saved_and_loaded_it_says_the_same(separable: Any, bundle_folder: Path, tmp_path: Path):
    adata, labels = separable
    tuned = _tuned(bundle_folder)
    data = tuned.process_data(adata)
    tuned.train(data, labels, **FAST)
    expected = tuned.get_outputs(data)
    digest = tuned.save(tmp_path / "tuned")
    bundle = load_bundle(tmp_path / "tuned")
    assert bundle.digest == digest
    again = _tuned(tmp_path / "tuned")
    np.testing.assert_array_equal(again.get_outputs(again.process_data(adata)), expected)
    assert (again.predict(data) == np.array(labels, object)).all()
    unsized = scGPTFineTuningModel.from_bundle(bundle)
    np.testing.assert_array_equal(unsized.get_outputs(data), expected)
    served = CellPredictor(bundle).predict(data.cells)  # what the service does
    assert served.probabilities is not None
    np.testing.assert_allclose(served.probabilities, torch.from_numpy(expected).softmax(1).numpy(), atol=1e-5)
    again.train(data, labels, learning_rate=1e-6)  # goes on from there
    assert again.history[0]["validation_loss"] < 0.3
    other = ["xyz"[row % 3] for row in range(60)]
    again.train(data, other, learning_rate=1e-6)  # other classes: another head
    assert again.history[0]["validation_loss"] > 0.3
    assert again.bundle.labels == ("x", "y", "z")


def test_whole_numbers_are_the_numbers_of_the_outputs(separable: Any, bundle_folder: Path, tmp_path: Path):
    adata, labels = separable
    codes = np.array([{"B": 0, "NK": 2, "T": 4}[label] for label in labels])
    tuned = _tuned(bundle_folder, output_size=5)
    data = tuned.process_data(adata)
    tuned.train(data, codes, **FAST)
    assert (tuned.get_outputs(data).argmax(axis=1) == codes).all()
    tuned.save(tmp_path / "tuned")
    assert list(_tuned(tmp_path / "tuned", output_size=5).predict(data)) == codes.tolist()
    years = _tuned(bundle_folder, output_size=4)
    years.train(data, codes + 2000, **FAST)
    assert years.bundle.labels == ("2000", "2002", "2004", "(unused 1)")
    assert list(years.predict(data)) == (codes + 2000).tolist()


def test_labels_are_matched_by_name(separable: Any, bundle_folder: Path):
    adata, labels = separable
    named = pd.Series(labels, index=adata.obs_names).sample(frac=1, random_state=0)
    tuned = _tuned(bundle_folder)
    data = tuned.process_data(adata)
    tuned.train(data, named.astype("category"), **FAST)
    assert (tuned.predict(data) == np.array(labels, object)).all()


def test_labels_of_other_cells_are_refused(separable: Any, bundle_folder: Path):
    adata, labels = separable
    tuned = _tuned(bundle_folder)
    data = tuned.process_data(adata)
    named = pd.Series(labels, index=adata.obs_names)
    for wrong, told in (
        (named.rename({"c7": "x7"}), r"1 cells have no label \(c7\), 1 labels are of other cells \(x7\)"),
        (named.drop("c7"), r"1 cells have no label \(c7\)"),
        (pd.concat([named, pd.Series(["B"], index=["x"])]).iloc[::-1], r"labels are of other cells \(x\)"),
        (pd.concat([named, named[:1]]), r"names are repeated \(c0\)"),
        (named.to_frame().drop("c7"), "no label"),
    ):
        with pytest.raises(ModelError, match=rf"train_labels: the index names some of the cells, but .*{told}"):
            tuned.train(data, wrong)
    tuned.train(data, pd.Series(labels), **FAST)  # an index of numbers names no cell
    assert (tuned.predict(data) == np.array(labels, object)).all()


def test_targets_are_matched_by_the_names_of_their_columns(separable: Any, bundle_folder: Path):
    adata, _ = separable
    table = pd.DataFrame({"a": np.arange(60) % 3 - 1.0, "b": 5.0}, index=adata.obs_names)
    losses = []
    for validation in (table, table.iloc[::-1][["b", "a"]]):
        tuned = _tuned(bundle_folder, output_size=2, fine_tuning_head="regression")
        data = tuned.process_data(adata)
        losses.append(tuned.train(data, table, validation_input_data=data, validation_labels=validation))
    assert losses[0] == losses[1]
    with pytest.raises(ModelError, match="validation_labels has the columns a, c, the training labels have a, b"):
        tuned.train(data, table, validation_input_data=data, validation_labels=table.rename(columns={"b": "c"}))


def test_labels_are_the_same_classes_as_integers_floats_and_text(separable: Any, bundle_folder: Path):
    adata, labels = separable
    numbers = pd.Series(labels).map({"B": 3, "NK": 4, "T": 5})
    for values, names in (
        (numbers, ("3", "4", "5")),
        (numbers.astype(float), ("3", "4", "5")),
        (numbers.astype("category"), ("3", "4", "5")),
        (numbers.astype(str), ("3", "4", "5")),
        (numbers.astype(str).str.encode("ascii"), ("3", "4", "5")),
        (numbers > 3, ("False", "True", "(unused 1)")),
    ):
        tuned = _tuned(bundle_folder)
        tuned.train(tuned.process_data(adata), values)
        assert tuned.bundle.labels == names


def test_classes_that_look_missing_are_named(separable: Any, bundle_folder: Path):
    adata, labels = separable
    tuned = _tuned(bundle_folder)
    data = tuned.process_data(adata)
    with pytest.warns(UserWarning, match="train_labels: 'nan' is a class like any other"):
        tuned.train(data, ["nan" if label == "T" else label for label in labels])


def test_regression(separable: Any, bundle_folder: Path, tmp_path: Path):
    adata, _ = separable
    targets = np.array([[row % 3 - 1.0, (row % 3) / 2] for row in range(60)])
    tuned = _tuned(bundle_folder, output_size=2, fine_tuning_head="regression")
    data = tuned.process_data(adata)
    tuned.train(data, targets, **FAST)
    assert tuned.history[-1].keys() == {"epoch", "train_loss", "validation_loss", "r2", "pearson"}
    assert tuned.history[-1]["r2"] > 0.9
    expected = tuned.predict(data)
    assert np.abs(expected - targets).mean() < 0.2
    tuned.save(tmp_path / "tuned")
    assert load_bundle(tmp_path / "tuned").lineage["head"] == "regression"
    again = _tuned(tmp_path / "tuned", output_size=2, fine_tuning_head="regression")
    np.testing.assert_array_equal(again.predict(data), expected)
    one = _tuned(bundle_folder, output_size=1, fine_tuning_head="regression")
    one.train(data, targets[:, 0].tolist())
    assert one.predict(data).shape == (60,)
    for wrong, told in (
        (targets[:, :1], r"shape \(60, 1\)"),
        ([np.inf] * 60, "finite"),
        (["x"] * 60, "numbers"),
    ):
        with pytest.raises(ModelError, match=f"train_labels.*{told}"):
            tuned.train(data, wrong)


@pytest.mark.parametrize("number_loss", ["squared", "huber"])
def test_numbers_of_any_unit_are_learned_and_training_continues(separable: Any, bundle_folder: Path, number_loss: Any):
    adata, _ = separable
    targets = np.array([5_000 + 200 * (row % 3) for row in range(60)])
    tuned = _tuned(bundle_folder, output_size=1, fine_tuning_head="regression")
    data = tuned.process_data(adata)
    tuned.train(data, targets, number_loss=number_loss, **FAST)
    assert np.abs(tuned.predict(data) - targets).mean() < 40
    tuned.train(data, targets, number_loss=number_loss, epochs=1, learning_rate=1e-9)
    assert tuned.history[0]["r2"] > 0.9, "from the trained head, not from a new one"
    assert np.abs(tuned.predict(data) - targets).mean() < 40


def test_own_validation_cells(separable: Any, bundle_folder: Path):
    adata, labels = separable
    tuned = _tuned(bundle_folder)
    data = tuned.process_data(adata)
    first, last = data.take(np.arange(45)), data.take(np.arange(45, 60))
    tuned.train(first, labels[:45], validation_input_data=last, validation_labels=labels[45:], **FAST)
    assert tuned.history[-1]["accuracy"] == 1.0
    with pytest.raises(ModelError, match=r"not among the training labels: mast, monocyte"):
        tuned.train(
            first, labels[:45], validation_input_data=last, validation_labels=["mast", "monocyte", *labels[47:]]
        )
    two = [label if label != "T" else "B" for label in labels]
    with pytest.raises(ModelError, match="not among the training labels: T"):
        tuned.train(first, two[:45], validation_input_data=last, validation_labels=labels[45:])
    with pytest.raises(ConfigError, match="go together"):
        tuned.train(first, labels[:45], validation_labels=labels[45:])


def _labels(labels: list[str], **changes: Any) -> list[Any]:
    return [changes.get(f"c{row}", label) for row, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda labels: labels[:59], "59 labels for 60 cells"),
        (lambda labels: _labels(labels, c4=None, c9=np.nan), "2 cells have no label: c4, c9"),
        (lambda labels: _labels(labels, c4="mast"), "4 classes for output_size 3: B, NK, T, mast"),
        (lambda labels: _labels(labels, c4=1), "texts and numbers"),
        (lambda labels: [0.5] * 60, "0.5 is not a class.*regression"),
        (lambda labels: "BNK", "are a str"),
        (lambda labels: ["B"] * 60, "All training labels are 'B'.*two classes"),
    ],
)
def test_wrong_labels_are_told(separable: Any, bundle_folder: Path, change: Any, told: str):
    adata, labels = separable
    tuned = _tuned(bundle_folder)
    data = tuned.process_data(adata)
    before = _weights(tuned)
    with pytest.raises(ModelError, match=told):
        tuned.train(data, change(labels))
    assert _same(before, _weights(tuned))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"epochs": 0}, "epochs.*greater than or equal to 1, got 0"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"validation_fraction": 1.0}, "validation_fraction.*less than 1"),
        ({"batch_size": 0}, "batch_size"),
        ({"patience": 2, "validation_fraction": 0.0}, "patience needs validation"),
    ],
)
def test_wrong_settings_are_told(separable: Any, bundle_folder: Path, settings: dict[str, Any], told: str):
    adata, labels = separable
    tuned = _tuned(bundle_folder)
    with pytest.raises(ConfigError, match=told):
        tuned.train(tuned.process_data(adata), labels, **settings)


def test_wrong_heads_are_told(bundle_folder: Path):
    with pytest.raises(ConfigError, match=r"fine_tuning_head is 'cluster'.*classification, regression"):
        _tuned(bundle_folder, fine_tuning_head="cluster")
    for size in (0, None, "three", True):
        with pytest.raises(ConfigError, match="output_size"):
            _tuned(bundle_folder, output_size=size)


def test_a_head_that_was_not_trained_predicts_nothing(separable: Any, bundle_folder: Path):
    tuned = _tuned(bundle_folder)
    data = tuned.process_data(separable[0])
    assert np.isfinite(tuned.get_outputs(data)).all()
    with pytest.raises(ModelError, match="not been trained"):
        tuned.predict(data)


def test_a_loss_that_is_not_finite_stops(separable: Any, bundle_folder: Path):
    adata, _ = separable
    tuned = _tuned(bundle_folder, output_size=1, fine_tuning_head="regression")
    with pytest.raises(TrainingError, match=r"loss is (inf|nan)"):
        tuned.train(tuned.process_data(adata), [*range(60)], learning_rate=1e30, epochs=2)
    assert not tuned.bundle.model.training


def test_cells_without_genes_are_left_out(separable: Any, bundle_folder: Path):
    adata, labels = separable
    dense = adata.X.toarray()
    dense[[7, 11]] = 0
    tuned = _tuned(bundle_folder)
    with pytest.warns(UserWarning, match="c7, c11"):
        data: scGPTDataset = tuned.process_data(anndata.AnnData(sparse.csr_matrix(dense), obs=adata.obs, var=adata.var))
    with pytest.warns(UserWarning, match="left out: c7, c11"):
        tuned.train(data, labels, **FAST)
    assert tuned.history[-1]["accuracy"] == 1.0
    assert np.flatnonzero(np.isnan(tuned.get_outputs(data)).all(axis=1)).tolist() == [7, 11]
    predicted = tuned.predict(data)
    assert predicted[7] is None
    assert predicted[8] == labels[8]


def test_every_class_is_held_out_in_its_share():
    strata = np.array([0] * 40 + [1] * 20 + [2])
    rows, held = hold_out(strata, fraction=0.2, seed=0)
    assert np.bincount(strata[held]).tolist() == [8, 4]  # the only one of its class stays
    assert sorted([*rows, *held]) == list(range(61))
    assert not np.array_equal(held, hold_out(strata, fraction=0.2, seed=1)[1])
    assert len(hold_out(strata, fraction=0.0, seed=0)[1]) == 0


def test_cells_with_a_coarse_label_get_the_finer_one_that_fits(separable: Any, bundle_folder: Path):
    adata, kinds = separable
    given = [kind if row % 2 or kind == "B" else "lymphoid" for row, kind in enumerate(kinds)]
    coarse = [row for row, label in enumerate(given) if label == "lymphoid"]
    tuned = _tuned(bundle_folder, output_size=4)
    data = tuned.process_data(adata)
    tuned.train(data, given, label_tree={"NK": "lymphoid", "T": "lymphoid"}, **FAST)
    answers = tuned.predict(data)
    assert np.mean([answers[row] == kinds[row] for row in coarse]) >= 0.9
    with pytest.raises(ConfigError, match="cycle"):
        tuned.train(data, given, label_tree={"NK": "T", "T": "NK"})
    flat = _tuned(bundle_folder, output_size=4)
    flat.train(data, given, **FAST)
    plain = flat.predict(data)
    assert np.mean([plain[row] == "lymphoid" for row in coarse]) >= 0.5, "without a tree labels exclude each other"
