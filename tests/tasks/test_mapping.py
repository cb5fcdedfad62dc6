"""`cytoray reference build|query|info` on small files with planted types: what is answered, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from scipy import sparse
from typer.testing import CliRunner

from cytoray.cli.main import app
from cytoray.errors import ConfigError, ConflictError, CorpusError, CytorayError, DigestError, ModelError, NotFoundError
from cytoray.failpoints import VARIABLE
from cytoray.model.bundle import ModelBundle, save_bundle
from cytoray.model.config import ModelConfig
from cytoray.model.transformer import ScGPT
from cytoray.tasks.mapping import index as index_module
from cytoray.tasks.mapping.index import build_index, measure_recall, read_index, write_index
from cytoray.tasks.mapping.reference import load_reference, save_reference
from cytoray.tasks.mapping.spaces import fit_discriminants, fit_whitening, unit
from cytoray.tasks.mapping.votes import num_neighbours, project, vote
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary

NUM_GENES = 200
TYPES = ("B", "Mono", "NK")
Write = Callable[..., Path]


def draw_counts(num_cells: int, *, seed: int, depth: float = 1.0, odd: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Counts of three types that differ in twenty genes each; the last ``odd`` cells are of a fourth type."""
    rates = np.random.default_rng(7).gamma(0.6, 1.0, NUM_GENES) * np.ones((4, 1))
    for kind in range(4):
        rates[kind, 20 * kind : 20 * kind + 20] *= 6
    rng = np.random.default_rng(seed)
    kinds = rng.choice(3, num_cells, p=[0.5, 0.3, 0.2])
    kinds[num_cells - odd :] = 3
    return rng.poisson(rates[kinds] * depth * rng.uniform(0.5, 1.5, (num_cells, 1))).astype(np.float32), kinds


def gene_names() -> list[str]:
    return list(GeneVocabulary.load_default().tokens[1000 : 1000 + NUM_GENES])


def write_h5ad(path: Path, counts: np.ndarray, labels: Any, genes: list[str], names: list[str] | None = None) -> Path:
    kinds = [labels] * len(counts) if isinstance(labels, str) else list(labels)
    obs = pd.DataFrame({"cell_type": pd.Categorical(kinds)}, index=names or [f"c{n}" for n in range(len(counts))])
    anndata.AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=genes)).write_h5ad(path)
    return path


def run(*arguments: object) -> dict[str, Any]:
    """Run ``cytoray reference`` and return its JSON."""
    result = CliRunner().invoke(app, ["reference", *map(str, arguments), "--json"], catch_exceptions=False)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def build(path: Path, out: Path, *options: object) -> dict[str, Any]:
    return run("build", "--data", path, "--out", out, "--no-umap", *options)


def ask(reference: Path, path: Path, out: Path, *options: object) -> list[dict[str, Any]]:
    """Map a file and return the answers, in the order of its cells."""
    run("query", reference, "--data", path, "--out", out, *options)
    found: list[dict[str, Any]] = json.loads(out.read_text())["cells"]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mapping")


@pytest.fixture(scope="module")
def reference(folder: Path) -> Path:
    """A reference of 150 cells, of which two have no label and one a placeholder."""
    counts, kinds = draw_counts(150, seed=0)
    labels = pd.Series([TYPES[kind] for kind in kinds], dtype=object)
    labels[:2], labels[2] = None, "unassigned"
    found = build(write_h5ad(folder / "cells.h5ad", counts, labels, gene_names()), folder / "reference")
    assert found["warnings"] == ["1 cells labelled 'unassigned' were left out"]
    assert found["num_cells"] == 147
    return folder / "reference"


