"""Answers in an AnnData: columns of obs, arrays in obsm with the names of their columns in uns, provenance in uns."""

# C cells, D columns of an array

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

import cytoray
from cytoray.serving.client.asking import Received
from cytoray.serving.client.chunks import AnsweredChunk
from cytoray.serving.client.questions import Asked
from cytoray.tasks.endpoint import Endpoint

if TYPE_CHECKING:
    import anndata
    import pandas as pd

Float32 = npt.NDArray[np.float32]
PREFIX = "cytoray_"
EMBEDDING = "X_cytoray"  # key of obsm for the embeddings of the model
UNS = "cytoray"  # key of uns for the provenance of all answers, by task
_IDS = ("id", "cell_id")
_PLAIN = ("annotate", "embed")  # tasks whose columns are named without the task, as in the explorer's files


def annotated(adata: anndata.AnnData, received: Received) -> anndata.AnnData:
    """Return an AnnData with the answers, which shares everything else with ``adata``; a backed one is changed itself.

    Each part of the answers replaces what an earlier call has written of the same task.
    """
    endpoint, chunks = received.asked.endpoint, received.chunks
    target = adata if adata.isbacked else _shared(adata)
    for name, values in plain_columns(endpoint, [chunk.table for chunk in chunks]).items():
        target.obs[name] = _column(values, target.obs.index)
    arrays: dict[str, Float32] = {}
    for key, names in fill_arrays(endpoint, chunks, _filler(arrays, target.n_obs)).items():
        target.uns[f"{key}_names"] = np.array(names, dtype=object)
    for key, array in arrays.items():
        target.obsm[key] = array
    about = provenance(received.asked, [chunk.head for chunk in chunks])
    target.uns[UNS] = {**target.uns.get(UNS, {}), endpoint.name: about}
    return target


def _filler(arrays: dict[str, Float32], num_cells: int) -> Callable[[str, int], Float32]:
    """Return a function that makes an array (C, D) of NaN, and puts it into ``arrays``."""

    def create(key: str, width: int) -> Float32:
        """Make an array."""
        arrays[key] = np.full((num_cells, width), np.nan, np.float32)
        return arrays[key]

    return create


def provenance(asked: Asked, heads: list[dict[str, Any]]) -> dict[str, Any]:
    """Describe which model answered, when, and what the answer says about all cells; in types that an h5ad has."""
    found: dict[str, Any] = {
        "cytoray": cytoray.__version__,
        "answered_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "members": json.dumps(asked.members, default=str),
    }
    if heads:
        found |= {"model": dict(heads[0]["model"]), "genes": json.dumps(heads[0]["genes"])}
        found |= {"warnings": json.dumps([one for head in heads for one in head["warnings"]])}
        if "header" in heads[0]:
            found["header"] = json.dumps(heads[0]["header"])
    return found


def title(task: str, name: str) -> str:
    """Name the column of obs (or key of obsm) for a member of a task's answers: cytoray_label, cytoray_map_label."""
    return f"{PREFIX}{name}" if task in _PLAIN else f"{PREFIX}{task.replace('-', '_')}_{name}"


def plain_columns(endpoint: Endpoint[Any, Any], tables: Sequence[pa.Table]) -> dict[str, pa.ChunkedArray]:
    """Return the columns of obs: texts and numbers, without those that become arrays."""
    arrays = {*_IDS, *chain.from_iterable(endpoint.obsm.values())}
    kept = [table.drop_columns([name for name in table.column_names if name in arrays]) for table in tables]
    if not kept:
        return {}
    whole = pa.concat_tables(kept, promote_options="permissive").replace_schema_metadata(None)
    found = {title(endpoint.name, name): plain_column(whole[name]) for name in whole.column_names}
    return {name: column for name, column in found.items() if column is not None}


def fill_arrays(
    endpoint: Endpoint[Any, Any], chunks: Sequence[AnsweredChunk], create: Callable[[str, int], Any]
) -> dict[str, list[str]]:
    """Fill the arrays (C, D) of obsm, one chunk after the other; ``create(key, D)`` makes one.

    Returns the names of the columns of arrays that have names.
    """
    targets: dict[str, Any] = {}
    names: dict[str, list[str]] = {}
    for chunk in chunks:
        for key, texts, part in _arrays(endpoint, chunk):
            if key not in targets:
                targets[key] = create(key, part.shape[1])
                names |= {key: texts} if texts else {}
            ordered = part[:, [texts.index(name) for name in names[key]]] if texts else part
            targets[key][chunk.rows.start : chunk.rows.stop] = ordered
    return names


