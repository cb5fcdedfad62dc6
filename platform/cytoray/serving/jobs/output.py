"""Write the result of a job: the tables of its parts as one file, a part at a time in memory."""

# C cells

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet as pq

from cytoray import storage
from cytoray.serving.answer_files import array_width, read_array, write_h5ad
from cytoray.serving.jobs.messages import Format
from cytoray.tasks.messages import ModelInfo


def write_result(
    path: Path, tables: Sequence[str], *, format: Format, model: ModelInfo, obsm: Mapping[str, tuple[str, ...]]
) -> None:
    """Write parquet files of answers, by their URIs, as one file."""
    if format == "h5ad":
        write_h5ad(path, tables, model=model, obsm=obsm)
    elif format == "parquet":
        _write_parquet(path, tables)
    else:
        _write_csv(path, tables)


def _read(tables: Sequence[str]) -> Iterator[pa.Table]:
    for uri in tables:
        yield pq.read_table(io.BytesIO(storage.read_bytes(uri)))


def _write_parquet(path: Path, tables: Sequence[str]) -> None:
    """Write a row group per part; the metadata are those of the first, which names model and header."""
    writer: pq.ParquetWriter | None = None
    for table in _read(tables):
        writer = writer or pq.ParquetWriter(path, _described(table.schema), compression="zstd")
        writer.write_table(table.cast(writer.schema))
    if writer is not None:
        writer.close()


def _described(schema: pa.Schema) -> pa.Schema:
    """Return a schema without what was counted in one part."""
    kept = {key: value for key, value in schema.metadata.items() if key not in _OF_A_PART}
    return schema.with_metadata(kept)


_OF_A_PART = (b"cytoray.num_empty", b"cytoray.empty_cells")


def _write_csv(path: Path, tables: Sequence[str]) -> None:
    """Write plain columns: a column per number of an array, texts of a list joined by " | ", the rest as JSON."""
    writer: pyarrow.csv.CSVWriter | None = None
    widths = _widths(tables)
    for table in _read(tables):
        flat = _flat(table, widths)
        writer = writer or pyarrow.csv.CSVWriter(path, flat.schema)
        writer.write_table(flat)
    if writer is not None:
        writer.close()


def _widths(tables: Sequence[str]) -> dict[str, int]:
    """Return the length of each array of numbers."""
    widths: dict[str, int] = {}
    for table in _read(tables):
        for name in table.column_names:
            if _is_array(table.schema.field(name).type):
                widths[name] = max(widths.get(name, 0), array_width(table, (name,)))
        if all(widths.values()):
            break
    return widths


def _is_array(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(is_list and pa.types.is_floating(kind.value_type))


def _flat(table: pa.Table, widths: Mapping[str, int]) -> pa.Table:
    columns: dict[str, pa.Array] = {}
    for name in table.column_names:
        kind, column = table.schema.field(name).type, table[name]
        if _is_array(kind):
            numbers = read_array(table, (name,), widths[name])
            columns |= {
                f"{name}_{place}": pa.array(numbers[:, place], from_pandas=True) for place in range(widths[name])
            }
        elif pa.types.is_dictionary(kind):
            columns[name] = column.cast(kind.value_type)
        elif pa.types.is_list(kind) and pa.types.is_string(kind.value_type):
            columns[name] = pa.compute.binary_join(column, " | ")
        elif pa.types.is_nested(kind):
            plain = dict if pa.types.is_map(kind) else (lambda value: value)
            texts = [None if value is None else json.dumps(plain(value)) for value in column.to_pylist()]
            columns[name] = pa.array(texts, pa.string())
        else:
            columns[name] = column
    return pa.table(columns)
