"""`cytoray assess annotation` on small files with planted types: what is reported, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from typer.testing import CliRunner

import cytoray
from cytoray.cli.main import app
from cytoray.corpus.config import IngestConfig, SourceConfig
from cytoray.corpus.contamination import share_in_corpus
from cytoray.corpus.ingest import ingest
from cytoray.errors import ConfigError, CorpusError
from cytoray.evaluation.annotator import fit_annotator
from cytoray.evaluation.voters import Expression
from cytoray.model.bundle import ModelBundle, save_bundle
from cytoray.model.config import ModelConfig
from cytoray.model.transformer import ScGPT
from cytoray.tasks.annotation import assessment as assessment_module
from cytoray.tasks.annotation.annotator import LabelledCells
from cytoray.tasks.annotation.assess_config import AssessAnnotationConfig
from cytoray.tasks.annotation.assessment import Options, assess_annotation, plan_splits
from cytoray.tasks.annotation.labelled import read_labelled
from cytoray.tasks.annotation.transformer import as_cells, open_transformer
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary

NUM_GENES = 240
TYPES = ("B", "CD14+ Mono", "Memory CD4 T", "NK")
Write = Callable[..., Path]


def draw_counts(num_cells: int, *, seed: int, depth: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Counts of four types that differ in twenty genes each, and the number of each cell's type."""
    rates = np.random.default_rng(7).gamma(0.6, 1.0, NUM_GENES) * np.ones((4, 1))
    for kind in range(4):
        rates[kind, 20 * kind : 20 * kind + 20] *= 5
    rng = np.random.default_rng(seed)
    kinds = rng.choice(4, num_cells, p=[0.4, 0.3, 0.2, 0.1])
    return rng.poisson(rates[kinds] * depth * rng.uniform(0.5, 1.5, (num_cells, 1))).astype(np.float32), kinds


@pytest.fixture
def write_cells(tmp_path: Path) -> Write:
    """Write a file of labelled cells."""

    def write(
        name: str, *, num_cells: int = 120, seed: int = 0, types: tuple[str, ...] = TYPES, **columns: Any
    ) -> Path:
        counts, kinds = draw_counts(num_cells, seed=seed, depth=columns.pop("depth", 1.0))
        genes = list(GeneVocabulary.load_default().tokens[1000 : 1000 + NUM_GENES])
        obs = pd.DataFrame({"cell_type": np.array(types)[kinds], **columns}, index=[f"c{n}" for n in range(num_cells)])
        adata = anndata.AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=genes))
        adata.write_h5ad(tmp_path / name)
        return tmp_path / name

    return write


def assess(*arguments: object) -> dict[str, Any]:
    """Run the command and return its JSON."""
    result = CliRunner().invoke(app, ["assess", "annotation", *map(str, arguments), "--json"], catch_exceptions=False)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_five_folds_on_a_file(write_cells: Write, tmp_path: Path) -> None:
    labels = ["unassigned" if row % 40 == 0 else TYPES[kind] for row, kind in enumerate(draw_counts(120, seed=0)[1])]
    found = assess("--data", write_cells("cells.h5ad", kind=labels), "--label-key", "kind", "--out", tmp_path / "out")
    assert found.keys() >= {"task", "data", "split", "metrics", "chosen", "why", "contamination", "seeds", "seconds"}
    row = found["metrics"]["macro_f1"]
    assert row.keys() == {"floor", "baseline", "model", "product", "ceiling", "interval", "verdict"}
    assert row["floor"] < 0.3 < 0.8 < row["baseline"]
    assert row["product"] > 0.8
    assert row["interval"][0] <= row["product"] - row["baseline"] <= row["interval"][1]
    assert row["verdict"] in ("win", "tie", "loss")
    assert (row["model"], row["ceiling"]) == (None, None)
    assert sum(found["chosen"].values()) == len(found["why"]) == 5
    assert found["warnings"] == ["3 cells labelled 'unassigned' were left out"]
    assert found["data"]["num_cells"] == 117
    assert np.sum(found["details"]["confusion"]) == 117
    assert 0.8 < found["details"]["prediction_sets"]["coverage"] <= 1
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == found
    page = (tmp_path / "out" / "report.html").read_text()
    for text in ("macro F1", "CD14+ Mono", "Reliability of the probabilities", "tuned simple method", "data:image/png"):
        assert text in page, text
    assert "http" not in page.replace("http-equiv", ""), "nothing is fetched from elsewhere"


