"""A generator as a member beside the operator: judged by targets that are new to it, used only if it helps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch
from planted_screen import GENES, NEW, PATHWAYS, TARGETS, screen, small_assessments
from typer.testing import CliRunner

import cytoray
from cytoray.cli.main import app
from cytoray.errors import ModelError
from cytoray.model.bundle import Conditions, ModelBundle, load_bundle, save_bundle
from cytoray.model.config import ModelConfig
from cytoray.model.perturbation import predict_perturbed
from cytoray.model.transformer import ScGPT
from cytoray.tasks.attaching import attach
from cytoray.tasks.perturbation.generator import find_generator, keep_earlier_targets
from cytoray.tasks.perturbation.reading import read_screen
from cytoray.tasks.perturbation.screen import Columns
from cytoray.tokens.collator import Minibatch
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import SPECIAL_TOKENS, GeneVocabulary
from cytoray.training.perturbation import perturbation_model

SEEN = ("ATG5", "IFNGR1", "SMO")  # one of each pathway
LEARNING = 150  # steps


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """No gene sets, so that only the generator knows pathways; fewer draws."""
    with small_assessments():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A screen, a generator that knows pathways and has learnt one target of each, and one that knows nothing."""
    found = tmp_path_factory.mktemp("generator")
    screen(20).write_h5ad(found / "screen.h5ad")
    save_bundle(_train(build_generator()), found / "generator")
    save_bundle(build_generator(seed=1), found / "ignorant")
    return found


def build_generator(*, seen: tuple[str, ...] = SEEN, seed: int = 0) -> ModelBundle:
    """A generator over the planted genes whose embeddings of the genes of a pathway are the same."""
    vocabulary = GeneVocabulary([*SPECIAL_TOKENS, *dict.fromkeys((*GENES, *TARGETS, NEW))])
    torch.manual_seed(seed)
    base = ModelConfig(vocabulary_size=vocabulary.size, width=64, num_heads=2, feedforward_width=64, num_layers=1,
                       num_labels=0)  # fmt: skip
    model = ScGPT(perturbation_model(base, vocabulary_size=vocabulary.size, dropout=0.0), pad_id=vocabulary.pad_id)
    assert model.pert_encoder is not None
    model.pert_encoder.weight.data[1] *= 3  # a flag that stands out is learnt in fewer steps
    table = model.encoder.embedding.weight.data
    for genes in (*PATHWAYS.values(), ("JAK1", NEW)):
        table[[vocabulary.index[gene] for gene in genes]] = table[vocabulary.index[genes[0]]].clone()
    conditions = Conditions(task="perturbation", columns={"perturbation": (*seen, "control")}, panel=GENES)
    return ModelBundle(model, vocabulary, TokenizerConfig(), conditions=conditions)


def _train(bundle: ModelBundle) -> ModelBundle:
    """Fit the mean effects of the targets that the generator has seen, without changing its embeddings."""
    cells = read_screen(screen(20), Columns("perturbation", "control", "batch"))
    expression = cells.cells.expression.toarray()
    control = expression[cells.cells.codes == -1].mean(axis=0)
    rows = [cells.names.index(name) for name in SEEN]
    wanted = np.stack([expression[cells.cells.codes == row].mean(axis=0) for row in rows])
    genes = [*GENES, *(name for name in SEEN if name not in GENES)]
    ids = torch.tensor([[bundle.vocabulary.index[gene] for gene in genes]]).expand(len(SEEN), -1)
    values = torch.zeros(len(SEEN), len(genes))
    values[:, : len(GENES)] = torch.tensor(control, dtype=torch.float32)
    flags = torch.tensor([[int(gene == name) for gene in genes] for name in SEEN])
    batch = Minibatch(ids, values, torch.zeros_like(ids, dtype=torch.bool), np.arange(3, dtype=np.uint64),
                      perturbations=flags)  # fmt: skip
    model, truth = bundle.model.train(), torch.tensor(wanted, dtype=torch.float32)
    model.encoder.embedding.weight.requires_grad_(False)
    optimiser = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=5e-3)
    for _ in range(LEARNING):
        optimiser.zero_grad()
        loss = (predict_perturbed(model, batch)[:, : len(GENES)] - truth).square().mean()
        loss.backward()
        optimiser.step()
    return bundle


