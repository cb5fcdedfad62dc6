"""The reading order: which cells make up step t, as a pure function of (manifest, seed, step); no Ray here.

Global position q = step * cells_per_step + i lies in epoch q // C; each epoch permutes the shards and the cells inside
each shard. The union over ranks of step t is therefore the same for any number of ranks, every cell comes once an
epoch, and resuming needs the step alone.
"""

# C cells of the stream, B cells of a step, T tokens

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cytoray import storage
from cytoray.corpus.manifest import CorpusManifest, corpus_uri, load_manifest
from cytoray.corpus.shards import load_shard
from cytoray.errors import CorpusError
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.keys import Purpose, combine
from cytoray.tokens.tokenizer import CellTokenizer, TokenizedCells, TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class StepBatch:
    """One rank's share of one step."""

    step: int
    epoch: int  # of the step's first cell
    tokens: TokenizedCells
    labels: npt.NDArray[np.int32]  # (B,), or (0,) without labels

    def to_row(self) -> dict[str, Any]:
        """A flat row for Ray Data: arrays as bytes, which cross the object store uninterpreted."""
        arrays: dict[str, npt.NDArray[Any]] = {
            "gene_ids": self.tokens.gene_ids,
            "values": self.tokens.values,
            "indptr": self.tokens.indptr,
            "cell_ids": self.tokens.cell_ids,
            "labels": self.labels,
        }
        return {"step": self.step, "epoch": self.epoch, **{name: array.tobytes() for name, array in arrays.items()}}

    @staticmethod
    def from_row(row: dict[str, Any]) -> StepBatch:
        """Undo ``to_row``."""
        tokens = TokenizedCells(
            np.frombuffer(row["gene_ids"], np.int32),
            np.frombuffer(row["values"], np.float32),
            np.frombuffer(row["indptr"], np.int64),
            np.frombuffer(row["cell_ids"], np.uint64),
        )
        return StepBatch(int(row["step"]), int(row["epoch"]), tokens, np.frombuffer(row["labels"], np.int32))


@dataclass(frozen=True, eq=False)
class CorpusStream:
    """An endless, reproducible order over the cells of a corpus (those with a label, where labels are asked for)."""

    store: str
    manifest: CorpusManifest
    tokenizer_config: TokenizerConfig
    seed: int
    cells_per_step: int
    label_key: str | None = None
    labels: tuple[str, ...] = ()
    _rows: tuple[Rows, ...] = field(default=(), repr=False)  # rows of each shard that belong to the stream
    _codes: tuple[npt.NDArray[np.int32], ...] = field(default=(), repr=False)  # label of each of those rows

    @property
    def num_cells(self) -> int:
        """Cells of one epoch."""
        return sum(len(rows) for rows in self._rows)

    @functools.cached_property
    def _tokenizer(self) -> CellTokenizer:
        return CellTokenizer(GeneVocabulary.load_default(), self.tokenizer_config)

    def step_cells(self, step: int) -> list[tuple[int, int, Rows]]:
        """Which cells make up a step: (epoch, shard, positions among the stream's rows of that shard), in order."""
        parts: list[tuple[int, int, Rows]] = []
        position, stop = step * self.cells_per_step, (step + 1) * self.cells_per_step
        while position < stop:
            epoch, offset = divmod(position, self.num_cells)
            shards, ends = self._epoch_order(epoch)
            place = int(np.searchsorted(ends, offset, side="right"))
            shard, start = int(shards[place]), offset - int(ends[place] - len(self._rows[shards[place]]))
            take = min(stop - position, int(ends[place]) - offset)
            parts.append((epoch, shard, self._shard_order(epoch, shard)[start : start + take]))
            position += take
        return parts

    def read_step(self, step: int, *, rank: int, world_size: int) -> StepBatch:
        """Read and tokenise one rank's share of a step; ranks get cells of like lengths, dealt in turn."""
        parts = self.step_cells(step)
        cells = SparseCells.concatenate([self._load(shard).take(self._rows[shard][at]) for _, shard, at in parts])
        epochs = np.concatenate([np.full(len(at), epoch) for epoch, _, at in parts])
        mine = np.argsort(cells.num_genes_per_cell, kind="stable")[rank::world_size]
        tokens = self._tokenise(cells.take(mine), epochs[mine])
        codes = [self._codes[shard][at] for _, shard, at in parts] if self.label_key else []
        labels = np.concatenate(codes)[mine] if codes else np.empty(0, np.int32)
        return StepBatch(step, parts[0][0], tokens, labels)

    def _load(self, shard: int) -> SparseCells:
        """A shard's cells; where bins are stored, the bins stand in the place of the values."""
        record = self.manifest.shards[shard]
        loaded = load_shard(storage.join(corpus_uri(self.store, self.manifest.name), record.key), record.sha256)
        return loaded.cells if loaded.bins is None else loaded.binned

    def _tokenise(self, cells: SparseCells, epochs: Rows) -> TokenizedCells:
        """Tokenise cells, each with the keys of its own epoch (a step may straddle two)."""
        pieces, order = [], []
        for epoch in np.unique(epochs):
            where = np.flatnonzero(epochs == epoch)
            part = cells.take(where)
            bins = part.values.astype(np.int16) if self.manifest.binning == "stored" else None
            pieces.append(self._tokenizer(part, epoch=int(epoch), bins=bins))
            order.append(where)
        return TokenizedCells.concatenate(pieces).take(np.argsort(np.concatenate(order), kind="stable"))

    @functools.lru_cache(maxsize=8)  # noqa: B019 - a stream lives as long as its process
    def _epoch_order(self, epoch: int) -> tuple[Rows, Rows]:
        """The order of shards in an epoch, and where each ends."""
        keys = combine(self.seed, int(Purpose.ORDER), epoch, np.arange(len(self._rows), dtype=np.uint64))
        shards = np.argsort(keys, kind="stable")
        return shards, np.cumsum([len(self._rows[shard]) for shard in shards])

    @functools.lru_cache(maxsize=8)  # noqa: B019
    def _shard_order(self, epoch: int, shard: int) -> Rows:
        """The order of cells inside a shard in an epoch."""
        places = np.arange(len(self._rows[shard]), dtype=np.uint64)
        return np.argsort(combine(self.seed, int(Purpose.ORDER), epoch, shard + 1, places), kind="stable")