def test_labels_neighbours_and_an_unseen_type(reference: Path, tmp_path: Path) -> None:
    counts, kinds = draw_counts(60, seed=5, depth=0.8, odd=15)
    counts[3] = 0
    answers = ask(reference, write_h5ad(tmp_path / "q.h5ad", counts, "x", gene_names()), tmp_path / "answers.json")
    assert [row["cell_id"] for row in answers] == [f"c{n}" for n in range(60)], "no cell is dropped"
    assert {key: value for key, value in answers[3].items() if value is not None} == {"cell_id": "c3"}
    known = [row for number, row in enumerate(answers[:45]) if number != 3]
    truth = [TYPES[kind] for number, kind in enumerate(kinds[:45]) if number != 3]
    assert np.mean([row["label"] == true for row, true in zip(known, truth, strict=True)]) > 0.9
    assert np.mean([row["neighbours"][0]["label"] == true for row, true in zip(known, truth, strict=True)]) > 0.85
    assert np.mean([row["status"] == "unassigned" for row in known]) < 0.2
    assert np.mean([row["status"] == "assigned" for row in known]) > 0.7
    usual, odd = (np.median([row["unseen_p"] for row in rows]) for rows in (known, answers[45:]))
    assert odd < 0.05 < usual
    row = known[0]
    assert len(row["neighbours"]) == 5
    assert row["neighbours"][0].keys() == {"ref_id", "label", "dataset", "batch", "distance"}
    assert row["neighbours"][0]["dataset"] == "cells.h5ad"
    distances = [one["distance"] for one in row["neighbours"]]
    assert distances == sorted(distances)
    assert row["candidates"][0] == {"label": row["label"], "probability": row["probability"]}
    assert all(row["label"] in row["set"] and 0 <= row["mapping_percentile"] <= 100 for row in known)


def test_an_answer_depends_on_its_cell_alone(reference: Path, tmp_path: Path) -> None:
    counts, _ = draw_counts(20, seed=6)
    whole = ask(reference, write_h5ad(tmp_path / "a.h5ad", counts, "x", gene_names()), tmp_path / "a.json")
    part = ask(reference, write_h5ad(tmp_path / "b.h5ad", counts[:4], "x", gene_names()), tmp_path / "b.json")
    for first, second in zip(whole[:4], part, strict=True):
        assert first["label"] == second["label"]
        assert first["probability"] == pytest.approx(second["probability"], abs=1e-5)
        assert [one["ref_id"] for one in first["neighbours"]] == [one["ref_id"] for one in second["neighbours"]]


def test_log_normalised_queries_are_converted(reference: Path, tmp_path: Path) -> None:
    counts, _ = draw_counts(30, seed=8)
    plain = ask(reference, write_h5ad(tmp_path / "a.h5ad", counts, "x", gene_names()), tmp_path / "a.json")
    logged = np.log1p(3000 * counts / counts.sum(axis=1, keepdims=True) * 1.01).astype(np.float32)
    other = ask(reference, write_h5ad(tmp_path / "b.h5ad", logged, "x", gene_names()), tmp_path / "b.json")
    assert [row["label"] for row in plain] == [row["label"] for row in other]


def test_a_query_with_few_of_the_genes_is_fitted_to_them(reference: Path, tmp_path: Path) -> None:
    counts, kinds = draw_counts(80, seed=9)
    narrow = write_h5ad(tmp_path / "q.h5ad", counts[:, :80], "x", gene_names()[:80])
    found = run("query", reference, "--data", narrow, "--out", tmp_path / "a.json")
    assert found["refitted"]
    assert found["coverage"] < 0.9
    assert "fitted to these genes" in found["warnings"][0]
    answers = json.loads((tmp_path / "a.json").read_text())["cells"]
    assert np.mean([row["label"] == TYPES[kind] for row, kind in zip(answers, kinds, strict=True)]) > 0.9


def with_map(reference: Path, out: Path) -> Path:
    """The same reference with places on a map, which would take long to compute."""
    known = load_reference(str(reference))
    places = np.random.default_rng(0).normal(size=(len(known.meta), 2))
    save_reference(replace(known, meta=known.meta.assign(x=places[:, 0], y=places[:, 1])), str(out))
    return out


