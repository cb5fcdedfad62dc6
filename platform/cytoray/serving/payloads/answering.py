"""Write answers as JSON, Arrow, parquet or h5ad; the numbers are the same in each."""

# C cells

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic_core

from cytoray.serving.payloads.media import ARROW, H5AD, JSON
from cytoray.tasks.endpoint import Endpoint, Question

if TYPE_CHECKING:
    import pyarrow as pa


def encode_answer(
    endpoint: Endpoint[Any, Any], question: Question[Any], result: Any, *, members: dict[str, Any], media_type: str
) -> bytes:
    """Write an answer with the ``members`` that all endpoints share; those in other forms than JSON are about cells.

    Floats of JSON are the shortest decimals of their float64 value, so reading them as float32 is exact.
    """
    answer = members | endpoint.answer(question, result)
    if media_type == JSON:
        return pydantic_core.to_json(answer)
    table = table_of_cells(endpoint, answer)
    if media_type == ARROW:
        return _as_stream(table)
    return _as_h5ad(table, endpoint, answer) if media_type == H5AD else _as_parquet(table)


def read_answer(content: bytes) -> dict[str, Any]:
    """Read an answer in Arrow as that in JSON would be read."""
    import pyarrow as pa

    from cytoray.tasks.tables import ANSWER

    with pa.ipc.open_stream(content) as stream:
        table = stream.read_all()
    answer: dict[str, Any] = pydantic_core.from_json(table.schema.metadata[ANSWER])
    return answer | {"cells": table.to_pylist(maps_as_pydicts="strict")}


def table_of_cells(endpoint: Endpoint[Any, Any], answer: dict[str, Any]) -> pa.Table:
    """Return the answers to C cells as a table of C rows with the members of their JSON objects as columns.

    Numbers are float64, as in JSON, but those of lists float32 if that is exact, as for embeddings.
    """
    import pyarrow as pa

    from cytoray.tasks.tables import ANSWER, HEADER, schema_of

    cells = pydantic_core.to_jsonable_python(answer["cells"])
    schema = schema_of(endpoint, number=pa.float64(), with_ids=True)
    names = [name for name in schema.names if name in cells[0]]
    columns = {}
    for name in names:
        column = pa.array([cell[name] for cell in cells], schema.field(name).type, from_pandas=True)  # NaN: null
        columns[name] = _narrowed(column) if column.type == pa.list_(pa.float64()) else column
    rest = pydantic_core.to_json({name: member for name, member in answer.items() if name != "cells"})
    header = {HEADER: pydantic_core.to_json(answer["header"])} if "header" in answer else {}
    return pa.table(columns).replace_schema_metadata({ANSWER: rest, **header})


def _narrowed(column: pa.Array) -> pa.Array:
    """Return lists of float64 as lists of float32 if no number changes."""
    import pyarrow as pa

    narrow = column.cast(pa.list_(pa.float32()))
    return narrow if narrow.cast(column.type).equals(column) else column


def _as_stream(table: pa.Table) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _as_parquet(table: pa.Table) -> bytes:
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _as_h5ad(table: pa.Table, endpoint: Endpoint[Any, Any], answer: dict[str, Any]) -> bytes:
    """Write the cells as offline answers do: by their ids, or by their positions if one has no id."""
    import pyarrow as pa

    from cytoray.serving.answer_files import write_h5ad

    ids = table.column(0).to_pylist()
    names = [str(row) for row in range(len(ids))] if None in ids else ids
    table = table.add_column(0, "obs_name", pa.array(names, pa.string())).drop_columns(table.column_names[0])
    with tempfile.TemporaryDirectory(prefix="cytoray-answer-") as folder:
        path = Path(folder) / "answer.h5ad"
        write_h5ad(path, [table], model=answer["model"], obsm=endpoint.obsm)
        return path.read_bytes()
