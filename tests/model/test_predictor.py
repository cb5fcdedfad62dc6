"""A cell's prediction is what the model says of that cell alone, in the order asked, from any batch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cytoray.errors import ModelError
from cytoray.model.bundle import ModelBundle, load_bundle, save_bundle
from cytoray.model.layout import Layout
from cytoray.model.predictor import CellPredictor, group_by_length
from cytoray.model.transformer import ScGPT
from cytoray.tokens.cells import SparseCells

LENGTHS = [7, 1, 40, 23, 2, 23, 60, 5, 12]  # some beyond the maximum of 23 genes and <cls>
MakeCells = Callable[..., SparseCells]


def _plainly(bundle: ModelBundle, cells: SparseCells) -> tuple[np.ndarray, np.ndarray]:
    """Each cell by itself, in the steps the definition names."""
    embeddings, probabilities = [], []
    for row in range(cells.num_cells):
        tokens = bundle.tokenizer()(cells.take(np.array([row])))
        genes = torch.from_numpy(tokens.gene_ids).long()[None]
        values = torch.from_numpy(tokens.values)[None]
        model = bundle.model
        with torch.no_grad():
            hidden = model.encoder(genes) + model.value_encoder(values)
            hidden = model.transformer_encoder(hidden[0], layout=Layout.of((genes.shape[1],), device=hidden.device))
            cell = hidden[0]
            embeddings.append((cell / cell.square().sum().sqrt()).numpy())
            if bundle.labels:
                probabilities.append(torch.softmax(model.cls_decoder(cell), -1).numpy())
    return np.stack(embeddings), np.array(probabilities)


@pytest.mark.parametrize("batch_tokens", [1, 64, 16384])
def test_predictions_are_those_of_each_cell_alone(
    bundle: ModelBundle, make_cells: MakeCells, batch_tokens: int
) -> None:
    cells = make_cells(LENGTHS)
    embeddings, probabilities = _plainly(bundle, cells)
    got = CellPredictor(bundle, batch_tokens=batch_tokens).predict(cells)
    assert got.embeddings.dtype == np.float32
    assert got.labels == ("B", "T", "NK")
    np.testing.assert_allclose(got.embeddings, embeddings, atol=1e-5, rtol=0)
    np.testing.assert_allclose(np.linalg.norm(got.embeddings, axis=1), 1, atol=1e-6)
    assert got.probabilities is not None
    np.testing.assert_allclose(got.probabilities, probabilities, atol=1e-5, rtol=0)
    assert np.ptp(embeddings, axis=0).max() > 0.1  # the cells differ, so a mixed-up order would show


def test_order_and_company_change_nothing(bundle: ModelBundle, make_cells: MakeCells) -> None:
    cells = make_cells(LENGTHS)
    predictor = CellPredictor(bundle, batch_tokens=64)
    together = predictor.predict(cells).embeddings
    order = np.array([3, 8, 0, 6])
    np.testing.assert_allclose(predictor.predict(cells.take(order)).embeddings, together[order], atol=1e-5, rtol=0)


def test_no_dropout_even_if_the_model_was_left_training(bundle: ModelBundle, make_cells: MakeCells) -> None:
    predictor, cells = CellPredictor(bundle), make_cells(LENGTHS)
    want = predictor.predict(cells).embeddings
    bundle.model.transformer_encoder.layers[0].dropout.p = 0.5
    bundle.model.train()
    assert np.array_equal(predictor.predict(cells).embeddings, want)


def test_without_labels_there_are_no_probabilities(
    bundle: ModelBundle, build_model: Callable[..., ScGPT], make_cells: MakeCells
) -> None:
    unlabelled = ModelBundle(build_model(), bundle.vocabulary, bundle.tokenizer_config)
    got = CellPredictor(unlabelled).predict(make_cells(LENGTHS))
    assert got.probabilities is None
    assert got.labels == ()
    np.testing.assert_allclose(got.embeddings, _plainly(unlabelled, make_cells(LENGTHS))[0], atol=1e-5, rtol=0)


def test_no_cells_give_no_rows(bundle: ModelBundle, make_cells: MakeCells) -> None:
    got = CellPredictor(bundle).predict(make_cells([]))
    assert got.embeddings.shape == (0, 16)
    assert got.probabilities is not None
    assert got.probabilities.shape == (0, 3)


def test_empty_cells_are_refused_by_row(bundle: ModelBundle, make_cells: MakeCells) -> None:
    with pytest.raises(ModelError, match="2 of 4 cells have no gene that the model knows \\(rows 1, 3\\)") as caught:
        CellPredictor(bundle).predict(make_cells([3, 0, 5, 0]))
    assert caught.value.details == {"rows": [1, 3]}


def test_saved_and_loaded_predicts_the_same(bundle: ModelBundle, make_cells: MakeCells, tmp_path: Path) -> None:
    save_bundle(bundle, tmp_path / "bundle")
    loaded = CellPredictor(load_bundle(tmp_path / "bundle")).predict(make_cells(LENGTHS))
    here = CellPredictor(bundle).predict(make_cells(LENGTHS))
    assert np.array_equal(loaded.embeddings, here.embeddings)


def test_groups_hold_every_row_once_within_the_budget() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 500)
    groups = list(group_by_length(lengths, batch_tokens=1000))
    assert sorted(np.concatenate(groups)) == list(range(500))
    assert all(len(rows) * lengths[rows].max() <= 1000 for rows in groups)
    assert sum(len(rows) * lengths[rows].max() for rows in groups) < 1.1 * lengths.sum()
    assert [rows.tolist() for rows in group_by_length(np.array([9, 3]), batch_tokens=2)] == [[1], [0]]


def test_predictor_needs_no_ray_no_deepspeed_and_no_store() -> None:
    code = (
        "import sys, cytoray.model.predictor\n"
        "heavy = {'ray', 'deepspeed', 'mlflow', 'fsspec', 's3fs', 'boto3', 'anndata', 'pandas'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
