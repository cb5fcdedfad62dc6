"""Read the matrix and the names of an h5ad file: a script that runs in a process of its own, with little else.

It is run isolated from the environment, with h5py, NumPy and, by its path, ``confinement`` of this package.
Arguments: a file descriptor to read, one to write, and a JSON object with the limits. What it writes is a JSON object
of texts and the raw bytes of the arrays, see ``_write``; on a refusal it is {"refused": reason, "remedy": remedy}.
"""

# C cells, G genes, N non-zero entries over all cells

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from typing import Any

import h5py
import numpy as np

_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_LZF}
_MAX_OBJECTS, _MAX_DEPTH = 4_096, 12
_MAX_COLUMNS, _MAX_TEXT_BYTES = 64, 64 * 2**20
_MAX_CHUNK_BYTES = 64 * 2**20
_ROWS, _TEXTS = 256, 4_096  # read at a time
_AGAIN = "Write the file again with adata.write_h5ad(path, compression='gzip')."


class Refused(Exception):
    """A file that is not read, with the remedy."""

    def __init__(self, reason: str, remedy: str = _AGAIN) -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


def _confine(limits: dict[str, Any]) -> None:
    """Give up what this process does not need, by the module that confines all such processes."""
    spec = importlib.util.spec_from_file_location("confinement", limits["confinement"])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # for its dataclass
    spec.loader.exec_module(module)
    module.confine(
        module.Confinement(
            memory_bytes=int(limits["memory_bytes"]),
            cpu_s=int(limits["cpu_s"]),
            output_bytes=int(limits["output_bytes"]),
            num_processes=0,
        )
    )
    signal.alarm(int(limits["wall_s"]) + 1)  # if the service that started this is gone


def _walk(file: h5py.File) -> None:
    """Refuse links to other files, data kept elsewhere, filters that are not built in, and endless trees."""
    seen: set[tuple[int, int]] = set()
    todo: list[tuple[h5py.h5g.GroupID, int]] = [(file["/"].id, 0)]
    while todo:
        group, depth = todo.pop()
        for name in group:
            kind = group.links.get_info(name).type
            if kind == h5py.h5l.TYPE_SOFT:
                continue  # within this file, as links to others are refused; what is read is checked where it ends
            if kind != h5py.h5l.TYPE_HARD:
                raise Refused("it has a link to another file")
            about = h5py.h5g.get_objinfo(group, name)
            if about.objno in seen:
                continue
            seen.add(about.objno)
            if len(seen) > _MAX_OBJECTS or depth > _MAX_DEPTH:
                raise Refused("it has too many groups and arrays", "Keep X, obs and var only.")
            if about.type == h5py.h5g.GROUP:
                todo.append((h5py.h5g.open(group, name), depth + 1))
            elif about.type == h5py.h5g.DATASET:
                _check_storage(h5py.h5d.open(group, name))


def _check_storage(dataset: h5py.h5d.DatasetID) -> None:
    made = dataset.get_create_plist()
    if made.get_layout() == h5py.h5d.VIRTUAL or made.get_external_count():
        raise Refused("it keeps data in another file")
    filters = {made.get_filter(number)[0] for number in range(made.get_nfilters())}
    if not filters <= _FILTERS:
        raise Refused("it is compressed by a filter other than gzip or lzf")
    if made.get_layout() == h5py.h5d.CHUNKED:
        size = int(np.prod(made.get_chunk(), dtype=np.float64)) * dataset.get_type().get_size()
        if size > _MAX_CHUNK_BYTES:
            raise Refused("a chunk of an array is too large")


def _dataset(group: Any, name: str, what: str) -> h5py.Dataset:
    found = group.get(name) if isinstance(group, h5py.Group) else None
    if not isinstance(found, h5py.Dataset):
        raise Refused(f"{what} is missing or not an array")
    return found


def _check_count(what: str, seen: int, most: int) -> None:
    if seen > most:
        raise Refused(f"too_large:{what}:{seen}:{most}")