@dataclass(frozen=True)
class StreamOptions:
    """How a corpus is to be streamed."""

    tokenizer: TokenizerConfig
    seed: int
    cells_per_step: int
    label_key: str | None = None


def open_stream(store: str, corpus: str, options: StreamOptions) -> CorpusStream:
    """Open a committed corpus for training; with ``label_key``, only cells that carry that label."""
    manifest = load_manifest(store, corpus)
    if manifest.binning == "stored" and manifest.n_bins != options.tokenizer.n_bins:
        raise CorpusError(
            f"Corpus {corpus!r} stores {manifest.n_bins} bins; {options.tokenizer.n_bins} are asked for.",
            remedy="Use the corpus's n_bins, or ingest it with binning: on_read.",
        )
    if manifest.vocabulary_digest != GeneVocabulary.load_default().digest():
        raise CorpusError(
            f"Corpus {corpus!r} was ingested with another gene vocabulary than this version of cytoray has.",
            remedy="Ingest it again under another name.",
        )
    labels: tuple[str, ...] = ()
    codes = tuple(np.empty(0, np.int32) for _ in manifest.shards)
    rows = tuple(np.arange(shard.num_cells, dtype=np.int64) for shard in manifest.shards)
    if options.label_key is not None:
        columns = read_obs(store, manifest, options.label_key)
        labels = tuple(sorted({str(value) for column in columns for value in column if value is not None}))
        index = {label: code for code, label in enumerate(labels)}
        known = [np.array([index.get(str(value), -1) for value in column], np.int32) for column in columns]
        rows = tuple(np.flatnonzero(code >= 0) for code in known)
        codes = tuple(code[code >= 0] for code in known)
    if sum(map(len, rows)) == 0:
        raise CorpusError(
            f"Corpus {corpus!r}: no cell has a label in {options.label_key!r}.", remedy="Check label_key."
        )
    return CorpusStream(
        store,
        manifest,
        options.tokenizer,
        options.seed,
        options.cells_per_step,
        options.label_key,
        labels,
        rows,
        codes,
    )


def read_obs(store: str, manifest: CorpusManifest, column: str) -> list[list[Any]]:
    """One column of obs, shard by shard, aligned with the shards' cells."""
    uri, columns = corpus_uri(store, manifest.name), []
    for shard in manifest.shards:
        data = storage.read_bytes(storage.join(uri, shard.obs_key), sha256=shard.obs_sha256)
        table = pq.read_table(pa.BufferReader(data))
        if column not in table.column_names:
            raise CorpusError(
                f"Corpus {manifest.name!r}: obs has no column {column!r}.",
                remedy=f"Columns there: {', '.join(table.column_names)}.",
                columns=table.column_names,
            )
        columns.append(table.column(column).to_pylist())
    return columns


def load_cells(store: str, manifest: CorpusManifest) -> SparseCells:
    """All cells of a (small) corpus, in shard order: for baselines."""
    uri = corpus_uri(store, manifest.name)
    return SparseCells.concatenate(
        [load_shard(storage.join(uri, shard.key), shard.sha256).cells for shard in manifest.shards]
    )
