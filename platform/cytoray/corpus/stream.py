"""A corpus as an endless stream of minibatches in a reproducible order; no Ray here, and nothing to set up:

    options = StreamOptions(TokenizerConfig(), seed=1, cells_per_step=64)
    for batch in open_stream("s3://bucket/store", "human", options).read_steps(0, 1000):
        ...  # batch.gene_ids (64, L) uint16, batch.values (64, L) int8, batch.lengths (64,)

The order is a pure function of (manifest, seed, step), see ``corpus.streaming.order``; tokens are one of (seed, epoch,
cell). So a stream starts at any step at once, and the union over ranks of a step is the same for any number of ranks.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from cytoray import storage
from cytoray.corpus.manifest import CellFileRecord, CorpusManifest, corpus_uri, load_manifest
from cytoray.corpus.shards import open_shard, read_shard
from cytoray.corpus.streaming.batches import StepBatch, StepChunk
from cytoray.corpus.streaming.expression import log_normalised, total_counts
from cytoray.corpus.streaming.filling import ChunkFiller, LoadedUnit
from cytoray.corpus.streaming.members import MemberOptions, Members, ObsColumn, find_members
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.corpus.streaming.order import OrderedCells, ReadingOrder
from cytoray.corpus.streaming.pairs import Controls, find_controls, load_controls
from cytoray.corpus.streaming.pipeline import Job, fill_ahead, fill_in_turn
from cytoray.corpus.streaming.shares import Team
from cytoray.errors import CorpusError
from cytoray.tokens.cells import Int64, SparseCells
from cytoray.tokens.keys import Purpose, combine
from cytoray.tokens.packed import PackedCells, concatenate, unpack
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary

CHUNK_CELLS = 4096  # filled at once: some 30 ms of work, which hides the cost of calls and planning
CHUNK_BYTES = 15 * 2**20  # and at most this much: one block of Ray Data
REMOTE_READERS = 8  # ranged reads at a time from an object store: the first byte takes 10 to 100 ms


@dataclass(frozen=True, eq=False)
class CorpusStream:
    """An endless, reproducible order over the cells of a corpus (those that the options ask for), as minibatches."""

    store: str
    manifest: CorpusManifest
    options: StreamOptions
    members: Members
    controls: Members | None = None  # the control cells of a stream of pairs

    @property
    def num_cells(self) -> int:
        """Number of cells per epoch."""
        return self.order.num_cells

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels behind the codes of ``StepBatch.labels``."""
        return () if self.options.label_key is None else self.members.columns[self.options.label_key].values

    def values(self, column: str) -> tuple[str, ...]:
        """The values behind the codes of a column, ``StepBatch.columns[column]``."""
        return self.members.columns[column].values

    def coded(self, options: StreamOptions) -> StreamOptions:
        """Return ``options`` of a stream over other cells whose codes mean the same as here."""
        columns = tuple(replace(column, values=self.values(column.name)) for column in options.columns)
        return replace(options, columns=columns, labels=self.labels if options.label_key else None)

    @functools.cached_property
    def order(self) -> ReadingOrder:
        """The reading order: the cells of each step."""
        return ReadingOrder(self.members.counts, self.options.seed, self.options.cells_per_step)

    @functools.cached_property
    def filler(self) -> ChunkFiller:
        """The filler that turns an order into minibatches."""
        return ChunkFiller(self.options, self.members, None if self.controls is None else self._load_controls)

    def read_step(self, step: int, *, rank: int, world_size: int) -> StepBatch:
        """Read one rank's whole share of one step (without a token budget, which may split it)."""
        batches = list(self.read_steps(step, step + 1, rank=rank, world_size=world_size, threads=0))
        assert len(batches) == 1, "a token budget cuts a step into parts: use read_steps"
        return batches[0]

    def read_steps(
        self, start: int, stop: int, *, rank: int = 0, world_size: int = 1, threads: int = 2
    ) -> Iterator[StepBatch]:
        """Yield one rank's share of the steps ``start`` to ``stop``, in order; nothing before ``start`` is read.

        With ``threads`` the next row groups are read and filled in the background, into bounded memory (about 200 MB at
        1,500 genes per cell); with 0, on demand. Raises DigestError if stored bytes have changed.
        """
        for chunk in self.read_chunks(range(start, stop), rank=rank, world_size=world_size, threads=threads):
            yield from chunk.batches()

    def read_chunks(self, steps: range, *, rank: int = 0, world_size: int = 1, threads: int = 0) -> Iterator[StepChunk]:
        """Yield what ``read_steps`` does, several steps together; ``steps`` may skip some."""
        jobs = self._jobs(steps, rank, world_size)
        if not threads:
            return fill_in_turn(self.filler, jobs, self.read_unit)
        num_readers = REMOTE_READERS if storage.is_remote(self.store) else 0
        return fill_ahead(self.filler, jobs, self.read_unit, threads=threads, num_readers=num_readers)

    def read_unit(self, unit: int) -> LoadedUnit:
        """Read, verify and decode one row group."""
        shard = int(np.searchsorted(self._first_units, unit, "right")) - 1
        record, group = self.manifest.shards[shard], unit - int(self._first_units[shard])
        uri = corpus_uri(self.store, self.manifest.name)

        def read(file: CellFileRecord) -> PackedCells:
            """Read the group of one file of the shard."""
            return open_shard(storage.join(uri, file.key), file).read_group(group)

        stored, translation = read(record), self.options.translation
        cells = self.filler.tokenizer.restrict(stored if translation is None else translation.apply(stored))
        if self.options.is_expression:
            cells = log_normalised(cells, total_counts(stored))
        modalities = {name: read(record.modalities[name]) for name in self.options.modalities}
        features = tuple(tokens.place(read(record.modalities[tokens.modality])) for tokens in self.options.features)
        return LoadedUnit(cells, modalities, features)

    def _load_controls(self) -> Controls:
        """Load the control cells of a stream of pairs."""
        assert self.controls is not None, "this stream has no pairs"
        assert self.options.pairs is not None, "this stream has no pairs"
        return load_controls(self.controls, self.options.pairs.match, lambda unit: self.read_unit(unit).cells)

    @functools.cached_property
    def _first_units(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """The first unit of each shard, and the number of units."""
        return np.cumsum([0, *(len(shard.row_groups) for shard in self.manifest.shards)], dtype=np.int64)

    def _jobs(self, steps: range, rank: int, world_size: int) -> Iterator[Job]:
        """Plan chunks of steps within one window."""
        team = Team.of(rank, world_size, whole=self.options.cells_per_minibatch is not None)
        ranks = {"rank": team.first, "num_ranks": team.num_ranks, "world_size": world_size}
        share = max(1, self.options.cells_per_step // world_size)
        num_steps = max(1, min(CHUNK_CELLS, CHUNK_BYTES // self.filler.bytes_per_cell) // share) * steps.step
        for first, last in self.order.runs(steps.start, steps.stop):
            for step in range(first, last, num_steps):
                wanted = np.arange(step, min(step + num_steps, last))
                mine = (wanted - steps.start) % steps.step == 0
                cells = self.order.cells(step, int(wanted[-1]) + 1, **ranks)
                yield Job(wanted[mine], OrderedCells(cells.units[mine], cells.places[mine], cells.epochs[mine]), team)


def open_stream(store: str, corpus: str, options: StreamOptions) -> CorpusStream:
    """Open a committed corpus (``NAME`` or ``NAME@VERSION``); CorpusError if it does not suit ``options``."""
    manifest = load_manifest(store, corpus)
    bins_are_stored = manifest.binning == "stored" and options.translation is None
    if bins_are_stored and manifest.n_bins != options.tokenizer.n_bins:
        raise CorpusError(
            f"Corpus {corpus!r} stores {manifest.n_bins} bins; the configuration has {options.tokenizer.n_bins}.",
            remedy="Use the corpus's n_bins, or ingest it with binning: on_read.",
        )
    if manifest.vocabulary_digest != GeneVocabulary.load_default().digest():
        raise CorpusError(
            f"Corpus {corpus!r} was ingested with another gene vocabulary than this version of cytoray has.",
            remedy="Ingest it again under another name.",
        )
    if options.whole_cells is not None and manifest.values != "counts":
        raise CorpusError(
            f"Corpus {corpus!r} holds {manifest.values}, not counts: its cells cannot be thinned.",
            remedy="Ingest raw counts, or leave out objective.whole_cell.",
        )
    for name in (*options.modalities, *(tokens.modality for tokens in options.features)):
        if any(name not in shard.modalities for shard in manifest.shards):
            raise CorpusError(
                f"Corpus {corpus!r}: not all cells have the modality {name!r}.",
                remedy=f"Modalities there: {', '.join(manifest.modalities) or 'none'}.",
            )
    members = find_members(store, manifest, options.members, seed=options.seed)
    controls = None if options.pairs is None else find_controls(store, manifest, options.pairs, members)
    return CorpusStream(store, manifest, options, members, controls)


def load_cells(store: str, manifest: CorpusManifest) -> SparseCells:
    """Load all cells of a small corpus, in shard order."""
    uri = corpus_uri(store, manifest.name)
    shards = [shard for shard in manifest.shards if shard.num_cells] or manifest.shards[:1]
    return unpack(concatenate([read_shard(storage.join(uri, shard.key), shard) for shard in shards]))


@dataclass(frozen=True, eq=False)
class LabelledSample:
    """Cells of a corpus with their labels, all of them or a sample."""

    cells: SparseCells
    labels: tuple[str, ...]  # (C,)
    num_labelled: int  # cells with a label in the whole corpus

    @property
    def is_sample(self) -> bool:
        """Whether labelled cells were left out."""
        return len(self.labels) < self.num_labelled


def sample_labelled_cells(
    store: str, manifest: CorpusManifest, label_key: str, *, select: str | None = None, max_cells: int, seed: int = 0
) -> LabelledSample:
    """Load selected cells that have a label; of a large corpus ``max_cells``, in row groups drawn at random.

    Only those row groups are read and held. Cells come in the order of the corpus. CorpusError if no cell has a label.
    """
    members = find_members(store, manifest, MemberOptions((ObsColumn(label_key),), select), seed=seed)
    stream = CorpusStream(store, manifest, StreamOptions(TokenizerConfig(), seed, 1, label_key), members)
    parts: list[SparseCells] = []
    codes = [np.empty(0, np.int32)]
    for unit, rows, cells in _sample_units(stream, max_cells):
        parts.append(cells)
        codes.append(members.codes(label_key, unit, rows))
    num_labelled = int(members.counts.sum())
    kept = np.arange(min(max_cells, num_labelled))
    labels = tuple(stream.labels[code] for code in np.concatenate(codes)[kept].tolist())
    return LabelledSample(SparseCells.concatenate(parts).take(kept), labels, num_labelled)


def sample_cells(
    store: str, manifest: CorpusManifest, *, select: str | None = None, max_cells: int, seed: int = 0
) -> SparseCells:
    """Load selected cells; of a large corpus ``max_cells``, in row groups drawn at random."""
    members = find_members(store, manifest, MemberOptions((), select), seed=seed)
    stream = CorpusStream(store, manifest, StreamOptions(TokenizerConfig(), seed, 1), members)
    cells = SparseCells.concatenate([part for _, _, part in _sample_units(stream, max_cells)])
    return cells.take(np.arange(min(max_cells, cells.num_cells)))


@dataclass(frozen=True, eq=False)
class DescribedSample:
    """Cells of a corpus with their values in some columns of obs, all cells or a sample."""

    cells: SparseCells
    columns: dict[str, tuple[str, ...]]  # by name, (C,)


def sample_described_cells(
    store: str, manifest: CorpusManifest, options: MemberOptions, *, max_cells: int, seed: int = 0
) -> DescribedSample:
    """Load the cells that ``options`` select, with their columns; of a large corpus ``max_cells``, in row groups drawn
    at random. CorpusError if no cell is selected.
    """
    members = find_members(store, manifest, options, seed=seed)
    stream = CorpusStream(store, manifest, StreamOptions(TokenizerConfig(), seed, 1), members)
    parts = list(_sample_units(stream, max_cells))
    cells = SparseCells.concatenate([part for _, _, part in parts])
    kept = np.arange(min(max_cells, cells.num_cells))
    columns = {}
    for name, column in members.columns.items():
        codes = np.concatenate([members.codes(name, unit, rows) for unit, rows, _ in parts])[kept]
        columns[name] = tuple(column.values[code] for code in codes.tolist())
    return DescribedSample(cells.take(kept), columns)


def _sample_units(stream: CorpusStream, max_cells: int) -> Iterator[tuple[int, Int64, SparseCells]]:
    """Yield row groups in which there are ``max_cells`` cells, drawn at random if there are more, with their rows."""
    members, seed = stream.members, stream.options.seed
    units = np.arange(len(members.counts))
    if members.counts.sum() > max_cells:
        order = np.argsort(combine(seed, int(Purpose.SAMPLING), units.astype(np.uint64)), kind="stable")
        units = np.sort(order[: int(np.searchsorted(np.cumsum(members.counts[order]), max_cells)) + 1])
    for unit in units[members.counts[units] > 0].tolist():
        rows = members.rows(unit)
        yield unit, rows, unpack(stream.read_unit(unit).cells).take(rows)