def test_equal_arguments_give_equal_reports(write_cells: Write, tmp_path: Path) -> None:
    files = ("--data", write_cells("cells.h5ad", num_cells=60), "--query", write_cells("query.h5ad", seed=5))
    options = (*files, "--protocol", "transfer")
    seeds = enumerate((1, 1, 2))
    first, again, other = (assess(*options, "--seed", seed, "--out", tmp_path / f"out{n}") for n, seed in seeds)
    for report in (first, again, other):
        report.pop("seconds")
    assert first == again
    assert first["metrics"] != other["metrics"]


def test_transfer_to_a_query_with_other_names_and_depth(write_cells: Write, tmp_path: Path) -> None:
    other = ("B", "CD14 Mono", "CD4 T", "erythrocyte")
    query = write_cells("query.h5ad", num_cells=160, seed=5, types=other, depth=0.6)
    found = assess(
        "--data", write_cells("cells.h5ad"), "--query", query, "--protocol", "transfer", "--out", tmp_path / "out"
    )  # fmt: skip
    names = found["details"]["label_names"]
    assert names["reference"] == {"B": "B", "CD14+ Mono": "CD14 Mono", "Memory CD4 T": "CD4 T", "NK": "NK"}
    assert found["data"]["query"]["num_cells"] < 160, "erythrocytes were not learned"
    assert found["metrics"]["macro_f1"]["product"] > 0.75
    assert found["details"]["adapted"]["transductive"]
    assert found["details"]["adapted"]["macro_f1"]["product"] > 0.75


def test_a_table_of_labels_is_used_instead_of_their_words(write_cells: Write, tmp_path: Path) -> None:
    query = write_cells("query.h5ad", seed=5, types=("x", "y", "z", "w"))
    names = {"x": "B", "y": "mono", "CD14+ Mono": "mono", "z": "other", "w": "NK"}
    (tmp_path / "names.json").write_text(json.dumps(names))
    options = ("--query", query, "--protocol", "transfer", "--label-map", tmp_path / "names.json")
    found = assess("--data", write_cells("cells.h5ad"), *options, "--out", tmp_path / "out")
    assert set(found["details"]["label_names"]["query"].values()) == {"B", "mono", "other", "NK"}
    assert {row["label"] for row in found["details"]["per_label"] if row["num_true"]} == {"B", "mono", "NK"}


def test_few_labels_and_types_left_out(write_cells: Write, tmp_path: Path) -> None:
    path = write_cells("cells.h5ad")
    few = assess("--data", path, "--protocol", "few-labels", "--out", tmp_path / "few")
    sizes = [row["num_train"] for row in few["details"]["splits"]]
    assert len(sizes) == 6
    assert max(sizes[3:]) <= 8 < min(sizes[:3]) <= 20
    left = assess("--data", path, "--protocol", "leave-type-out", "--out", tmp_path / "left")
    assert [row["left_out"] for row in left["details"]["left_out"]] == sorted(TYPES)
    assert left["metrics"]["unseen_auroc"]["product"] > 0.7
    assert "Types left out" in (tmp_path / "left" / "report.html").read_text()


