"""Another decoder of corpora, written from docs/corpus-format.md alone: plain Python, byte by byte, no cytoray."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

Cell = tuple[int, dict[int, float]]  # id, gene id -> value


def decode_cells(data: bytes) -> tuple[list[Cell], list[int]]:
    """The cells of a shard file in their order, and the stored bins."""
    file = pq.ParquetFile(io.BytesIO(data))
    metadata = file.schema_arrow.metadata
    assert metadata[b"cytoray.format"] == b"2"
    is_counts = metadata[b"cytoray.values"] == b"counts"
    table = list(_gaps(iter(base64.b64decode(metadata[b"cytoray.genes"]))))
    cells: list[Cell] = []
    bins: list[int] = []
    for chunk in file.read().to_pylist():
        number = chunk["n"]
        assert 1 <= number <= 256
        cell_ids = struct.unpack(f"<{number}Q", chunk["cell_ids"])
        nnz, glen, nlarge = (struct.unpack(f"<{number}I", chunk[name]) for name in ("nnz", "glen", "nlarge"))
        at = {"genes": 0, "values": 0, "large": 0}
        for cell in range(number):
            stream = chunk["genes"][at["genes"] : at["genes"] + glen[cell]]
            genes = [table[place] for place in _gaps(iter(stream))]
            width = 1 if is_counts else 4
            values = chunk["values"][at["values"] : at["values"] + width * nnz[cell]]
            large = struct.unpack(f"<{nlarge[cell]}I", chunk["large"][at["large"] : at["large"] + 4 * nlarge[cell]])
            decoded: Any = _counts(values, iter(large)) if is_counts else struct.unpack(f"<{nnz[cell]}f", values)
            cells.append((cell_ids[cell], dict(zip(genes, decoded, strict=True))))
            at = {
                "genes": at["genes"] + glen[cell],
                "values": at["values"] + len(values),
                "large": at["large"] + 4 * nlarge[cell],
            }
        assert [at[name] for name in at] == [len(chunk[name]) for name in at]
        bins += chunk["bins"]
    return cells, bins


def _gaps(stream: Iterator[int]) -> Iterator[int]:
    """Ascending numbers out of a gap stream."""
    number, gap = -1, 0
    for byte in stream:
        gap += byte
        if byte != 255:
            number += gap + 1
            yield number
            gap = 0
    assert gap == 0, "a stream ends with a byte below 255"


def _counts(values: bytes, large: Iterator[int]) -> list[int]:
    counts = [next(large) if value == 255 else value for value in values]
    assert next(large, None) is None
    return counts


def read_manifest(folder: Path, version: int | None = None) -> dict[str, Any]:
    """The manifest of the latest (or the named) version of the corpus in a folder, every digest checked."""
    commits = sorted((folder / "versions").iterdir())
    commit = json.loads((commits[-1] if version is None else folder / "versions" / f"{version:06d}.json").read_text())
    data = (folder / commit["manifest_key"]).read_bytes()
    assert hashlib.sha256(data).hexdigest() == commit["manifest_sha256"]
    manifest: dict[str, Any] = json.loads(data)
    return manifest


def read_file(folder: Path, record: dict[str, Any]) -> bytes:
    """A file that a manifest names; its row groups and frame are checked as well as its whole."""
    data = (folder / record["key"]).read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (record["num_bytes"], record["sha256"])
    end = 0
    for group in record.get("row_groups", ()):
        assert group["offset"] == end
        end += group["num_bytes"]
        assert hashlib.sha256(data[group["offset"] : end]).hexdigest() == group["sha256"]
    if "frame_sha256" in record:
        assert hashlib.sha256(data[end:]).hexdigest() == record["frame_sha256"]
    return data


def read_corpus(folder: Path, *, modality: str | None = None) -> dict[tuple[str, str], dict[int, float]]:
    """Every cell by (source, name): gene id (or place of the feature) -> value."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for shard in read_manifest(folder)["shards"]:
        cells, _ = decode_cells(read_file(folder, shard if modality is None else shard["modalities"][modality]))
        rows = pq.read_table(io.BytesIO(read_file(folder, shard["obs"]))).to_pylist()
        assert [cell_id for cell_id, _ in cells] == [row["_cell_id"] for row in rows]
        assert sum(cell_id for cell_id, _ in cells) % 2**64 == shard["cell_id_sum"]
        for (_, cell), row in zip(cells, rows, strict=True):
            assert (row["_source"], row["_obs_name"]) not in found
            found[row["_source"], row["_obs_name"]] = cell
    return found
