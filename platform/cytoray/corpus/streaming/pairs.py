"""Pair each cell with a control cell, keyed like the order: what a perturbation model sees beside what it predicts."""

# C cells asked for, P control cells, M values of the column in which pairs agree

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cytoray.corpus.manifest import CorpusManifest
from cytoray.corpus.streaming.members import MemberOptions, Members, ObsColumn, find_members
from cytoray.errors import CorpusError
from cytoray.tokens.cells import Int64, UInt64
from cytoray.tokens.keys import Purpose, combine, uniform
from cytoray.tokens.packed import PackedCells, concatenate, take


@dataclass(frozen=True)
class PairOptions:
    """Control cells, and in what a cell and its control agree."""

    column: str  # of obs, such as the perturbation
    control: str  # its value in control cells
    match: str | None = None  # a column of the stream, such as the experimental batch, in which both must agree
    select: str | None = None  # expression over obs that control cells satisfy, such as "donor != 'D7'"
    perturbed: Mapping[str, tuple[int, ...]] | None = None  # by value of the column: ids of the genes that it hits;
    # values are then log-normalised expression, without <cls>, and these genes are flagged (see streaming.expression)


@dataclass(frozen=True, eq=False)
class Controls:
    """All control cells of a corpus, in memory, grouped by the column in which pairs agree."""

    cells: PackedCells  # (P,)
    starts: Int64  # (M + 1,) the group of each code

    def draw(self, keys: UInt64, codes: npt.NDArray[np.integer]) -> Int64:
        """Return a control (C,) for each cell with one of the ``codes``, by its key."""
        sizes = np.diff(self.starts)[codes]
        drawn: Int64 = self.starts[codes] + (uniform(keys) * sizes).astype(np.int64)
        return drawn


def pair_keys(seed: int, epochs: Int64, cell_ids: UInt64) -> UInt64:
    """Keys (C,) that decide which control a cell gets in an epoch."""
    return combine(seed, int(Purpose.PAIRS), epochs, cell_ids)


def find_controls(store: str, manifest: CorpusManifest, options: PairOptions, members: Members) -> Members:
    """Find the control cells; CorpusError if one of the values in which pairs must agree has none."""
    match = () if options.match is None else (ObsColumn(options.match, values=members.columns[options.match].values),)
    columns = (ObsColumn(options.column, values=(options.control,)), *match)
    controls = find_members(store, manifest, MemberOptions(columns, options.select), seed=members.seed)
    if options.match is not None:
        column = controls.columns[options.match]
        rows = [controls.starts[unit] + controls.rows(unit) for unit in range(len(controls.counts))]
        missing = set(range(len(column.values))) - set(np.unique(column.codes[np.concatenate(rows)]).tolist())
        if missing:
            names = ", ".join(column.values[code] for code in sorted(missing)[:20])
            raise CorpusError(
                f"Corpus {manifest.name!r}: no control cell ({options.column} == {options.control!r}) has these values "
                f"of {options.match!r}: {names}.",
                remedy="Leave the cells with these values out, or pair cells without a column to match.",
            )
    return controls


def load_controls(controls: Members, match: str | None, read: Callable[[int], PackedCells]) -> Controls:
    """Load the control cells with ``read``, which returns the cells of a unit."""
    parts, codes = [], []
    for unit in np.flatnonzero(controls.counts).tolist():
        rows = controls.rows(unit)
        parts.append(take(read(unit), rows))
        codes.append(np.zeros(len(rows), np.int32) if match is None else controls.codes(match, unit, rows))
    groups = np.concatenate(codes)
    num_groups = 1 if match is None else len(controls.columns[match].values)
    order = np.argsort(groups, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(groups, minlength=num_groups))]).astype(np.int64)
    return Controls(take(concatenate(parts), order), starts)
