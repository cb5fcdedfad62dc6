"""A multi-omic model in an assessment: used on cells it was not trained on, and left out, with a warning, otherwise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch
from planted_proteins import PROTEINS, build

from cytoray.corpus import ingest as ingest_module
from cytoray.corpus.config import IngestConfig, ModalityConfig, SourceConfig
from cytoray.corpus.ingest import ingest
from cytoray.corpus.manifest import load_manifest
from cytoray.model.bundle import ModelBundle, save_bundle
from cytoray.model.conditions import Conditions
from cytoray.model.config import ModelConfig
from cytoray.model.transformer import ScGPT
from cytoray.tasks.multiomic.assess_config import AssessMultiomicConfig
from cytoray.tasks.multiomic.assessment import Options, assess_proteins
from cytoray.tasks.multiomic.embedding import add_embeddings
from cytoray.tasks.multiomic.joint import judge_joint
from cytoray.tasks.multiomic.reading import read_paired
from cytoray.tokens.features import extend_vocabulary
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary

PANEL = ("CD3E", "CD4", "CD19", "CD14", "NCAM1")
GENES = (*PANEL, *GeneVocabulary.load_default().tokens[500:555])


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Two files of other cells."""
    found = {}
    for seed, name in enumerate(("trained", "new")):
        adata: anndata.AnnData = build(70, seed=seed)
        adata.var_names = list(GENES)
        adata.obs_names = [f"{name}-{row}" for row in range(70)]
        adata.obsm["protein_counts"].index = adata.obs_names
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
        found[name] = str(tmp_path / f"{name}.h5ad")
    return found


@pytest.fixture
def model(files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A random model that says it was trained on the first file."""
    monkeypatch.setattr(ingest_module, "_map_tasks", lambda items, work, concurrency: map(work, items))
    source = SourceConfig(uri=files["trained"], modalities=(ModalityConfig(name="adt", matrix="obsm/protein_counts"),))
    ingest(IngestConfig(store=str(tmp_path / "store"), corpus="cite", sources=(source,)))
    manifest = load_manifest(str(tmp_path / "store"), "cite")
    features = {"adt": tuple(f"{name}_TotalSeqB" for name in PROTEINS)}
    vocabulary = extend_vocabulary(GeneVocabulary(GENES), features)
    torch.manual_seed(0)
    shape = ModelConfig(
        vocabulary_size=vocabulary.size, width=16, num_heads=2, feedforward_width=16, num_layers=1, num_modalities=3
    )
    bundle = ModelBundle(
        ScGPT(shape, pad_id=vocabulary.pad_id),
        vocabulary,
        TokenizerConfig(max_length=6),
        lineage={"corpus": "cite", "corpus_manifest_digest": manifest.digest},
        conditions=Conditions(task="multiomic", features=features, context={"adt": 20}, panel=PANEL),
    )
    save_bundle(bundle, tmp_path / "model")
    return str(tmp_path / "model")


def configure(model: str, data: str, store: Path | None) -> AssessMultiomicConfig:
    return AssessMultiomicConfig(data=data, model=model, store=None if store is None else str(store))


def test_a_model_is_left_out_unless_it_is_known_not_to_have_seen_the_cells(
    files: dict[str, str], model: str, tmp_path: Path
) -> None:
    for name, store, share, seen in (
        ("trained", tmp_path / "store", 1.0, r"100.0 %"),
        ("new", None, None, "an unknown share"),
    ):
        cells, _, used = add_embeddings(read_paired(files[name]), None, configure(model, files[name], store))
        assert used.contamination == share
        assert used.transformer is None
        assert cells.embeddings is None
        assert f"was trained on {seen} of the cells with their proteins, so it was left out" in cells.warnings[-1]
    new, trained = (read_paired(files[name]) for name in ("new", "trained"))
    cells, query, used = add_embeddings(new, trained, configure(model, files["new"], tmp_path / "store"))
    assert used.contamination == 1.0, "of the scored cells"
    assert cells.embeddings is None
    assert query is not None
    assert query.embeddings is None


def test_predicted_proteins_follow_the_embedding_and_the_joint_space_is_judged(
    files: dict[str, str], model: str, tmp_path: Path
) -> None:
    cells, _, used = add_embeddings(read_paired(files["new"]), None, configure(model, files["new"], tmp_path / "store"))
    assert used.contamination == 0
    assert used.transformer is not None
    assert cells.embeddings is not None
    assert cells.embeddings.shape == (cells.num_cells, 16 + len(PROTEINS))
    predicted = used.transformer.predict(cells)
    np.testing.assert_allclose(cells.embeddings[:, 16:], predicted / np.sqrt(len(PROTEINS)), rtol=1e-5)

    joint = used.transformer.embed(cells)
    swapped = cells.proteins.select([1, 0, 2, 3, 4])
    np.testing.assert_allclose(used.transformer.embed(replace(cells, proteins=swapped)), joint, atol=1e-5)
    found = judge_joint(cells, embed=used.transformer.embed)
    assert [row["space"] for row in found["spaces"]] == ["RNA", "proteins", "concatenation", "WNN", "transformer"]
    assert all(np.isfinite(row["proteins"]) and np.isfinite(row["genes"]) for row in found["spaces"])

    report = assess_proteins(cells, Options(model=used), query=cells)
    assert report.contamination == 0
    assert report.metrics["pearson"].model is not None
    assert {"transformer ridge", "transformer kernel"} <= {row["member"] for row in report.details["members"]}
