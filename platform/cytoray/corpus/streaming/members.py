"""Select the cells of a stream by obs, count how often each comes, and code their values."""

# N cells of the corpus, U units (row groups), C cells of one unit, D draws from a unit in an epoch, K labels

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cytoray.corpus.manifest import CorpusManifest
from cytoray.corpus.streaming.obs import Coder, read_tables
from cytoray.corpus.streaming.recent import Recent
from cytoray.errors import CorpusError
from cytoray.tokens.cells import Int64
from cytoray.tokens.coding import UInt8
from cytoray.tokens.keys import Float64, Purpose, combine, uniform

Codes = npt.NDArray[np.signedinteger]


@dataclass(frozen=True)
class ObsWeights:
    """How often cells come, by a column of obs; cells without a value never come.

    ``values`` gives the mean number of times per epoch for each value (1 for those not named). None balances: every
    value comes equally often, and an epoch is as long as without weights. With a ``power`` below 1 the balance is
    partial: a cell comes in proportion to the frequency of its value to minus that power.
    """

    column: str
    values: Mapping[str, float] | None = None
    power: float = 1.0


@dataclass(frozen=True)
class ObsColumn:
    """A column of obs whose values a stream delivers as codes.

    ``values`` numbers them, as a stream over other cells has done; by default they are those of the selected cells,
    sorted. A cell with a missing value, or one that is not in ``values``, is left out if the column is ``required``;
    otherwise its code is -1.
    """

    name: str
    required: bool = True
    values: tuple[str, ...] | None = None


@dataclass(frozen=True)
class MemberOptions:
    """A selection of cells by obs."""

    columns: tuple[ObsColumn, ...] = ()
    select: str | None = None
    weights: ObsWeights | None = None


@dataclass(frozen=True, eq=False)
class CodedColumn:
    """A column of obs as codes."""

    values: tuple[str, ...]
    codes: Codes = field(repr=False)  # (N,) of all cells of the corpus, -1 for none of the values


