"""Columns of a session as the page reads them: raw little-endian numbers, described in the session's state."""

# C cells

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cytoray.drafts import replace_file
from cytoray.serving.explorer.sessions import Column, Session

Float32 = npt.NDArray[np.float32]
MISSING = 65535  # code of a cell without a value
MOST_CATEGORIES = 1_000
KEY = re.compile(r"[a-z_]+\.[a-z0-9]+(\.[0-9]+)?")


@dataclass(frozen=True)
class Place:
    """Where a column stands: its file's name, its group and its title."""

    key: str
    group: str
    name: str
    part_of: str = ""


def save_category(session: Session, place: Place, texts: pa.Array) -> Column | None:
    """Save C texts as uint16 codes, the most frequent category first; None if no text or too many are found."""
    encoded = texts.dictionary_encode()
    names = encoded.dictionary.to_pylist()
    if not 1 <= len(names) <= MOST_CATEGORIES:
        return None
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    missing = encoded.is_null().to_numpy(zero_copy_only=False)
    codes = np.where(missing, 0, codes).astype(np.int64)
    counts = np.bincount(codes[~missing], minlength=len(names))
    order = sorted(range(len(names)), key=lambda code: (-counts[code], names[code]))
    rank = np.empty(len(names), np.uint16)
    rank[order] = np.arange(len(names))
    ranked = np.where(missing, MISSING, rank[codes]).astype("<u2")
    replace_file(session.column(place.key), ranked.tobytes())
    return Column(
        key=place.key,
        group=place.group,
        name=place.name,
        kind="category",
        categories=[names[code] for code in order],
        counts=[int(counts[code]) for code in order],
        missing=int(missing.sum()),
    )


def save_number(session: Session, place: Place, values: npt.NDArray[Any]) -> Column | None:
    """Save C numbers as float32, NaN for a cell without one; None if no cell has one."""
    numbers = np.asarray(values, "<f4")
    there = np.isfinite(numbers)
    if not there.any():
        return None
    replace_file(session.column(place.key), numbers.tobytes())
    low, high = float(numbers[there].min()), float(numbers[there].max())
    missing = int((~there).sum())
    return Column(
        key=place.key,
        group=place.group,
        name=place.name,
        kind="number",
        low=low,
        high=high,
        missing=missing,
        part_of=place.part_of,
    )


def save_layout(session: Session, name: str, places_C2: Float32) -> None:
    """Save places (C, 2) scaled into the square from -1 to 1, NaN for cells without one."""
    middle = (np.nanmax(places_C2, axis=0) + np.nanmin(places_C2, axis=0)) / 2
    half = float(np.nanmax(np.abs(places_C2 - middle))) or 1.0
    scaled = ((places_C2 - middle) / half).astype("<f4")
    replace_file(session.column(f"layout.{name}"), scaled.tobytes())


def columns_of_table(session: Session, group: str, table: pa.Table, header: Mapping[str, Any]) -> list[Column]:
    """Save the columns of an endpoint's answers to C cells that one can colour by.

    These are texts and numbers, the numbers of a map (probabilities by label) and those of a list that ``header`` names
    (proteins).
    """
    saved = [
        column
        for place, name in enumerate(table.column_names)
        for column in _columns_of(session, Place(f"{group}.{place}", group, name), table[name], header)
    ]
    return [column for column in saved if column is not None]


def _columns_of(
    session: Session, place: Place, values: pa.ChunkedArray, header: Mapping[str, Any]
) -> Iterable[Column | None]:
    kind, whole = values.type, values.combine_chunks()
    if whole.null_count == len(whole):
        return
    if pa.types.is_string(kind):
        yield save_category(session, place, whole)
    elif pa.types.is_floating(kind) or pa.types.is_integer(kind):
        yield save_number(session, place, whole.to_numpy(zero_copy_only=False))
    elif pa.types.is_map(kind) and pa.types.is_floating(kind.item_type):
        keys, items = whole.keys.to_numpy(zero_copy_only=False), whole.items.to_numpy(zero_copy_only=False)
        names = list(dict.fromkeys(keys[: len(keys) // max(1, len(whole) - whole.null_count)]))
        yield from _save_all(session, place, names, _spread(whole, items, len(names)))
    elif pa.types.is_list(kind) and pa.types.is_floating(kind.value_type) and "proteins" in header:
        names = [str(one["name"]) for one in header["proteins"]]
        items = whole.flatten().to_numpy(zero_copy_only=False)
        yield from _save_all(session, place, names, _spread(whole, items, len(names)))


def _save_all(session: Session, place: Place, names: list[str], values_CN: Float32) -> Iterable[Column | None]:
    for number, name in enumerate(names):
        part = Place(f"{place.key}.{number}", place.group, name, part_of=place.name)
        yield save_number(session, part, values_CN[:, number])


def _spread(whole: pa.Array, items: npt.NDArray[Any], width: int) -> Float32:
    """Return the lists of all cells as rows (C, N), NaN for a cell without one; every list has N entries."""
    found = np.full((len(whole), width), np.nan, np.float32)
    found[whole.is_valid().to_numpy(zero_copy_only=False)] = items.reshape(-1, width)
    return found


def read_column(session: Session, column: Column) -> pa.Array:
    """Return the values (C,) of a column as texts or numbers."""
    path = session.column(column.key)
    if column.kind == "number":
        values = np.fromfile(path, "<f4")
        return pa.array(values, mask=np.isnan(values))
    codes = np.fromfile(path, "<u2")
    missing = codes == MISSING
    texts = np.array([*column.categories, ""], object)[np.where(missing, len(column.categories), codes)]
    return pa.array(texts, pa.string(), mask=missing)


def read_layout(session: Session, name: str) -> Float32:
    """Return the places (C, 2) of a layout."""
    return np.fromfile(session.column(f"layout.{name}"), "<f4").reshape(-1, 2)


def read_value(session: Session, column: Column, row: int) -> str | float | None:
    """Return one cell's value in a column; None if it has none."""
    is_number = column.kind == "number"
    kind = np.dtype("<f4" if is_number else "<u2")
    (value,) = np.fromfile(session.column(column.key), kind, count=1, offset=row * kind.itemsize)
    if is_number:
        return None if np.isnan(value) else float(value)
    return None if value == MISSING else column.categories[int(value)]
