"""Offline tables hold what the predictor says, cell by cell, and name the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from cytoray.model.predictor import CellPredictor
from cytoray.serving.offline import embed_cells
from cytoray.tasks.messages import ModelInfo

MODEL = ModelInfo(name="tiny", version="7", digest="d" * 64)


def test_tables_equal_the_predictor_and_name_the_model(bundle: Any, make_counts: Any, as_cells: Any) -> None:
    batches = [as_cells(make_counts(5, seed=1)), as_cells(make_counts(3, seed=2))]
    tables = list(embed_cells(CellPredictor(bundle), batches, model=MODEL))
    for table, cells in zip(tables, batches, strict=True):
        table.validate(full=True)
        wanted = CellPredictor(bundle).predict(cells)
        np.testing.assert_array_equal(table["cell_id"].to_numpy(), cells.cell_ids)
        assert table.schema.field("embedding").type == pa.list_(pa.float32(), 16)
        np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), np.float32), wanted.embeddings)
        best = wanted.probabilities.argmax(axis=1)
        assert table["label"].to_pylist() == [wanted.labels[column] for column in best]
        np.testing.assert_array_equal(table["probability"].to_numpy(), wanted.probabilities.max(axis=1))
    metadata = {"cytoray.model_name": "tiny", "cytoray.model_version": "7", "cytoray.model_digest": "d" * 64}
    assert {key.decode(): value.decode() for key, value in tables[0].schema.metadata.items()} == metadata
    assert pa.concat_tables(tables).num_rows == 8


def test_a_model_without_labels_gives_the_same_columns(build_bundle: Any, make_counts: Any, as_cells: Any) -> None:
    (table,) = embed_cells(CellPredictor(build_bundle(labels=())), [as_cells(make_counts(2))], model=MODEL)
    assert table.column_names == ["cell_id", "embedding", "label", "probability", "status", "fitting", "unseen_p"]
    assert table["label"].null_count == table["probability"].null_count == 2
