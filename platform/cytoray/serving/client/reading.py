"""Turn answers into what the methods of a client return: arrays, and warnings about cells and genes."""

# C cells

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from cytoray.serving.client.asking import Received
from cytoray.serving.sending import CellSource
from cytoray.tasks.endpoint import Answers
from cytoray.tokens.gene_table import unversioned

_SHOWN = 5  # names in a warning
_HERE = str(Path(__file__).parent)


def read_result(received: Received) -> Any:
    """Return what the endpoint makes of its answers, after warnings about cells and genes."""
    warn(received)
    asked = received.asked
    if asked.source is None:
        return asked.endpoint.read(Answers([], received.answer))
    if not received.chunks:
        return asked.endpoint.read(Answers([], {}))
    cells = list(chain.from_iterable(rows_of(chunk.table) for chunk in received.chunks))
    first = received.chunks[0].head
    return asked.endpoint.read(Answers(cells, first, len(asked.source.genes), lambda: received.about))


def rows_of(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table as objects; a list of numbers is an array that shares the table's memory."""
    columns = {name: _values(table[name].combine_chunks()) for name in table.column_names}
    for row in zip(*columns.values(), strict=True):
        yield dict(zip(columns, row, strict=True))


def _values(column: Any) -> list[Any]:
    kind = column.type
    if not (pa.types.is_list(kind) and pa.types.is_floating(kind.value_type)):
        return list(column.to_pylist(maps_as_pydicts="strict"))
    numbers, offsets = column.values.to_numpy(), column.offsets.to_numpy()
    return [
        numbers[offsets[row] : offsets[row + 1]] if there else None
        for row, there in enumerate(column.is_valid().to_pylist())
    ]


def warn(received: Received) -> None:
    """Warn about genes, cells and values of a call, as from the line that made it."""
    source = received.asked.source
    if source is None or not received.chunks:
        return
    heads = [chunk.head for chunk in received.chunks]
    empty = [row for chunk in received.chunks for row in chunk.empty_cells]
    doubtful = [one for head in heads for one in head["warnings"] if one["code"] == "not_counts"]
    for text in (
        _about_unknown_genes(source, heads[0]["genes"]),
        _about_empty_cells(source, empty),
        _about_values(source, doubtful),
    ):
        if text:
            warnings.warn(text, UserWarning, stacklevel=_level_of_caller())


def _level_of_caller() -> int:
    """Return the ``stacklevel`` of the first frame outside this package."""
    frame, level = sys._getframe(1), 1
    while frame is not None and frame.f_code.co_filename.startswith(_HERE):
        frame, level = frame.f_back, level + 1  # type: ignore[assignment]
    return level


def _about_unknown_genes(source: CellSource, genes: dict[str, Any]) -> str:
    """Describe unknown genes, if Ensembl ids might identify them."""
    unknown = genes["unknown"]
    if source.ensembl_ids is not None or not unknown or any(map(unversioned, unknown)):
        return ""
    return (
        f"The model knows {genes['matched']:,} of the {len(source.genes):,} genes by name; it does not know, for "
        f"example, {', '.join(unknown[:_SHOWN])}. If the data have Ensembl ids, send them as well: use annotate_adata "
        "or embed_adata, or the argument ensembl_ids."
    )


def _about_empty_cells(source: CellSource, empty: list[int]) -> str:
    """Name cells without an answer."""
    if not empty:
        return ""
    names = ", ".join(source.name(row) for row in empty[:_SHOWN]) + (", …" if len(empty) > _SHOWN else "")
    return (
        f"{len(empty):,} of {source.num_cells:,} cells have no gene that the model knows: {names}. Their "
        "results are NaN, their labels None."
    )


def _about_values(source: CellSource, doubtful: list[dict[str, Any]]) -> str:
    """Describe values that do not look like raw counts."""
    if not doubtful:
        return ""
    num_cells = sum(warning["num_cells"] for warning in doubtful)
    return (
        f"The values of {num_cells:,} of {source.num_cells:,} cells do not look like raw counts "
        f"({doubtful[0]['kind']}). Models were trained on raw counts: send those if you have them, such as "
        "matrix='raw.X' or 'layers/counts'."
    )
