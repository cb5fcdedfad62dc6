"""Requests and bytes of an ingest's shuffle at 1 to 100 million cells, counted on a simulated store.

    python benchmarks/ingest_requests.py [CELLS...]

The items are those that the ingest plans for its tasks (``corpus.ingesting.shuffle``); no task runs, but each item's
requests are counted as its task makes them. tests/corpus/test_shuffle.py compares these counts with a real ingest.
Sources are not counted: each is read once. Prints one JSON line per size, with the requests of a second pass that reads
every partition out of every spill beside them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np

from benchmarks.common import emit
from cytoray.corpus.config import IngestConfig, SourceConfig
from cytoray.corpus.ingesting.dedupe import num_buckets
from cytoray.corpus.ingesting.shuffle import (
    HASH_BYTES,
    Groups,
    Piece,
    cut_rows,
    hash_items,
    partition_items,
    read_items,
    run_items,
    section_item,
    section_places,
)

SIZES = (1_000_000, 10_000_000, 33_000_000, 100_000_000)
CELLS_PER_SOURCE = 100_000
SPILL_BYTES_PER_CELL = 3_017  # at 1,500 genes per cell
SHARD_BYTES_PER_CELL = 1_600
COPY_BYTES = 8
COPIES_SHARE = 0.1  # of the cells, so that every bucket has copies in every partition
CONFIG = IngestConfig(store="s3://simulated/store", corpus="cells", sources=(SourceConfig(uri="cells.h5ad"),))


@dataclass
class Traffic:
    """Requests and bytes between an ingest and its store."""

    gets: int = 0
    puts: int = 0
    deletes: int = 0
    read_bytes: int = 0
    written_bytes: int = 0

    @property
    def requests(self) -> int:
        """All requests."""
        return self.gets + self.puts + self.deletes

    def look(self) -> None:
        """Ask for a record that does not exist yet."""
        self.gets += 1

    def fetch(self, items: Iterable[dict[str, Any]]) -> None:
        """Fetch every section that the items place."""
        for item in items:
            places = section_places(item)
            self.gets += len(places)
            self.read_bytes += sum(stop - start for _, start, stop, _ in places)

    def stage(self, pieces: Sequence[Piece]) -> None:
        """Look for, write and at the end delete each object of sections and its record."""
        for piece in pieces:
            self.look()
            self.puts += 2
            self.deletes += 2
            self.written_bytes += int(piece.borders[-1])


@dataclass(frozen=True)
class Spilled:
    """The first pass, as far as the rest depends on it."""

    spills: Sequence[Piece]  # a section per group
    hashes: Sequence[Piece]  # one section each
    num_cells: Sequence[int]  # of each spill


def count_traffic(spilled: Spilled, groups: Groups, *, runs: dict[int, list[Piece]], cuts: Sequence[Piece]) -> Traffic:
    """Everything between the first source and the commit, given what the passes write."""
    traffic = Traffic()
    whole = [
        Piece(spill.name, np.array([0, spill.borders[-1] + hashes.size(0)]), np.zeros(1, np.uint32))
        for spill, hashes in zip(spilled.spills, spilled.hashes, strict=True)
    ]
    traffic.stage(whole)
    _count_dedupe(traffic, spilled, cuts)
    traffic.fetch(run_items(spilled.spills, groups))
    traffic.stage([piece for pieces in runs.values() for piece in pieces])
    traffic.fetch(partition_items(spilled.spills, runs, groups))
    return traffic


def _count_dedupe(traffic: Traffic, spilled: Spilled, cuts: Sequence[Piece]) -> None:
    """Read all hashes once; with several buckets, cut them and read each bucket."""
    traffic.fetch([section_item([piece], 0) for piece in spilled.hashes])
    traffic.stage(cuts)
    for bucket in range(len(cuts[0].checks) if cuts else 0):
        traffic.fetch([section_item(cuts, bucket)])


def count_copies(traffic: Traffic, groups: Groups, *, buckets: int, copies: int) -> None:
    """Write ``copies`` cell ids by bucket, join them by group if there are several buckets, read them by partition."""
    size = copies * COPY_BYTES
    traffic.gets += buckets
    traffic.puts += 2 * buckets
    traffic.deletes += 2 * buckets
    traffic.written_bytes += size
    if buckets > 1 and copies:
        traffic.gets += groups.num_groups * (1 + buckets)
        traffic.puts += 2 * groups.num_groups
        traffic.deletes += 2 * groups.num_groups
        traffic.read_bytes += size
        traffic.written_bytes += size
    traffic.gets += groups.num_partitions if copies else 0
    traffic.read_bytes += size


def count_shards(traffic: Traffic, *, num_partitions: int, num_bytes: int) -> None:
    """Look for a record, write shard, obs, hashes and the record, and at the end delete the record."""
    traffic.gets += num_partitions
    traffic.puts += 4 * num_partitions
    traffic.deletes += num_partitions
    traffic.written_bytes += num_bytes


def simulate(num_cells: int) -> dict[str, Any]:
    """The traffic of an ingest of ``num_cells`` cells with the default configuration."""
    groups = Groups.of(max(1, round(num_cells / CONFIG.cells_per_shard)))
    sources = [min(CELLS_PER_SOURCE, num_cells - first) for first in range(0, num_cells, CELLS_PER_SOURCE)]
    items = read_items(sources, rows_per_task=CONFIG.rows_per_task, concurrency=CONFIG.read_concurrency)
    ranges = [int(rows) for item in items for rows in np.diff(item["borders"])]
    assert sum(ranges) == sum(rows[-1] for rows in (cut_rows(size, CONFIG.rows_per_task) for size in sources))
    shares = np.array([len(groups.members(group)) for group in range(groups.num_groups)]) / groups.num_partitions
    spilled = Spilled(
        [_piece(f"spill-{number:06d}", rows * SPILL_BYTES_PER_CELL * shares) for number, rows in enumerate(ranges)],
        [_piece(f"spill-{number:06d}", [rows * HASH_BYTES]) for number, rows in enumerate(ranges)],
        ranges,
    )
    runs: dict[int, list[Piece]] = {group: [] for group in range(groups.num_groups)}
    for item in run_items(spilled.spills, groups):
        size = sum(stop - start for _, start, stop, _ in section_places(item))
        num_sections = len(groups.members(item["group"]))
        runs[item["group"]].append(_piece("run", [size / num_sections] * num_sections))
    buckets = num_buckets(num_cells)
    cuts = [
        _piece("hashes", [sum(ranges[item["first"] : item["last"]]) * HASH_BYTES / buckets] * buckets)
        for item in (hash_items(ranges, num_buckets=buckets) if buckets > 1 else [])
    ]
    traffic = count_traffic(spilled, groups, runs=runs, cuts=cuts)
    count_copies(traffic, groups, buckets=buckets, copies=round(COPIES_SHARE * num_cells))
    count_shards(traffic, num_partitions=groups.num_partitions, num_bytes=num_cells * SHARD_BYTES_PER_CELL)
    return {
        "name": "ingest_requests",
        "cells": num_cells,
        **asdict(traffic),
        "requests": traffic.requests,
        "requests_per_1000_cells": round(1000 * traffic.requests / num_cells, 3),
        "read_bytes_per_cell": round(traffic.read_bytes / num_cells),
        "written_bytes_per_cell": round(traffic.written_bytes / num_cells),
        "spills": len(ranges),
        "partitions": groups.num_partitions,
        "every_partition_out_of_every_spill": len(ranges) * groups.num_partitions,
    }


def _piece(name: str, sizes: Sequence[float] | np.ndarray) -> Piece:
    """An object with sections of these sizes."""
    borders = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return Piece(name, borders, np.zeros(len(borders) - 1, np.uint32))


def main() -> None:
    """Print one line per size."""
    parser = argparse.ArgumentParser()
    parser.add_argument("cells", nargs="*", type=int, default=SIZES)
    for num_cells in parser.parse_args().cells:
        emit(simulate(num_cells))


if __name__ == "__main__":
    main()