def test_parquet_h5ad_and_the_page(reference: Path, tmp_path: Path) -> None:
    counts, kinds = draw_counts(25, seed=10)
    counts[0] = 0
    path = write_h5ad(tmp_path / "q.h5ad", counts, [TYPES[kind] for kind in kinds], gene_names())
    page, drawn = tmp_path / "report.html", with_map(reference, tmp_path / "reference")
    run("query", drawn, "--data", path, "--out", tmp_path / "a.h5ad", "--report", page, "--label-key", "cell_type")
    run("query", drawn, "--data", path, "--out", tmp_path / "a.parquet")
    adata, table = anndata.read_h5ad(tmp_path / "a.h5ad"), pq.read_table(tmp_path / "a.parquet").to_pandas()
    assert np.isfinite(adata.obsm["X_reference_umap"]).all(axis=1).tolist() == [False] + [True] * 24
    np.testing.assert_array_equal(adata.obsm["X_reference_umap"][1:], table[["x", "y"]].to_numpy()[1:])
    assert list(adata.obs["label"].astype(object)[1:]) == list(table["label"][1:])
    assert adata.obs["label"].isna().tolist() == table["label"].isna().tolist() == [True] + [False] * 24
    assert "reference" in json.loads(adata.uns["cytoray_map"]["about"])
    text = page.read_text()
    for title in ("On the reference&#x27;s map", "Confidence and unseen types", "Known labels"):
        assert title in text
    assert "http" not in text
    run("query", reference, "--data", path, "--out", tmp_path / "b.parquet", "--report", page)
    assert pq.read_table(tmp_path / "b.parquet").column("x").null_count == 25, "it was built without a map"
    assert "On the reference" not in page.read_text()
    with pytest.raises(ConfigError, match="unknown kind of file"):
        run("query", reference, "--data", path, "--out", tmp_path / "a.csv")


def test_no_common_gene(reference: Path, tmp_path: Path) -> None:
    counts, _ = draw_counts(10, seed=1)
    others = list(GeneVocabulary.load_default().tokens[3000 : 3000 + NUM_GENES])
    with pytest.raises(CorpusError, match="share 0 genes"):
        ask(reference, write_h5ad(tmp_path / "q.h5ad", counts, "x", others), tmp_path / "a.json")
    assert not (tmp_path / "a.json").exists()


def test_info_and_a_moved_folder(reference: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in reference.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    found = run("info", moved)
    assert found["digest"] == run("info", reference)["digest"]
    assert sum(found["label_counts"].values()) == 147
    assert found["model"] is None
    assert found["index"] == {"kind": "exact", "recall": 1.0, "metric": "cosine"}
    assert found["k"] == 15
    data = bytearray((moved / "arrays.safetensors").read_bytes())
    data[-1] ^= 1
    (moved / "arrays.safetensors").write_bytes(data)
    with pytest.raises(DigestError, match=r"arrays\.safetensors"):
        load_reference(str(moved))
    (moved / "map.json").unlink()
    with pytest.raises(NotFoundError, match="not a reference"):
        load_reference(str(moved))


def test_equal_builds_give_equal_bytes_and_nothing_is_overwritten(reference: Path, folder: Path) -> None:
    again = build(folder / "cells.h5ad", folder / "again")
    assert again["digest"] == run("info", reference)["digest"]
    with pytest.raises(ConflictError, match="already exists"):
        build(folder / "cells.h5ad", folder / "again")


def test_an_interrupted_build_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "reference.before_commit=raise")
    with pytest.raises(CytorayError):
        build(folder / "cells.h5ad", tmp_path / "reference")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("num_cells", "labels"),
    [(40, ["B"] * 40), (40, ["B"] * 20 + ["NK"] * 19 + ["rare"])],
    ids=["one label", "a label of one cell"],
)
def test_small_references(num_cells: int, labels: list[str], tmp_path: Path) -> None:
    counts, _ = draw_counts(num_cells, seed=3)
    names = ["same"] * num_cells
    with pytest.warns(UserWarning, match="Observation names are not unique"):
        path = write_h5ad(tmp_path / "cells.h5ad", counts, labels, gene_names(), names)
    found = build(path, tmp_path / "reference")
    assert found["num_cells"] == num_cells
    meta = pd.read_parquet(tmp_path / "reference" / "meta.parquet")
    assert meta["ref_id"].is_unique
    query = write_h5ad(tmp_path / "q.h5ad", counts[:3], "x", gene_names())
    answers = ask(tmp_path / "reference", query, tmp_path / "a.json")
    assert all(row["label"] in labels for row in answers)


