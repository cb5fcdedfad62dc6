"""Fine-tuning starts from any model: its weights, vocabulary and tokens, and a run keeps to the one it started from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from cytoray.errors import ConfigError, ModelError, TrainingError
from cytoray.model.bundle import ModelBundle, load_bundle, save_bundle
from cytoray.model.config import ModelConfig
from cytoray.model.public_checkpoint import export_bundle
from cytoray.model.transformer import ScGPT
from cytoray.registry.opening import open_model
from cytoray.runs import run_folder
from cytoray.stages.resume import summarise_finished
from cytoray.tasks.annotation.config import FinetuneConfig
from cytoray.tasks.annotation.learning import initial_weights, prepare
from cytoray.tasks.learning import learn
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.tracking import TrackingConfig
from cytoray.training.config import OptimizerConfig, TrainConfig, WorkersConfig
from cytoray.training.report import save_card


def _bundle(*, seed: int = 0, num_labels: int = 0, labels: tuple[str, ...] = (), **shape: object) -> ModelBundle:
    """A tiny model with a vocabulary of its own: 80 of the corpus's 120 genes, in another order."""
    vocabulary = GeneVocabulary(["<pad>", "<cls>", "<eoc>", *reversed(GeneVocabulary.load_default().tokens[20:100])])
    torch.manual_seed(seed)
    size = {"width": 16, "num_heads": 2, "feedforward_width": 16, "num_layers": 1, "dropout": 0.0}
    config = ModelConfig(vocabulary_size=vocabulary.size, num_labels=num_labels, **(size | shape))
    return ModelBundle(
        ScGPT(config, pad_id=vocabulary.pad_id).eval(), vocabulary, TokenizerConfig(n_bins=21, max_length=30), labels
    )


def _config(store: Path, tmp_path: Path, initial: str, **changes: object) -> FinetuneConfig:
    settings = {"run": f"fine-{tmp_path.name}"} | changes
    return FinetuneConfig(
        store=str(store),
        corpus="cells",
        initial=initial,
        label_key="kind",
        train=TrainConfig(num_steps=2, cells_per_step=16),
        optimizer=OptimizerConfig(learning_rate=1e-7),
        workers=WorkersConfig(num_workers=1, zero_stage=3),
        tracking=TrackingConfig(uri="http://127.0.0.1:9", journal_folder=str(tmp_path / "journal")),
        **settings,
    )


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.timeout(900)
def test_fine_tuning_a_public_checkpoint_with_its_own_vocabulary(store: Path, tmp_path: Path) -> None:
    original = _bundle()
    export_bundle(original, tmp_path / "public")
    config = _config(store, tmp_path, str(tmp_path / "public"))
    result, record = learn(prepare(config))
    tuned = load_bundle(Path(record.uri))
    assert tuned.vocabulary == original.vocabulary
    assert tuned.tokenizer_config == original.tokenizer_config
    assert tuned.labels == ("B", "NK", "T")
    kept = json.loads((Path(run_folder(str(store), config.run)) / "run.json").read_text())
    assert kept["config"]["initial"] == str(tmp_path / "public")
    assert kept["initial_digest"] == tuned.lineage["parent_bundle_digest"]
    weights = tuned.model.state_dict()
    for name, tensor in original.model.state_dict().items():  # the steps were as good as none
        torch.testing.assert_close(weights[name], tensor, atol=1e-5, rtol=0)
    save_card(config, result, bundle=record)
    assert summarise_finished(config) is not None

    shutil.rmtree(tmp_path / "public")
    assert summarise_finished(config) is not None, "a result does not need the model that it was made of"
    export_bundle(_bundle(seed=1), tmp_path / "public")
    for again in (lambda: learn(prepare(config)), lambda: summarise_finished(config)):
        with pytest.raises(TrainingError, match=rf"initial \(the run started from the model {kept['initial_digest']}"):
            again()


def test_a_contradiction_of_the_model_names_both_sides(tmp_path: Path) -> None:
    save_bundle(_bundle(), tmp_path / "bundle")
    config = _config(tmp_path, tmp_path, str(tmp_path / "bundle"), tokenizer=TokenizerConfig(n_bins=51))
    with pytest.raises(ConfigError, match=r"tokenizer\.n_bins is 51, but '.*bundle' was trained with 21"):
        prepare(config)


def test_a_model_that_needs_more_than_genes_and_values_is_refused(tmp_path: Path) -> None:
    save_bundle(_bundle(num_modalities=5), tmp_path / "bundle")
    with pytest.raises(ModelError, match=r"bundle needs modalities for each cell"):
        prepare(_config(tmp_path, tmp_path, str(tmp_path / "bundle")))


@pytest.mark.parametrize(("labels", "kept"), [(("B", "T"), True), (("T", "B"), False), (("B", "NK", "T"), False)])
def test_a_classifier_is_kept_only_for_the_same_labels(tmp_path: Path, labels: tuple[str, ...], kept: bool) -> None:
    save_bundle(_bundle(num_labels=2, labels=("B", "T")), tmp_path / "bundle")
    opened = open_model(str(tmp_path / "bundle"))
    weights = initial_weights(opened, labels=labels)
    assert any(name.startswith("cls_decoder.") for name in weights.weights) == kept
    fresh = ScGPT(opened.bundle.model.config.model_copy(update={"num_labels": len(labels)}), pad_id=0)
    missing, unexpected = fresh.load_state_dict(weights.weights, strict=False)
    assert not unexpected
    assert {name.partition(".")[0] for name in missing} == (set() if kept else {"cls_decoder"})


def test_a_run_is_named_in_two_ways(tmp_path: Path) -> None:
    tree = _config(tmp_path, tmp_path, "run:base").model_dump()
    short = FinetuneConfig.model_validate({**tree, "initial": None, "initial_run": "base"})
    assert short == FinetuneConfig.model_validate(tree)
    assert (short.initial_uri, short.fingerprint()) == ("run:base", FinetuneConfig.model_validate(tree).fingerprint())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"initial": None}, "either initial or initial_run"),
        ({"initial_run": "base"}, "either initial or initial_run"),
        ({"initial": None, "initial_run": "../base"}, "initial_run"),
        ({"initial": ""}, "initial"),
    ],
)
def test_exactly_one_initial_model_is_given(tmp_path: Path, change: dict[str, str | None], message: str) -> None:
    tree = _config(tmp_path, tmp_path, "run:base").model_dump()
    with pytest.raises(ValueError, match=message):
        FinetuneConfig.model_validate(tree | change)


def test_a_local_initial_model_does_not_depend_on_the_current_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert _config(tmp_path, tmp_path, "bundle").initial_uri == str(tmp_path / "bundle")
    for uri in ("s3://bucket/model", "models:/a@champion", "run:base"):
        assert _config(tmp_path, tmp_path, uri).initial_uri == uri
