"""Embeddings and labels of many cells as Arrow tables: what the offline job writes, by the code that also serves."""

# C cells, K labels, D width

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from cytoray.model.predictor import Predictions
from cytoray.serving.schemas import ModelInfo
from cytoray.serving.service import Predictor
from cytoray.tokens.cells import SparseCells, UInt64


def embed_cells(predictor: Predictor, batches: Iterable[SparseCells], *, model: ModelInfo) -> Iterator[pa.Table]:
    """Predict each batch and yield it as a table, in order, with the columns of ``table_schema``."""
    for cells in batches:
        yield to_table(predictor.predict(cells), cell_ids=cells.cell_ids, model=model)


def table_schema(width: int, *, model: ModelInfo) -> pa.Schema:
    """Columns of the result; the metadata name the model, without which an embedding means nothing."""
    fields = [
        pa.field("cell_id", pa.uint64(), nullable=False),
        pa.field("embedding", pa.list_(pa.float32(), width), nullable=False),
        pa.field("label", pa.string()),  # null, as probability, where the model has no labels
        pa.field("probability", pa.float32()),
    ]
    return pa.schema(fields, metadata={f"cytoray.model_{key}": value for key, value in model.model_dump().items()})


def to_table(predictions: Predictions, *, cell_ids: UInt64, model: ModelInfo) -> pa.Table:
    """The predictions for C cells as a table of C rows."""
    num_cells, width = predictions.embeddings.shape
    labels: list[str] | list[None] = [None] * num_cells
    best = pa.nulls(num_cells, pa.float32())
    if predictions.probabilities is not None:
        labels = [predictions.labels[column] for column in predictions.probabilities.argmax(axis=1)]
        best = pa.array(predictions.probabilities.max(axis=1))
    columns = [
        pa.array(cell_ids, pa.uint64()),
        pa.FixedSizeListArray.from_arrays(pa.array(predictions.embeddings.ravel(), pa.float32()), width),
        pa.array(labels, pa.string()),
        best,
    ]
    return pa.Table.from_arrays(columns, schema=table_schema(width, model=model))