def test_batches_are_left_out_whole(write_cells: Write, tmp_path: Path) -> None:
    donors = [f"donor {row % 4}" for row in range(120)]
    found = assess("--data", write_cells("cells.h5ad", donor=donors), "--batch-key", "donor", "--out", tmp_path / "out")
    assert found["split"] == "4 folds of whole batches"
    assert [row["num_test"] for row in found["details"]["splits"]] == [30] * 4


def test_batches_go_by_row_and_not_by_name(write_cells: Write) -> None:
    """Barcodes repeat between batches in files that were joined."""
    donors = [f"donor {row % 4}" for row in range(120)]
    donors[7] = None
    path = write_cells("cells.h5ad", donor=donors)
    adata = anndata.read_h5ad(path)
    adata.obs_names = [f"c{row // 4}" for row in range(120)]
    adata.write_h5ad(path)
    cells = read_labelled(str(path), "cell_type", batch_key="donor")
    assert cells.batches == tuple("missing" if donor is None else donor for donor in donors)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--protocol", "transfer"), "none was given"),
        (("--query", "query.h5ad"), "but the protocol is 5-fold"),
        (("--label-map", "broken.yaml"), "broken.yaml"),
        (("--label-map", "numbers.json"), "the name of 'x' is not text"),
        (("--label-map", "missing.json"), "missing.json"),
        (("--out", "/proc/out"), "cannot be"),
    ],
)
def test_mistakes_are_found_before_any_cell_is_read(
    options: tuple[str, ...], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.yaml").write_text("a: [b")
    Path("numbers.json").write_text('{"x": 3}')
    with pytest.raises(ConfigError, match=problem):
        assess("--data", "is-never-opened.h5ad", *options)


def test_large_data_are_sampled_and_that_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assessment_module, "MAX_CELLS", 60)
    found = assess_annotation(make_cells(["B", "T", "T", "T"] * 30), Options())
    assert found.warnings == ("cells.h5ad: a random sample of 60 of 120 cells was used",)
    assert {row["label"]: row["num_true"] for row in found.details["per_label"]} == {"B": 15, "T": 45}


def test_cells_that_do_not_differ_are_refused() -> None:
    same = Expression(sparse.csr_matrix(np.ones((20, 5), np.float32)))
    with pytest.raises(CorpusError, match="No gene differs"):
        assess_annotation(LabelledCells(same, ("A", "B") * 10, "cells.h5ad"), Options())


def test_one_gene_is_enough() -> None:
    counts = np.tile([[1.0], [9.0]], (20, 1)) + np.arange(40)[:, None] % 3
    cells = Expression(sparse.csr_matrix(counts.astype(np.float32)), log_normalised=True)
    found = assess_annotation(LabelledCells(cells, ("A", "B") * 20, "cells.h5ad"), Options())
    assert found.metrics["accuracy"].product == 1.0


def make_cells(labels: list[str], **further: Any) -> LabelledCells:
    counts, _ = draw_counts(len(labels), seed=0)
    return LabelledCells(Expression(sparse.csr_matrix(counts)), tuple(labels), "cells.h5ad", **further)


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (["B"] * 9, "all 9 cells have the label 'B'"),
        (["nan", "unassigned", "NA", ""], "every label is missing"),
        (["A", "B", "C"], "3 cells have 3 labels"),
        (["A", "B"], "2 cells have 2 labels"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(labels: list[str], problem: str) -> None:
    with pytest.raises(CorpusError, match=problem):
        assess_annotation(make_cells(labels), Options())


def test_batches_that_equal_the_types_are_named() -> None:
    labels = ["B", "T"] * 20
    found = assess_annotation(make_cells(labels, batches=tuple(labels)), Options())
    assert any("cannot be separated" in warning for warning in found.warnings)


def test_a_type_of_one_cell_is_named_and_scored() -> None:
    found = assess_annotation(make_cells([*(["B", "T"] * 20), "lonely"]), Options())
    assert "label 'lonely' has one cell" in found.warnings
    assert {row["label"] for row in found.details["per_label"]} == {"B", "T", "lonely"}


def test_no_answer_depends_on_labels_of_scored_cells() -> None:
    """With the labels of the test cells exchanged, every answer about them stays."""
    counts, kinds = draw_counts(120, seed=3)
    labels = np.array(TYPES)[kinds]
    cells = LabelledCells(Expression(sparse.csr_matrix(counts)), tuple(labels), "cells.h5ad")
    split = plan_splits(cells, "5-fold")[0][0]
    changed = labels.copy()
    changed[split.test] = np.random.default_rng(0).permutation(changed[split.test])
    again = LabelledCells(cells.expression, tuple(changed), "cells.h5ad")
    trained = [each.take(split.train) for each in (cells, again)]
    fitted = [fit_annotator(each.expression, each.labels, labels=sorted(TYPES))[0] for each in trained]
    tests = [each.take(split.test).expression for each in (cells, again)]
    first, second = (
        {name: voter.log_probabilities(test) for name, voter in each.voters.items()}
        for each, test in zip(fitted, tests, strict=True)
    )
    for name in first:
        assert np.array_equal(first[name], second[name])


def test_a_transformer_stands_beside_the_simple_method_and_joins_only_if_it_helps(
    write_cells: Write, tmp_path: Path
) -> None:
    vocabulary = GeneVocabulary.load_default()
    shape = ModelConfig(vocabulary_size=vocabulary.size, width=16, num_heads=2, feedforward_width=16, num_layers=1)
    network = ScGPT(shape, pad_id=vocabulary.pad_id)
    save_bundle(ModelBundle(network, vocabulary, TokenizerConfig(max_length=128)), tmp_path / "bundle")
    path = write_cells("cells.h5ad", num_cells=300)
    options = ("--model", tmp_path / "bundle", "--epochs", 1, "--random-start", "--out", tmp_path / "out")
    found = assess("--data", path, *options)
    row = found["metrics"]["macro_f1"]
    assert row["model"] < row["baseline"], "one epoch from random weights"
    assert row["product"] > row["baseline"] - 0.02, "it did not join, or did no harm"
    assert found["model"] == str(tmp_path / "bundle")
    assert found["contamination"] is None, "the bundle names no corpus"
    assert found["details"]["random_start"].keys() == {"macro_f1", "accuracy"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Whether the model was pretrained on these cells is not known." in page
    with pytest.raises(ConfigError, match="random_start needs a model"):
        cytoray.assess("annotation", data=str(path), random_start=True)


def test_the_share_of_cells_that_a_model_was_pretrained_on(write_cells: Write, tmp_path: Path) -> None:
    path = write_cells("cells.h5ad", num_cells=80)
    adata = anndata.read_h5ad(path)
    adata[:20].write_h5ad(tmp_path / "some.h5ad")
    store = str(tmp_path / "store")
    source = SourceConfig(uri=str(tmp_path / "some.h5ad"))
    manifest = ingest(IngestConfig(store=store, corpus="cells", sources=(source,))).manifest
    cells = read_labelled(str(path), "cell_type")
    assert share_in_corpus(store, manifest, as_cells(cells.expression)) == 0.25
    vocabulary = GeneVocabulary.load_default()
    shape = ModelConfig(vocabulary_size=vocabulary.size, width=8, num_heads=2, feedforward_width=8, num_layers=1)
    lineage = {"corpus": "cells", "corpus_manifest_digest": manifest.digest}
    network = ScGPT(shape, pad_id=vocabulary.pad_id)
    save_bundle(ModelBundle(network, vocabulary, TokenizerConfig(), lineage=lineage), tmp_path / "bundle")
    config = AssessAnnotationConfig(data=str(path), model=str(tmp_path / "bundle"), store=store)
    transformer = open_transformer(config)
    assert transformer.contamination(cells.expression) == 0.25
    assert open_transformer(config.model_copy(update={"store": None})).contamination(cells.expression) is None