def _numbers(dataset: h5py.Dataset, what: str, kinds: str, most: int) -> Any:
    """Return an array of one axis of numbers."""
    if dataset.ndim != 1 or dataset.dtype.kind not in kinds:
        raise Refused(f"{what} is not an array of numbers of one axis")
    _check_count("non-zero values", dataset.shape[0], most)
    return dataset[:]


def _texts(dataset: h5py.Dataset, what: str, most: int) -> list[str]:
    """Return an array of texts."""
    if dataset.ndim != 1:
        raise Refused(f"{what} has several axes")
    _check_count(what, dataset.shape[0], most)
    if h5py.check_string_dtype(dataset.dtype) is None:
        raise Refused(f"{what} is not texts")
    found: list[str] = []
    seen = 0
    for start in range(0, dataset.shape[0], _TEXTS):
        part = dataset[start : start + _TEXTS].tolist()
        texts = [text.decode("utf-8") if isinstance(text, bytes) else str(text) for text in part]
        seen += sum(map(len, texts))
        if seen > _MAX_TEXT_BYTES:
            raise Refused(f"{what} is too long")
        found += texts
    return found


def _column(element: Any, what: str, most: int) -> list[str] | None:
    """Return a column of texts or of categories; None if it holds something else."""
    if isinstance(element, h5py.Group) and "categories" in element and "codes" in element:
        names = _column(element["categories"], what, most)
        codes = _dataset(element, "codes", what)
        if names is None or codes.ndim != 1 or codes.dtype.kind not in "iu":
            return None
        _check_count(what, codes.shape[0], most)
        return [names[code] if 0 <= code < len(names) else "" for code in codes[:].tolist()]
    if isinstance(element, h5py.Group) and "values" in element and "mask" in element:
        texts = _column(element["values"], what, most)
        mask = _dataset(element, "mask", what)
        if texts is None or mask.shape != (len(texts),):
            return None
        return ["" if missing else text for text, missing in zip(texts, mask[:].tolist(), strict=True)]
    if isinstance(element, h5py.Dataset) and h5py.check_string_dtype(element.dtype) is not None:
        return _texts(element, what, most)
    return None


def _index(file: h5py.File, key: str, most: int) -> tuple[h5py.Group, str, list[str]]:
    """Return a table, the name of its index, and its entries."""
    table = file.get(key)
    name = table.attrs.get("_index") if isinstance(table, h5py.Group) else None
    if not isinstance(name, str) or not isinstance(table, h5py.Group):
        raise Refused(f"{key} is missing, or from before AnnData 0.7", "Write the file again with adata.write_h5ad.")
    found = _column(table.get(name), f"{key} names", most)
    if found is None:
        raise Refused(f"the index of {key} is not texts")
    return table, name, found


def _read_sparse(group: h5py.Group, shape: tuple[int, int], most: int) -> tuple[Any, Any, Any]:
    arrays = {name: _dataset(group, name, name) for name in ("data", "indices", "indptr")}
    indptr = _numbers(arrays["indptr"], "indptr", "iu", max(shape) + 1).astype(np.int64)
    indices = _numbers(arrays["indices"], "indices", "iu", most)
    data = _numbers(arrays["data"], "data", "iuf", most)
    encoding = group.attrs.get("encoding-type")
    num_rows, num_columns = shape if encoding == "csr_matrix" else shape[::-1]
    if len(indptr) != num_rows + 1 or indptr[0] != 0 or indptr[-1] != len(indices) or len(indices) != len(data):
        raise Refused("indptr, indices and data do not fit together")
    if (np.diff(indptr) < 0).any() or (
        len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < num_columns
    ):
        raise Refused("indptr or indices are out of range")
    if encoding == "csr_matrix":
        return indptr, indices, data
    rows = np.repeat(np.arange(num_rows, dtype=np.int32), np.diff(indptr))
    order = np.argsort(indices, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(indices, minlength=shape[0]))]).astype(np.int64)
    return starts, rows[order], data[order]