def test_two_cells_are_refused(tmp_path: Path) -> None:
    counts, _ = draw_counts(2, seed=3)
    with pytest.raises(CorpusError, match=r"2 labelled cells .* a reference needs 10"):
        build(write_h5ad(tmp_path / "cells.h5ad", counts, ["B", "NK"], gene_names()), tmp_path / "reference")
    assert not (tmp_path / "reference").exists()


def test_a_query_of_one_gene_is_refused(reference: Path, tmp_path: Path) -> None:
    counts, _ = draw_counts(10, seed=3)
    with pytest.raises(CorpusError, match="share 1 genes, of at least 10 needed"):
        ask(reference, write_h5ad(tmp_path / "q.h5ad", counts[:, :1], "x", gene_names()[:1]), tmp_path / "a.json")


@pytest.fixture(scope="module")
def save_model(folder: Path) -> Callable[[int], Path]:
    """Save a tiny model with random weights."""

    def save(seed: int) -> Path:
        vocabulary = GeneVocabulary.load_default()
        config = ModelConfig(
            vocabulary_size=vocabulary.size, width=8, num_heads=2, feedforward_width=8, num_layers=1, dropout=0.0
        )
        torch.manual_seed(seed)
        model = ScGPT(config, pad_id=vocabulary.pad_id).eval()
        save_bundle(ModelBundle(model, vocabulary, TokenizerConfig(max_length=64)), folder / f"model{seed}")
        return folder / f"model{seed}"

    return save


def test_another_models_queries_are_refused(folder: Path, tmp_path: Path, save_model: Any, reference: Path) -> None:
    first, second = save_model(0), save_model(1)
    found = build(folder / "cells.h5ad", tmp_path / "reference", first, "--space", "embeddings")
    assert found["space"] == "embeddings"
    digest = found["model"]["weights"]
    query = folder / "cells.h5ad"
    answers = ask(tmp_path / "reference", query, tmp_path / "a.json")
    assert answers[5]["neighbours"][0]["ref_id"] == "c5"
    with pytest.raises(
        ModelError, match=rf"built with .*model0 \(weights {digest[:16]}\), .*model1 \(weights"
    ) as error:
        ask(tmp_path / "reference", query, tmp_path / "b.json", "--model", second)
    assert error.value.details["expected"] == digest
    with pytest.raises(ConfigError, match="needs a model"):
        build(query, tmp_path / "other", "--space", "embeddings")


def test_exact_and_approximate_indexes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    points = unit(rng.normal(size=(3000, 16)).astype(np.float32))
    queries = unit(rng.normal(size=(50, 16)).astype(np.float32))
    exact, graph = build_index(points), build_index(points, kind="hnsw")
    places, distances = exact.search(queries, 10)
    oracle = np.linalg.norm(queries[:, None] - points[None], axis=2)
    np.testing.assert_array_equal(places, np.argsort(oracle, axis=1, kind="stable")[:, :10])
    np.testing.assert_allclose(distances, np.sort(oracle, axis=1)[:, :10], atol=1e-3)
    assert exact.recall == measure_recall(exact, points) == 1.0
    assert graph.recall >= 0.98
    write_index(graph, tmp_path / "index.faiss")
    again = read_index(tmp_path / "index.faiss", kind="hnsw", recall=graph.recall)
    np.testing.assert_array_equal(again.search(queries, 10)[0], graph.search(queries, 10)[0])
    assert exact.search(queries, 5000)[0].shape == (50, 3000)


