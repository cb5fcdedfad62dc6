"""The layout of an ingest's external shuffle: which task reads which bytes of what earlier ones wrote. Arithmetic only.

A spill has one section per partition while there are few partitions. Beyond ``MAX_SECTIONS`` its sections are groups of
neighbouring partitions: reading every partition out of every spill would take requests that grow with the square of
the number of cells (1.7 million at 33 million cells). Between the passes each group is then gathered into runs of
``RUN_BYTES``, cut by partition, of which a partition needs a few. Sections thus stay near a megabyte, and requests grow
with the number of cells (benchmarks/ingest_requests.py). Content hashes take the same way, cut by bucket.
"""

# S sections of an object

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cytoray.config import Config

MAX_SECTIONS = 64  # of a spill, which takes about 50 MB: sections of 0.8 MB
RUN_BYTES = 128 * 2**20  # what a task gathers: as much as a partition, with three copies of it in memory at times
HASH_BYTES = 24  # per cell: content hash, cell id, row
# Ranges of one source that a task reads one after another: between two tasks a worker waits for 0.2 s, and opens.
RANGES_PER_TASK = 4
TASKS_PER_WORKER = 4  # at least, or the last one to finish keeps the others waiting


class SectionIndex(Config):
    """Where the sections of an object lie: section i is the bytes ``borders[i]`` to ``borders[i + 1]``."""

    borders: tuple[int, ...]
    checks: tuple[int, ...]  # CRC-32


@dataclass(frozen=True, eq=False)
class Piece:
    """An object of sections in the staging area."""

    name: str
    borders: npt.NDArray[np.int64]  # (S + 1,)
    checks: npt.NDArray[np.uint32]  # (S,)

    @staticmethod
    def of(name: str, index: SectionIndex) -> Piece:
        """The object ``name`` whose sections lie as in ``index``."""
        return Piece(name, np.array(index.borders, np.int64), np.array(index.checks, np.uint32))

    def part(self, sections: range) -> Piece:
        """Some neighbouring sections of it."""
        borders = self.borders[sections.start : sections.stop + 1]
        return Piece(self.name, borders, self.checks[sections.start : sections.stop])

    def size(self, section: int) -> int:
        """Bytes of a section."""
        return int(self.borders[section + 1] - self.borders[section])


@dataclass(frozen=True)
class Groups:
    """Groups of neighbouring partitions: group g has the partitions from ``g * width`` on."""

    num_partitions: int
    width: int

    @staticmethod
    def of(num_partitions: int) -> Groups:
        """At most ``MAX_SECTIONS`` groups; each is one partition while that suffices."""
        return Groups(num_partitions, -(-num_partitions // MAX_SECTIONS))

    @property
    def num_groups(self) -> int:
        """How many groups there are."""
        return -(-self.num_partitions // self.width)

    def members(self, group: int) -> range:
        """The partitions of a group."""
        return range(group * self.width, min((group + 1) * self.width, self.num_partitions))


def cut_rows(num_rows: int, at_most: int) -> list[int]:
    """Borders of equal ranges that cover the rows of a source; without any row there is no range."""
    num_ranges = -(-num_rows // at_most)
    return [num_rows * number // num_ranges for number in range(num_ranges + 1)] if num_rows else []


def read_items(num_rows: Sequence[int], *, rows_per_task: int, concurrency: int) -> list[dict[str, Any]]:
    """Items of the first pass: each a few neighbouring ranges of one source."""
    ranges = [cut_rows(rows, rows_per_task) for rows in num_rows]
    together = min(RANGES_PER_TASK, max(1, sum(map(len, ranges)) // (TASKS_PER_WORKER * concurrency)))
    return [
        {"source": source, "borders": borders[first : first + together + 1]}
        for source, borders in enumerate(ranges)
        for first in range(0, len(borders) - 1, together)
    ]


def run_items(spills: Sequence[Piece], groups: Groups) -> list[dict[str, Any]]:
    """Items that gather each group into runs; none if a group is a partition already."""
    if groups.width == 1:
        return []
    return [
        {"group": group, "number": number, **section_item(batch, group)}
        for group in range(groups.num_groups)
        for number, batch in enumerate(_batches(spills, [spill.size(group) for spill in spills]))
    ]


def partition_items(spills: Sequence[Piece], runs: dict[int, list[Piece]], groups: Groups) -> list[dict[str, Any]]:
    """Items of the second pass: a partition and its sections, in the ``runs`` of its group or in the spills."""
    items = []
    for group in range(groups.num_groups):
        for place, partition in enumerate(groups.members(group)):
            sections = section_item(spills, partition) if groups.width == 1 else section_item(runs[group], place)
            items.append({"partition": partition, **sections})
    return items


def hash_items(num_cells: Sequence[int], *, num_buckets: int) -> list[dict[str, Any]]:
    """Items that cut parts with ``num_cells`` content hashes each by bucket."""
    batches = _batches(range(len(num_cells)), [HASH_BYTES * cells for cells in num_cells])
    return [
        {"number": number, "first": batch[0], "last": batch[-1] + 1, "num_buckets": num_buckets}
        for number, batch in enumerate(batches)
    ]


def section_item(pieces: Iterable[Piece], section: int) -> dict[str, Any]:
    """The places of one section in several objects, for a task; empty ones are left out."""
    there = [piece for piece in pieces if piece.size(section)]
    places = np.array([piece.borders[section : section + 2] for piece in there], np.int64)
    checks = np.array([piece.checks[section] for piece in there], np.uint32)
    return {"names": [piece.name for piece in there], "places": places.tobytes(), "checks": checks.tobytes()}


def section_places(item: dict[str, Any]) -> list[tuple[str, int, int, int]]:
    """Name, start, stop and check of each section in an item."""
    places = np.frombuffer(item["places"], np.int64).reshape(-1, 2).tolist()
    checks = np.frombuffer(item["checks"], np.uint32).tolist()
    names = [str(name) for name in item["names"]]
    return [(name, *place, check) for name, place, check in zip(names, places, checks, strict=True)]


def _batches(things: Sequence[Any], sizes: Sequence[int]) -> Iterable[Sequence[Any]]:
    """Neighbouring things of ``RUN_BYTES`` together, as far as that goes."""
    ends = np.cumsum(sizes)
    if not len(ends) or not ends[-1]:
        return
    numbers = (ends - 1) // RUN_BYTES
    cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(things)]
    for first, last in itertools.pairwise(cuts):
        yield things[first:last]
