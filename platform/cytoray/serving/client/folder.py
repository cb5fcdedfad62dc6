"""Answers of a query in a folder, so that a query that was interrupted continues."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cytoray.drafts import draft_of, replace_file
from cytoray.serving.client.chunks import AnsweredChunk, Chunk, Model

_HEAD = b"cytoray.head"
_IDENTITY = "query.json"


@dataclass(frozen=True)
class FolderChunk:
    """A chunk whose table is a file."""

    rows: range
    head: dict[str, Any]
    path: Path

    @property
    def model(self) -> Model:
        """The model that answered."""
        return Chunk(self.rows, self.head, None).model

    @property
    def empty_cells(self) -> list[int]:
        """Rows of cells without a gene that the model knows."""
        return Chunk(self.rows, self.head, None).empty_cells

    @property
    def table(self) -> pa.Table:
        """The answers, a row per cell."""
        return pq.read_table(self.path)


class FolderKept:
    """Chunks in a folder; those of another query that the folder holds are deleted."""

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder = folder
        record = folder / _IDENTITY
        if not record.exists() or json.loads(record.read_bytes()) != identity:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            replace_file(record, json.dumps(identity, indent=1).encode())
        self._found = {chunk.rows.start: chunk for path in folder.glob("*.parquet") for chunk in [_read(path)]}

    def add(self, chunk: Chunk) -> AnsweredChunk:
        """Write a chunk."""
        path = self.folder / f"{chunk.rows.start:012d}-{chunk.rows.stop:012d}.parquet"
        table = chunk.table.replace_schema_metadata({_HEAD: json.dumps(chunk.head)})
        with draft_of(path) as draft:
            pq.write_table(table, draft, compression="zstd")
        kept = FolderChunk(chunk.rows, chunk.head, path)
        self._found[chunk.rows.start] = kept
        return kept

    def drop(self, chunk: AnsweredChunk) -> None:
        """Delete a chunk."""
        self._found.pop(chunk.rows.start).path.unlink()

    def chunks(self) -> list[AnsweredChunk]:
        """Return the chunks in the order of their cells."""
        return [self._found[start] for start in sorted(self._found)]

    def delete(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder)


def _read(path: Path) -> FolderChunk:
    start, stop = (int(number) for number in path.stem.split("-"))
    return FolderChunk(range(start, stop), json.loads(pq.read_schema(path).metadata[_HEAD]), path)