@pytest.mark.parametrize("size", [7, 40, 1000])
def test_an_exact_search_does_not_depend_on_its_blocks(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of equally near points the first is taken, in whatever block it lies."""
    rng = np.random.default_rng(3)
    points = unit(rng.integers(-1, 2, (300, 4)).astype(np.float32) + np.float32(0.25))
    queries = points[::7]
    cosines = np.round(queries @ points.T, 6)
    monkeypatch.setattr(index_module, "POINTS_PER_BLOCK", size)
    monkeypatch.setattr(index_module, "QUERIES_PER_BLOCK", 10)
    places, distances = build_index(points).search(queries, 12)
    found = np.take_along_axis(cosines, places, axis=1)
    np.testing.assert_allclose(found, -np.sort(-cosines, axis=1)[:, :12], atol=1e-6)
    assert (np.diff(distances, axis=1) >= -1e-6).all()
    assert all(len(set(row)) == 12 for row in places)


def test_votes_by_hand() -> None:
    distances = np.array([[0.0, 1.0, 2.0]], np.float32)
    labels, counts = np.array([[0, 1, 1]]), np.array([9, 1])
    weights = np.exp(-((distances[0] / 2) ** 2)) * np.array([0.9, 0.1, 0.1]) ** -0.5
    votes = np.array([weights[0] + 0.9, weights[1] + weights[2] + 0.1])
    np.testing.assert_allclose(np.exp(vote(distances, labels, counts))[0], votes / votes.sum())
    shares = np.exp(-((distances[0] / 2) ** 2))
    places = np.array([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    np.testing.assert_allclose(project(distances, places)[0], shares[1:] / shares.sum())
    assert (num_neighbours(4_999), num_neighbours(5_000), num_neighbours(3)) == (15, 30, 3)


def test_projections_of_a_space() -> None:
    rng = np.random.default_rng(1)
    codes = np.repeat([0, 1, 2], 100)
    points = (rng.normal(size=(300, 6)) * 5).astype(np.float32)
    points[:, 2] = rng.normal(size=300) + 3 * codes
    axes = fit_discriminants(points, codes)
    assert axes.shape == (6, 2)
    assert np.abs(axes[:, 0]).argmax() == 2, "the direction along which labels differ"
    assert fit_discriminants(points, np.zeros(300, np.int64)).shape == (6, 0)
    white = fit_whitening(points).transform(points)
    np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(6), atol=1e-3)


def test_an_assessment_scores_the_query_by_common_names(tmp_path: Path) -> None:
    counts, kinds = draw_counts(150, seed=1)
    write_h5ad(tmp_path / "reference.h5ad", counts, np.array(["B", "CD14+ Mono", "NK"])[kinds], gene_names())
    counts, kinds = draw_counts(120, seed=2, odd=20)
    names = np.array(["B", "CD14 Mono", "NK", "erythrocyte"], object)[kinds]
    names[:5] = "unassigned"
    write_h5ad(tmp_path / "query.h5ad", counts, names, gene_names())
    options = ["--data", tmp_path / "reference.h5ad", "--query", tmp_path / "query.h5ad", "--out", tmp_path / "out"]
    result = CliRunner().invoke(app, ["assess", "mapping", *map(str, options), "--json"], catch_exceptions=False)
    found = json.loads(result.stdout)
    row = found["metrics"]["macro_f1"]
    assert row["floor"] < 0.4 < 0.9 < row["baseline"]
    assert row["product"] > row["baseline"] - 0.02
    assert row["interval"][0] <= row["product"] - row["baseline"] <= row["interval"][1]
    assert found["details"]["num_scored"] == 95, "neither cells without a type nor a type that was not learned"
    assert sum(found["details"]["status"].values()) == 120
    assert found["details"]["label_names"]["reference"]["CD14+ Mono"] == "CD14 Mono"
    assert "Neighbours alone" in (tmp_path / "out" / "report.html").read_text()
    write_h5ad(tmp_path / "other.h5ad", counts, "neuron", gene_names())
    options[3] = tmp_path / "other.h5ad"
    with pytest.raises(CorpusError, match="share no label"):
        CliRunner().invoke(app, ["assess", "mapping", *map(str, options)], catch_exceptions=False)