@dataclass(frozen=True, eq=False)
class Members:
    """The cells of a stream: of unit u the rows ``starts[u]`` to ``starts[u + 1]`` of the corpus."""

    starts: Int64  # (U + 1,)
    counts: Int64  # (U,) draws per epoch
    seed: int
    columns: Mapping[str, CodedColumn] = field(default_factory=dict)  # by name
    _kept: UInt8 | None = field(default=None, repr=False)  # one bit per cell of the corpus, None if all are kept
    _weights: tuple[Codes, Float64] | None = field(default=None, repr=False)  # (N,) class, its weight
    _recent: Recent = field(default_factory=lambda: Recent(64), repr=False, init=False)  # draws of units

    @property
    def keeps_all(self) -> bool:
        """Whether an epoch is every cell of the corpus, once."""
        return self._kept is None and self._weights is None

    def rows(self, unit: int) -> Int64:
        """Return the rows of a unit that belong to the stream."""
        start, stop = int(self.starts[unit]), int(self.starts[unit + 1])
        if self._kept is None:
            return np.arange(stop - start)
        bits = np.unpackbits(self._kept[start // 8 : -(-stop // 8)])[start % 8 :][: stop - start]
        return np.flatnonzero(bits)

    def draws(self, unit: int, epoch: int) -> tuple[Int64, Int64]:
        """Return the row of each of a unit's D draws in an epoch, and how often it was drawn before (both (D,))."""
        draws: tuple[Int64, Int64] = self._recent.get((unit, epoch), lambda: self._draw(unit, epoch))
        return draws

    def _draw(self, unit: int, epoch: int) -> tuple[Int64, Int64]:
        rows = self.rows(unit)
        if self._weights is None:
            return rows, np.zeros(len(rows), np.int64)
        codes, weights = self._weights
        keys = combine(self.seed, int(Purpose.WEIGHTS), epoch, unit, rows.astype(np.uint64))
        order = np.argsort(keys, kind="stable")
        # Systematic sampling in a keyed order: each cell floor(w) or floor(w) + 1 times, the unit counts[unit] times.
        ends = np.cumsum(weights[codes[self.starts[unit] + rows[order]]])
        offset = float(uniform(combine(self.seed, int(Purpose.WEIGHTS), epoch, unit)))
        borders = np.floor(ends * (self.counts[unit] / max(ends[-1], 1e-300)) + offset).astype(np.int64)
        borders[-1] = self.counts[unit]  # whatever the sums were rounded to
        times = np.diff(borders, prepend=0)
        drawn = np.repeat(order, times)
        return rows[drawn], np.arange(len(drawn)) - np.repeat(np.cumsum(times) - times, times)

    def codes(self, column: str, unit: int, rows: Int64) -> npt.NDArray[np.int32]:
        """Return the codes of a column for rows of a unit."""
        codes: npt.NDArray[np.int32] = self.columns[column].codes[self.starts[unit] + rows].astype(np.int32)
        return codes


def find_members(store: str, manifest: CorpusManifest, options: MemberOptions, *, seed: int) -> Members:
    """Find the cells of ``manifest`` that ``options`` select; CorpusError if no cell is selected."""
    sizes = np.array([group.num_cells for shard in manifest.shards for group in shard.row_groups], np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    if options == MemberOptions():
        if not manifest.num_cells:
            raise CorpusError(f"Corpus {manifest.name!r} is empty.", remedy="Ingest cells into it.")
        return Members(starts, sizes, seed)
    kept, coders = _read(store, manifest, options)
    for column in (column for column in options.columns if column.required and kept.any()):
        kept &= coders[column.name].present(column.values)
        if not kept.any():
            one = "a value" if column.values is None else f"one of the values {_listed(column.values)}"
            raise CorpusError(
                f"Corpus {manifest.name!r}: no selected cell has {one} in {column.name!r}.",
                remedy="Name another column of obs, or select other cells.",
            )
    weights = None
    if options.weights is not None:
        names, classes = coders[options.weights.column].finish(kept)
        kept &= classes >= 0
        weights = classes, _class_weights(options.weights, names, np.bincount(classes[kept], minlength=len(names)))
    if not kept.any():
        raise CorpusError(
            f"Corpus {manifest.name!r}: no cell is selected by {options.select or options.weights!r}.",
            remedy="Check stream.select and the weights.",
        )
    coded = {
        column.name: CodedColumn(*coders[column.name].finish(kept, values=column.values)) for column in options.columns
    }
    counts = _draws_per_unit(starts, kept, weights)
    return Members(starts, counts, seed, coded, None if kept.all() else np.packbits(kept), weights)


def _read(
    store: str, manifest: CorpusManifest, options: MemberOptions
) -> tuple[npt.NDArray[np.bool_], dict[str, Coder]]:
    """Read obs once; return the mask of the selection (N,), and the columns that are to be coded."""
    from cytoray.corpus.checking.selection import (  # pandas: a third of a second in every worker
        select_rows,
        selected_columns,
    )

    where, select = f"obs of corpus {manifest.name!r}", options.select
    coders = {column.name: Coder() for column in options.columns}
    if options.weights:
        coders.setdefault(options.weights.column, Coder())
    columns = {*coders, *(() if select is None else selected_columns(select, where=where))}
    masks = [np.empty(0, bool)]
    for table in read_tables(store, manifest, sorted(columns)):
        everything = np.ones(table.num_rows, bool)
        masks.append(everything if select is None else select_rows(table.to_pandas(), select, where=where))
        for name, coder in coders.items():
            coder.add(table.column(name))
    return np.concatenate(masks), coders


def _listed(values: tuple[str, ...]) -> str:
    return f"{', '.join(values[:20])}{', …' if len(values) > 20 else ''}"


def _class_weights(weights: ObsWeights, names: tuple[str, ...], counts: Int64) -> Float64:
    """Return the mean number of draws per epoch for a cell of each class (K,)."""
    if weights.values is None:
        if weights.power == 1:
            return np.asarray(counts.sum() / (len(names) * counts))
        rarity = counts.astype(np.float64) ** -weights.power
        return np.asarray(rarity * (counts.sum() / (rarity * counts).sum()))
    unknown = sorted(set(weights.values) - set(names))
    if unknown or any(value < 0 for value in weights.values.values()):
        problem = f"has no value {unknown[0]!r}" if unknown else "has a negative weight"
        raise CorpusError(
            f"Weights: {weights.column!r} {problem}.",
            remedy=f"Values there: {_listed(names)}.",
            values=names,
        )
    return np.array([weights.values.get(name, 1.0) for name in names])


def _draws_per_unit(starts: Int64, kept: npt.NDArray[np.bool_], weights: tuple[Any, Any] | None) -> Int64:
    """Return each unit's draws per epoch (U,): its kept cells, or its share of the weights; equal in all epochs."""
    if weights is None:
        running = np.concatenate([[0], np.cumsum(kept)])[starts]
        return np.diff(running).astype(np.int64)
    classes, values = weights
    running = np.concatenate([[0.0], np.cumsum(np.where(kept, values[classes], 0.0))])[starts]
    return np.diff(np.round(running)).astype(np.int64)
