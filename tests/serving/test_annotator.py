"""A bundle that carries an annotator answers with it everywhere: over HTTP, to the client and offline."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp

import cytoray
from cytoray.errors import ModelError
from cytoray.evaluation.annotator import Annotator, fit_annotator
from cytoray.evaluation.annotator_file import FILE, to_bytes
from cytoray.evaluation.voters import Expression
from cytoray.model.bundle import LABEL_TREE, Attachment, ModelBundle, load_bundle, save_bundle
from cytoray.model.predictor import CellPredictor
from cytoray.model.transformer import ScGPT
from cytoray.serving.client import Client
from cytoray.serving.offline import embed_cells
from cytoray.stages.config import offline_config
from cytoray.stages.run import answer_offline
from cytoray.tasks.annotation.product import build_predictor
from cytoray.tasks.messages import ModelInfo

LABELS = ("B", "NK", "T")
GENES = tuple(f"GENE{number:02d}" for number in range(40))


def counts_of_types(num_cells: int, *, seed: int) -> tuple[sp.csr_matrix, list[str]]:
    rng = np.random.default_rng(seed)
    rates = np.ones((3, 40))
    for kind in range(3):
        rates[kind, 8 * kind : 8 * kind + 8] = 5
    codes = rng.integers(0, 3, num_cells)
    return sp.csr_matrix(rng.poisson(rates[codes]).astype(np.float32)), [LABELS[code] for code in codes]


@pytest.fixture(scope="module")
def annotator() -> Annotator:
    counts, names = counts_of_types(150, seed=1)
    wide = sp.hstack(
        [counts, sp.csr_matrix((150, 3))], format="csr", dtype=np.float32
    )  # the vocabulary's special tokens
    return fit_annotator(Expression(wide), names, labels=LABELS)[0]


@pytest.fixture
def carrying(build_bundle: Any, annotator: Annotator, tmp_path: Path) -> ModelBundle:
    """A bundle with the annotator, saved and loaded again."""
    bundle = build_bundle(labels=LABELS)
    bundle.attachments = {FILE: Attachment(to_bytes(annotator))}
    save_bundle(bundle, tmp_path / "bundle")
    return load_bundle(tmp_path / "bundle")


def test_the_same_answers_everywhere(
    carrying: ModelBundle, annotator: Annotator, build_service: Any, one_by_one: Any, connect: Any, listen: Any,
    as_cells: Any, as_request: Any,
) -> None:  # fmt: skip
    counts, truth = counts_of_types(12, seed=2)
    wide = sp.hstack([counts, sp.csr_matrix((12, 3))], format="csr", dtype=np.float32)
    wanted = annotator.annotate(Expression(wide))
    called = [LABELS[best] for best in wanted.probabilities.argmax(axis=1)]
    assert np.mean(np.array(called) == truth) > 0.9
    service = build_service(carrying, predictor=build_predictor(carrying, empty_cells="nan"), batching=one_by_one)
    cells = connect(service).post("/v1/annotate", json=as_request(counts)).json()["cells"]
    assert [cell["label"] for cell in cells] == called
    np.testing.assert_allclose([[cell["probabilities"][name] for name in LABELS] for cell in cells],
                               wanted.probabilities, atol=1e-6)  # fmt: skip
    fitting = [[LABELS[at] for at in np.flatnonzero(row)] for row in wanted.in_set]
    assert [cell["fitting"] for cell in cells] == fitting
    np.testing.assert_allclose([cell["unseen_p"] for cell in cells], wanted.unseen_p, atol=1e-6)
    status = [cell["status"] for cell in cells]
    assert set(status) <= {"assigned", "ambiguous", "unassigned"}
    genes = as_request(counts)["genes"]
    with Client(listen(build_service(carrying, predictor=build_predictor(carrying, empty_cells="nan")))) as client:
        found = client.annotate(genes, counts)
    assert (list(found.labels), list(found.status)) == (called, status)
    assert [list(labels) for labels in found.fitting] == fitting
    info = ModelInfo(name="tiny", version="7", digest="d" * 64)
    (table,) = embed_cells(build_predictor(carrying), [as_cells(counts)], model=info)
    assert (table["label"].to_pylist(), table["status"].to_pylist()) == (called, status)
    assert table["fitting"].to_pylist() == [" | ".join(labels) for labels in fitting]


def test_files_are_annotated_offline_with_the_same_answers(
    carrying: ModelBundle, build_service: Any, connect: Any, as_request: Any, tmp_path: Path
) -> None:
    counts, _ = counts_of_types(9, seed=2)
    anndata.AnnData(counts, var=pd.DataFrame(index=list(GENES))).write_h5ad(tmp_path / "cells.h5ad")
    service = build_service(carrying, predictor=build_predictor(carrying, empty_cells="nan"))
    wanted = connect(service).post("/v1/annotate", json=as_request(counts, include_embedding=False)).json()["cells"]
    config = offline_config("annotate")(
        kind="annotate",
        model=str(tmp_path / "bundle"),
        data=[{"uri": str(tmp_path / "cells.h5ad")}],
        out=str(tmp_path / "out"),
        h5ad=True,
    )
    assert answer_offline(config).num_cells == 9
    (path,) = (tmp_path / "out").glob("part-*")
    rows = pq.read_table(path).to_pylist()
    for row, cell in zip(rows, wanted, strict=True):
        assert (row["label"], row["status"], row["fitting"]) == (cell["label"], cell["status"], cell["fitting"])
        assert dict(row["probabilities"]) == pytest.approx(cell["probabilities"], abs=1e-5)
        assert row["embedding"] is None
    written = anndata.read_h5ad(tmp_path / "out" / "00000-cells.h5ad")
    assert written.obs["label"].tolist() == [cell["label"] for cell in wanted]
    assert written.obs["fitting"].tolist() == [" | ".join(cell["fitting"]) for cell in wanted]


def test_embeddings_are_the_transformers_and_empty_cells_have_no_label(carrying: ModelBundle, as_cells: Any) -> None:
    counts, _ = counts_of_types(4, seed=3)
    counts = sp.vstack([counts, sp.csr_matrix((1, 40))], format="csr", dtype=np.float32)
    found = build_predictor(carrying, empty_cells="nan").predict(as_cells(counts))
    plain = CellPredictor(carrying, empty_cells="nan").predict(as_cells(counts))
    np.testing.assert_array_equal(found.embeddings, plain.embeddings)
    assert found.probabilities is not None
    assert plain.probabilities is not None
    assert not np.allclose(found.probabilities[:4], plain.probabilities[:4])
    assert np.isnan(found.probabilities[4]).all()
    assert found.doubts is not None
    assert np.isnan(found.doubts.unseen_p[4])
    assert not found.doubts.in_set[4].any()


def test_an_ambiguous_cell_has_the_name_above_all_labels_that_fit(
    carrying: ModelBundle, annotator: Annotator, build_service: Any, connect: Any, listen: Any, as_request: Any,
    tmp_path: Path,
) -> None:  # fmt: skip
    parents = {"NK": "T or NK", "T": "T or NK", "T or NK": "lymphocyte", "B": "lymphocyte"}
    doubtful = replace(annotator, sets=replace(annotator.sets, limits=np.full(3, 0.9)))
    carrying.attachments = {
        FILE: Attachment(to_bytes(doubtful)),
        LABEL_TREE: Attachment(json.dumps(parents).encode()),
    }
    save_bundle(carrying, tmp_path / "with-tree")
    bundle = load_bundle(tmp_path / "with-tree")
    above = {
        ("NK", "T"): "T or NK",
        ("B", "NK"): "lymphocyte",
        ("B", "T"): "lymphocyte",
        ("B", "NK", "T"): "lymphocyte",
    }
    rates = np.ones((12, 40))
    for row in range(12):  # a mixture of two types
        for kind in (row % 3, (row + 1) % 3):
            rates[row, 8 * kind : 8 * kind + 8] = 3
    counts = sp.csr_matrix(np.random.default_rng(0).poisson(rates).astype(np.float32))
    service = build_service(bundle, predictor=build_predictor(bundle, empty_cells="nan"))
    cells = connect(service).post("/v1/annotate", json=as_request(counts)).json()["cells"]
    assert "ambiguous" in {cell["status"] for cell in cells}
    wanted = [above.get(tuple(cell["fitting"]), cell["fitting"][0]) for cell in cells]
    assert [cell["common_ancestor"] for cell in cells] == wanted
    with Client(listen(build_service(bundle, predictor=build_predictor(bundle, empty_cells="nan")))) as client:
        assert list(client.annotate(as_request(counts)["genes"], counts).common_ancestors) == wanted
    adata = anndata.AnnData(counts, var=pd.DataFrame(index=list(GENES)))
    cytoray.annotate(adata, model=bundle)
    assert adata.obs["cytoray_common_ancestor"].tolist() == wanted


def test_without_an_annotator_nothing_is_said_of_doubts(http: Any, make_counts: Any, as_request: Any) -> None:
    cell = http.post("/v1/annotate", json=as_request(make_counts(1))).json()["cells"][0]
    assert not {"status", "fitting", "unseen_p"} & cell.keys()


def test_an_anndata_gets_the_same_labels_as_columns(carrying: ModelBundle, as_cells: Any) -> None:
    counts, _ = counts_of_types(6, seed=4)
    counts = sp.vstack([counts, sp.csr_matrix((1, 40))], format="csr", dtype=np.float32)
    adata = anndata.AnnData(counts, var=pd.DataFrame(index=list(GENES)))
    with pytest.warns(UserWarning, match="1 of 7 cells have no gene that the model knows"):
        table = cytoray.annotate(adata, model=carrying)
    wanted = build_predictor(carrying, empty_cells="nan").predict(as_cells(counts))
    assert wanted.probabilities is not None
    np.testing.assert_allclose(table.to_numpy(), wanted.probabilities, atol=1e-6)
    assert list(table.columns) == list(LABELS)
    assert adata.obs["cytoray_label"].tolist()[:6] == [LABELS[best] for best in wanted.probabilities[:6].argmax(axis=1)]
    assert adata.obs["cytoray_label"].iloc[6] is None
    assert set(adata.obs["cytoray_status"][:6]) <= {"assigned", "ambiguous", "unassigned"}
    assert adata.obs.columns.tolist()[-2:] == ["cytoray_fitting", "cytoray_unseen_p"]
    with pytest.raises(ModelError, match="does not label cells"):
        cytoray.annotate(adata, model=replace(carrying, model=unlabelled(carrying), labels=(), attachments={}))


def unlabelled(bundle: ModelBundle) -> ScGPT:
    shape = bundle.model.config.model_copy(update={"num_labels": 0})
    return ScGPT(shape, pad_id=bundle.vocabulary.pad_id)


def test_an_annotator_of_other_labels_is_refused(carrying: ModelBundle) -> None:
    with pytest.raises(ModelError, match="has other labels than its model"):
        build_predictor(replace(carrying, labels=("x", "y", "z")))


def test_training_in_python_leaves_the_annotator_of_the_weights_before(carrying: ModelBundle) -> None:
    counts, names = counts_of_types(40, seed=5)
    adata = anndata.AnnData(counts, var=pd.DataFrame(index=list(GENES)))
    model = cytoray.scGPTFineTuningModel.from_bundle(carrying)
    model.train(model.process_data(adata), names, validation_fraction=0)
    assert model.bundle.attachments == {}
    assert FILE in carrying.attachments
