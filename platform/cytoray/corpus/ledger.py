"""Record the cells of each step, and prove that each cell came exactly once per epoch."""

# n batches, C cells over all of them

from __future__ import annotations

import io
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from cytoray import storage
from cytoray.corpus.stream import CorpusStream
from cytoray.corpus.streaming.batches import Int32, StepBatch
from cytoray.tokens.cells import Int64, UInt64

_SEGMENT = re.compile(r"/steps-(\d+)-(\d+)-rank-(\d+)-of-(\d+)\.npz$")


@dataclass(frozen=True, eq=False)
class LedgerEntries:
    """The cells of some steps, in the order in which they came."""

    steps: Int64  # (C,)
    epochs: Int32  # (C,)
    cell_ids: UInt64  # (C,)

    @staticmethod
    def join(parts: Iterable[LedgerEntries]) -> LedgerEntries:
        """Concatenate the entries of all parts."""
        everything = [LedgerEntries(np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.uint64)), *parts]
        return LedgerEntries(
            np.concatenate([part.steps for part in everything]),
            np.concatenate([part.epochs for part in everything]),
            np.concatenate([part.cell_ids for part in everything]),
        )


@dataclass
class Ledger:
    """The cells that one rank received: 20 bytes per cell until they are saved."""

    _noted: list[LedgerEntries] = field(default_factory=list)

    def record(self, batch: StepBatch) -> None:
        """Record the cells of a minibatch."""
        steps = np.full(batch.num_cells, batch.step, np.int64)
        # Copies: a view would keep the tokens of a whole chunk in memory.
        self._noted.append(LedgerEntries(steps, batch.epochs.copy(), batch.cell_ids.copy()))

    def entries(self) -> LedgerEntries:
        """Return the recorded entries."""
        return LedgerEntries.join(self._noted)

    def save(self, folder_uri: str, *, start: int, stop: int, rank: int, world_size: int) -> None:
        """Write and forget the entries of the steps ``start`` to ``stop``; a repetition writes the same name."""
        data, noted = io.BytesIO(), self.entries()
        np.savez(data, steps=noted.steps, epochs=noted.epochs, cell_ids=noted.cell_ids)
        name = f"steps-{start:09d}-{stop:09d}-rank-{rank}-of-{world_size}.npz"
        storage.write_bytes(storage.join(folder_uri, name), data.getvalue())
        self._noted.clear()


def load_ledger(folder_uri: str) -> LedgerEntries:
    """Load all entries that the ranks of a run saved below a folder.

    A killed run may have left some steps twice, from other numbers of ranks or between other checkpoints. They contain
    the same cells, so for each step the entries of one complete set of ranks are used.
    """
    segments: dict[tuple[int, int], dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for uri in storage.list_files(folder_uri):
        if match := _SEGMENT.search(uri):
            start, stop, _, world_size = map(int, match.groups())
            segments[start, stop][world_size].append(uri)
    parts, covered = [], 0
    for (_, stop), by_size in sorted(segments.items()):
        complete = next((uris for world_size, uris in by_size.items() if len(uris) == world_size), [])
        parts += [_load(uri, covered) for uri in complete]
        covered = max(covered, stop) if complete else covered
    return LedgerEntries.join(parts)


def _load(uri: str, first: int) -> LedgerEntries:
    """Load the entries of a segment from the step ``first`` on."""
    with np.load(io.BytesIO(storage.read_bytes(uri))) as arrays:
        new = arrays["steps"] >= first
        return LedgerEntries(arrays["steps"][new], arrays["epochs"][new], arrays["cell_ids"][new])


@dataclass(frozen=True)
class EpochProof:
    """The entries of an epoch compared with the corpus."""

    epoch: int
    num_cells: int
    num_distinct: int
    num_expected: int
    sums_agree: bool  # of the cell ids modulo 2**64, with the sums in the manifest

    @property
    def complete(self) -> bool:
        """Whether all cells came as often as they should (with weights some come several times)."""
        return self.sums_agree and self.num_cells == self.num_expected

    @property
    def exactly_once(self) -> bool:
        """Whether every cell of the stream came once."""
        return self.complete and self.num_distinct == self.num_cells


def prove_epochs(entries: LedgerEntries, stream: CorpusStream) -> list[EpochProof]:
    """Compare the epochs in a ledger with the manifest, which has the number of all cells and the sum of their ids.

    With a selection, labels or weights the cells are read from the shards instead.
    """
    if stream.members.keeps_all:
        total = sum(shard.cell_id_sum for shard in stream.manifest.shards) % 2**64
        return [_prove(entries, epoch, stream.num_cells, total) for epoch in np.unique(entries.epochs).tolist()]
    proofs = []
    for epoch in np.unique(entries.epochs).tolist():
        total = sum(
            int(_draw_ids(stream, unit, epoch).sum(dtype=np.uint64)) for unit in range(len(stream.members.counts))
        )
        proofs.append(_prove(entries, epoch, stream.num_cells, total % 2**64))
    return proofs


def _draw_ids(stream: CorpusStream, unit: int, epoch: int) -> UInt64:
    """Read the ids of all draws of a unit in an epoch from its shard."""
    if not stream.members.counts[unit]:
        return np.empty(0, np.uint64)
    rows, _ = stream.members.draws(unit, epoch)
    ids: UInt64 = stream.read_unit(unit).cells.cell_ids[rows]
    return ids


def _prove(entries: LedgerEntries, epoch: int, num_expected: int, total: int) -> EpochProof:
    ids = entries.cell_ids[entries.epochs == epoch]
    sums_agree = int(ids.sum(dtype=np.uint64)) == total
    return EpochProof(epoch, len(ids), len(np.unique(ids)), num_expected, sums_agree)
