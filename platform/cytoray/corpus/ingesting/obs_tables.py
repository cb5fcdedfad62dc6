"""The obs table of a corpus: one Arrow type a column over all sources, and the columns that cytoray puts in front."""

# C cells

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cytoray.tokens.labels import label_texts

# Made anew by every ingest: where an ingest reads what an export wrote, the old ones are left out.
OWN_COLUMNS = {"_cell_id": "uint64", "_content": "uint64", "_source": "string", "_obs_name": "string"}
_FAMILIES = {"int64": "number", "double": "number", "bool": "flag", "string": "text"}


def column_types(frame: pd.DataFrame, wanted: Iterable[str]) -> dict[str, str]:
    """The Arrow type (int64, double, bool, string) in which each column of a source can be kept."""
    names = tuple(wanted) or tuple(str(name) for name in frame.columns)
    return {name: _type_of(frame[name]) for name in names if name not in OWN_COLUMNS}


def unite_types(types: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """The type of each column over all sources: text where they are numbers in one and words or flags in another."""
    united: dict[str, str] = {}
    for columns in types:
        for name, kind in columns.items():
            united[name] = _unite(united.get(name, kind), kind)
    return dict(sorted(united.items()))


def obs_schema(types: Mapping[str, str]) -> pa.Schema:
    """The schema of an obs table."""
    return pa.schema([(name, pa.type_for_alias(kind)) for name, kind in {**OWN_COLUMNS, **types}.items()])


def obs_arrays(frame: pd.DataFrame, types: Mapping[str, str]) -> list[pa.Array]:
    """The columns of ``types`` for the cells of ``frame``; null where the source has no such column or no value."""
    return [
        _array(frame[name], kind) if name in frame else pa.nulls(len(frame), pa.type_for_alias(kind))
        for name, kind in types.items()
    ]


def to_parquet(table: pa.Table) -> bytes:
    """A table as the bytes of a parquet file; equal tables give equal bytes."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _type_of(values: pd.Series) -> str:
    kind = values.dtype.kind
    if isinstance(values.dtype, pd.CategoricalDtype) or kind not in "biuf":
        return "string"
    if kind == "u" and values.max() > np.iinfo(np.int64).max:
        return "string"
    return {"b": "bool", "f": "double"}.get(kind, "int64")


def _unite(one: str, other: str) -> str:
    if one == other:
        return one
    return "double" if _FAMILIES[one] == _FAMILIES[other] else "string"


def _array(values: pd.Series, kind: str) -> pa.Array:
    """One column of the corpus; every value that becomes text is spelled as ``label_text`` spells it."""
    if kind == "string":
        return pa.array(label_texts(values), pa.string())
    own = pa.type_for_alias(_type_of(values))
    return pa.array(values, type=own, from_pandas=True).cast(pa.type_for_alias(kind))


def own_arrays(
    cell_ids: npt.NDArray[np.uint64], content: npt.NDArray[np.uint64], source: str, frame: pd.DataFrame
) -> list[pa.Array]:
    """The arrays of ``OWN_COLUMNS``."""
    return [
        pa.array(cell_ids),
        pa.array(content),
        pa.array([source] * len(frame), pa.string()),
        pa.array([str(name) for name in frame.index], pa.string()),
    ]