def _read_dense(dataset: h5py.Dataset, most: int) -> tuple[Any, Any, Any]:
    if dataset.dtype.kind not in "iuf":
        raise Refused("the matrix is not of numbers")
    parts, lengths, seen = [], [np.zeros(1, np.int64)], 0
    for start in range(0, dataset.shape[0], _ROWS):
        block = dataset[start : start + _ROWS]
        rows, columns = np.nonzero(block)
        seen += len(rows)
        _check_count("non-zero values", seen, most)
        parts.append((columns.astype(np.int32), block[rows, columns]))
        lengths.append(np.bincount(rows, minlength=len(block)))
    indices = np.concatenate([np.empty(0, np.int32), *(columns for columns, _ in parts)])
    data = np.concatenate([np.empty(0, dataset.dtype), *(values for _, values in parts)])
    return np.cumsum(np.concatenate(lengths)), indices, data


def _read(file: h5py.File, limits: dict[str, Any]) -> tuple[dict[str, Any], tuple[Any, Any, Any]]:
    """Return the texts and the arrays."""
    matrix = limits["matrix"]
    key, var_key = ("raw/X", "raw/var") if matrix == "raw.X" else ("X", "var")
    element = file.get(key)
    if element is None:
        raise Refused(f"it has no matrix {matrix}", "Name X or raw.X with the option matrix.")
    _, _, cells = _index(file, "obs", limits["max_cells"])
    var, index_name, genes = _index(file, var_key, limits["max_genes"])
    shape = tuple(int(size) for size in (element.shape if isinstance(element, h5py.Dataset) else _shape(element)))
    if shape != (len(cells), len(genes)):
        raise Refused(f"the matrix has another shape than obs and {var_key}")
    columns = {}
    for name in list(var)[:_MAX_COLUMNS]:
        texts = _column(var[name], f"{var_key}/{name}", limits["max_genes"]) if name != index_name else None
        if texts is not None and len(texts) == len(genes):
            columns[name] = texts
    if isinstance(element, h5py.Dataset):
        arrays = _read_dense(element, limits["max_nonzeros"])
    else:
        arrays = _read_sparse(element, shape, limits["max_nonzeros"])
    return {"cells": cells, "genes": genes, "columns": columns}, arrays


def _shape(group: h5py.Group) -> Any:
    shape = group.attrs.get("shape", ())
    if group.attrs.get("encoding-type") not in ("csr_matrix", "csc_matrix") or len(shape) != 2:
        raise Refused("the matrix is not one that AnnData writes")
    return shape


def _write(target: int, head: dict[str, Any], arrays: tuple[Any, ...] = ()) -> None:
    """Write the length of a JSON object, the object, and after it the bytes of the arrays it describes."""
    arrays = tuple(np.ascontiguousarray(array, array.dtype.newbyteorder("<")) for array in arrays)
    about = [[array.dtype.str, len(array)] for array in arrays]
    text = json.dumps(head | {"arrays": about}).encode()
    with open(target, "wb", buffering=0, closefd=False) as file:
        file.write(len(text).to_bytes(8, "little"))
        for part in (text, *arrays):
            view = memoryview(part).cast("B") if len(part) else memoryview(b"")
            while view:
                view = view[file.write(view) :]


def main() -> None:
    """Read and write; any error of a damaged file is a refusal, a crash is noticed by the service."""
    source, target, limits = int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    _confine(limits)
    try:
        with open(source, "rb") as content, h5py.File(content, "r", rdcc_nbytes=2**20) as file:
            _walk(file)
            head, arrays = _read(file, limits)
        _write(target, head, arrays)
    except Refused as error:
        _write(target, {"refused": error.reason, "remedy": error.remedy})
    except Exception as error:  # noqa: BLE001 - h5py raises nearly anything for damaged files
        _write(target, {"refused": f"it is damaged, or not an h5ad file ({type(error).__name__})", "remedy": _AGAIN})
    os._exit(0)  # without tearing down what a damaged file may have spoilt


if __name__ == "__main__":
    main()