def _arrays(endpoint: Endpoint[Any, Any], chunk: AnsweredChunk) -> Iterator[tuple[str, list[str], Float32]]:
    """Yield the arrays of a chunk that have values: key, names of columns (if they have any), values."""
    table = chunk.table
    proteins = [str(one["name"]) for one in chunk.head.get("header", {}).get("proteins", ())]
    for key, members in endpoint.obsm.items():
        if any(name in table.column_names and table[name].null_count < len(table) for name in members):
            yield array_key(endpoint.name, key, members), proteins, _array(table, members)
    for name in table.column_names:
        column = table[name]
        if pa.types.is_map(column.type) and column.null_count < len(table):
            yield title(endpoint.name, name), *spread_map(column)


def array_key(task: str, key: str, members: tuple[str, ...]) -> str:
    """Return the key of obsm: X_cytoray for the model's embeddings; other arrays of a task have a key of their own."""
    if members != ("embedding",):
        return key
    return EMBEDDING if task in _PLAIN else f"{EMBEDDING}_{task}"


def plain_column(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Return a column of texts or numbers, lists of texts joined by " | "; None for one that is nested or empty."""
    kind = column.type
    if column.null_count == len(column):
        return None
    if pa.types.is_list(kind) and pa.types.is_string(kind.value_type):
        return pa.compute.binary_join(column, " | ")
    return None if pa.types.is_nested(kind) else column


def spread_map(column: pa.ChunkedArray) -> tuple[list[str], Float32]:
    """Return a column of maps from texts to numbers as names (D,) and an array (C, D), NaN for cells without one."""
    whole = column.combine_chunks()
    keys = whole.keys.dictionary_encode()
    names = keys.dictionary.to_pylist()
    offsets = whole.offsets.to_numpy()
    rows = np.repeat(np.arange(len(whole)), np.diff(offsets))
    found = np.full((len(whole), len(names)), np.nan, np.float32)
    found[rows, keys.indices.to_numpy()] = whole.items.to_numpy(zero_copy_only=False)
    return names, found


def _array(table: pa.Table, members: tuple[str, ...]) -> Float32:
    """Return an array (C, D) of one column of lists, or of several of numbers; NaN for cells without an answer."""
    if not pa.types.is_nested(table.schema.field(members[0]).type):
        columns = [table[name].to_numpy(zero_copy_only=False) for name in members if name in table.column_names]
        return np.stack(columns, axis=1).astype(np.float32)
    return spread_lists(table[members[0]])


def spread_lists(column: pa.ChunkedArray) -> Float32:
    """Return a column of lists of D numbers as an array (C, D), NaN for cells without one."""
    whole = column.combine_chunks()
    there = whole.is_valid().to_numpy(zero_copy_only=False)
    items = whole.flatten().to_numpy(zero_copy_only=False)
    found = np.full((len(whole), len(items) // max(int(there.sum()), 1)), np.nan, np.float32)
    if found.shape[1]:
        found[there] = items.reshape(int(there.sum()), -1)
    return found


def _column(values: pa.ChunkedArray, index: pd.Index[Any]) -> pd.Series[Any]:
    """Return a column of obs; texts are categories."""
    import pandas as pd

    if pa.types.is_string(values.type):
        texts = pd.Series(values.to_pylist(), index=index, dtype=object)
        return texts.astype("category")
    return pd.Series(values.to_numpy(), index=index)


def _shared(adata: anndata.AnnData) -> anndata.AnnData:
    """Return an AnnData with the matrices of another, and with tables and dictionaries of its own."""
    import anndata

    if adata.is_view:
        return adata.copy()
    raw = None if adata.raw is None else {"X": adata.raw.X, "var": adata.raw.var, "varm": dict(adata.raw.varm)}
    kept: Any = {name: dict(getattr(adata, name)) for name in ("uns", "obsm", "varm", "layers", "obsp", "varp")}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*names are not unique", UserWarning)  # as they were
        return anndata.AnnData(X=adata.X, obs=adata.obs.copy(), var=adata.var.copy(), raw=raw, **kept)


def columns_of(table: pa.Table) -> Iterator[tuple[str, pa.ChunkedArray]]:
    """Yield flat columns of answers for a table of text: arrays and maps become a column per number."""
    for name in table.column_names:
        column = table[name]
        if name in _IDS or column.null_count == len(column):
            continue
        if pa.types.is_map(column.type):
            names, found = spread_map(column)
            yield from ((f"{name}.{part}", pa.chunked_array([found[:, at]])) for at, part in enumerate(names))
        elif pa.types.is_list(column.type) and pa.types.is_floating(column.type.value_type):
            found = spread_lists(column)
            yield from ((f"{name}.{at}", pa.chunked_array([found[:, at]])) for at in range(found.shape[1]))
        elif (plain := plain_column(column)) is not None:
            yield name, plain