def run(*words: object) -> dict[str, Any]:
    """Run a command and return its JSON."""
    result = CliRunner().invoke(app, [*map(str, words), "--json"], catch_exceptions=False)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_a_generator_is_judged_by_targets_that_are_new_to_it(folder: Path, tmp_path: Path) -> None:
    words = ("assess", "perturbation", "--data", folder / "screen.h5ad", "--batch-key", "batch")
    found = run(*words, "--model", folder / "generator", "--out", tmp_path / "with")
    plain = run(*words, "--out", tmp_path / "without")
    (note,) = [text for text in found["warnings"] if "was trained on 3 of the 12 targets" in text]
    assert "(ATG5, IFNGR1, SMO): it is not used for these" in note
    units, others = ({unit["name"]: unit for unit in report["details"]["units"]} for report in (found, plain))
    for name in SEEN:
        assert units[name]["relative_error"] == pytest.approx(others[name]["relative_error"]), "the operator's own"
    new = [name for name in TARGETS if name not in SEEN]
    errors = [np.mean([report[name]["relative_error"] for name in new]) for report in (units, others)]
    assert errors[0] < 0.75 * errors[1]
    assert sum(number for chosen, number in found["chosen"].items() if "of a generator's" in chosen) == len(new)
    assert found["metrics"]["wmse"]["product"] < plain["metrics"]["wmse"]["product"]


def test_a_generator_that_does_not_help_is_not_chosen(folder: Path, tmp_path: Path) -> None:
    adata = anndata.read_h5ad(folder / "screen.h5ad")
    plain = cytoray.PerturbationModel.fit(adata, batch_key="batch")
    model = cytoray.PerturbationModel.fit(adata, batch_key="batch", model=str(folder / "ignorant"))
    assert "generator not used: weighted error" in model.facts["why"]
    assert model.targets.generator is None
    np.testing.assert_allclose(model.predict(["JAK1", NEW]).deltas, plain.predict(["JAK1", NEW]).deltas)
    few = build_generator(seen=tuple(name for name in TARGETS if name not in SEEN))
    save_bundle(few, tmp_path / "few")
    found = cytoray.PerturbationModel.fit(adata, batch_key="batch", model=str(tmp_path / "few"))
    assert any("can be judged by 3 targets that it was not trained on; 4 are needed" in text for text in
               found.facts["warnings"])  # fmt: skip


def test_a_chosen_generator_answers(folder: Path, tmp_path: Path) -> None:
    run("perturbations", "fit", "--data", folder / "screen.h5ad", "--batch-key", "batch", "--model",
        folder / "generator", "--out", tmp_path / "model")  # fmt: skip
    words = ("--genes", f"{NEW},JAK1", "--data", folder / "screen.h5ad")
    found = run("perturb", tmp_path / "model", *words, "--out", tmp_path / "o.h5ad")
    new, known = found["perturbations"]
    assert "of a generator's" in new["reason"]["method"]
    assert "of a generator's" not in known["reason"]["method"], "its effect was measured"
    assert not found["warnings"], "no view knows the gene, but the generator does"
    others = [gene for gene in GENES if gene not in TARGETS]
    correlation = np.corrcoef([[each["delta"][gene] for gene in others] for each in (new, known)])[0, 1]
    assert correlation > 0.7
    assert 0 < new["confidence"] < 1

    digest = attach(load_bundle(folder / "generator"), {"perturbations": str(tmp_path / "model")}, out=tmp_path / "all")
    assert digest
    served = run("perturb", tmp_path / "all", *words, "--out", tmp_path / "served.h5ad")
    assert served["perturbations"] == found["perturbations"]
    with pytest.raises(ModelError, match="their digests differ"):
        attach(load_bundle(folder / "ignorant"), {"perturbations": str(tmp_path / "model")}, out=tmp_path / "wrong")
    moved = (folder / "generator").rename(folder / "moved")
    try:
        with pytest.raises(ModelError, match="cannot be opened") as caught:
            cytoray.PerturbationModel.load(tmp_path / "model")
        assert "--generator" in caught.value.remedy
        again = cytoray.PerturbationModel.load(tmp_path / "model", generator=str(moved)).predict(NEW)
    finally:
        moved.rename(folder / "generator")
    assert again.as_dict()["perturbations"][0]["delta"] == new["delta"]


def test_vectors_of_genes_are_a_view_of_a_fitted_model(folder: Path, tmp_path: Path) -> None:
    bundle = build_generator()
    base = ModelBundle(bundle.model, bundle.vocabulary, TokenizerConfig())  # of a model that is not a generator
    save_bundle(base, tmp_path / "base")
    run("perturbations", "fit", "--data", folder / "screen.h5ad", "--batch-key", "batch", "--model", tmp_path / "base",
        "--out", tmp_path / "model")  # fmt: skip
    model = cytoray.PerturbationModel.load(tmp_path / "model")
    assert "model" in model.targets.fitted.setting.views
    assert model.targets.views["model"].features.shape[1] == len(TARGETS), "no wider than the known targets need"
    (reason,) = model.predict(NEW).reasons
    assert {near["target"] for near in reason["parts"][0]["neighbours"]} <= set(PATHWAYS["interferon"])


def test_targets_of_the_model_before_count_as_seen() -> None:
    bundle = build_generator()
    generator = find_generator(keep_earlier_targets(bundle, initial=("JAK1", "STAT1+GLI1")), "g")
    assert generator is not None
    assert generator.trained_on == {*SEEN, "JAK1", "STAT1", "GLI1"}
