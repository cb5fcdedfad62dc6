"""Answers to cells as a table with a row per cell, for files: columns follow from the schema of the answers."""

# C cells

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

import pyarrow as pa
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from cytoray.tasks.endpoint import Endpoint, Question
from cytoray.tasks.messages import Message, ModelInfo

HEADER = b"cytoray.header"  # of a table: what holds for all its cells, as JSON
ANSWER = b"cytoray.answer"  # the answer to one request without its cells, as JSON
_IDS = ("id", "cell_id")  # of the answers; the files name cells in columns of their own
_PLAIN = {str: pa.string(), int: pa.int64(), float: pa.float32(), bool: pa.bool_()}


def table_of_answers(endpoint: Endpoint[Any, Any], question: Question[Any], result: Any, model: ModelInfo) -> pa.Table:
    """Return the answers to C cells as a table of C rows, with the model and the header in its metadata."""
    answer = to_jsonable_python(endpoint.answer(question, result))
    schema = schema_of(endpoint)
    rows = [{name: row.get(name) for name in schema.names} for row in answer.pop("cells")]
    metadata = model_metadata(model) | ({HEADER: json.dumps(answer["header"])} if "header" in answer else {})
    return pa.Table.from_pylist(rows, schema=schema.with_metadata(metadata))


def schema_of(
    endpoint: Endpoint[Any, Any], *, number: pa.DataType = _PLAIN[float], with_ids: bool = False
) -> pa.Schema:
    """Return the columns that the answers of an endpoint have: the members of its cells, numbers as ``number``."""
    (cell,) = get_args(endpoint.response.model_fields["cells"].annotation)
    assert issubclass(cell, Message)
    fields = {name: info.annotation for name, info in cell.model_fields.items() if with_ids or name not in _IDS}
    plain = _PLAIN | {float: number}
    return pa.schema([pa.field(name, _type_of(annotation, plain)) for name, annotation in fields.items()])


def model_metadata(model: ModelInfo) -> dict[Any, Any]:
    """Return the metadata of a table that name the model that answered."""
    return {f"cytoray.model_{key}": value for key, value in model.model_dump().items()}


def _type_of(annotation: Any, plain: Mapping[Any, pa.DataType]) -> pa.DataType:
    """Return the type of a column for a member's annotation; ``plain`` has those of numbers and texts."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        (other,) = [part for part in parts if part is not type(None)]
        return _type_of(other, plain)
    if origin is Literal:
        return plain[type(parts[0])]
    if origin is list:
        return pa.list_(_type_of(parts[0], plain))
    if origin is dict:
        return pa.map_(_type_of(parts[0], plain), _type_of(parts[1], plain))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return pa.struct([(name, _type_of(info.annotation, plain)) for name, info in annotation.model_fields.items()])
    return plain[annotation]
