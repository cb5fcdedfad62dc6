"""Fill minibatches in place from an order and decoded row groups: lengths are known before any token is made."""

# T steps, B cells of a share, C = T * B cells, M micro-batches, U units

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cytoray.corpus.streaming.batches import UNKNOWN, Array, Int32, Ragged, StepChunk
from cytoray.corpus.streaming.blocks import empty_arrays
from cytoray.corpus.streaming.expression import ExpressionArrays, ExpressionView
from cytoray.corpus.streaming.members import Members
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.corpus.streaming.order import OrderedCells
from cytoray.corpus.streaming.pairs import Controls, pair_keys
from cytoray.corpus.streaming.shares import Team
from cytoray.corpus.streaming.slots import Slots, cut_steps, find_slots
from cytoray.corpus.streaming.whole_cells import WholeCells
from cytoray.tokens.cells import Int64
from cytoray.tokens.keys import Float64, Purpose, combine, uniform
from cytoray.tokens.packed import PackedCells, concatenate, packed_counts, packed_gene_ids, take
from cytoray.tokens.tokenizer import CellTokenizer, TokenBuffers, TokenPlan
from cytoray.tokens.vocabulary import GeneVocabulary

REPEAT_SHIFT = 32  # the n-th repetition of a cell in an epoch uses the random numbers of epoch + n * 2**32


@dataclass(frozen=True, eq=False)
class LoadedUnit:
    """A row group, decoded."""

    cells: PackedCells
    modalities: dict[str, PackedCells]
    features: tuple[PackedCells, ...] = ()  # over token ids, one for each of the stream's features


@dataclass(frozen=True, eq=False)
class _Group:
    """Cells of one unit in one epoch."""

    unit: LoadedUnit
    number: int
    epoch: int
    where: Int64  # among the C cells
    rows: Int64  # in the unit
    repeats: Int64
    thinned: PackedCells | None = None  # the cells at ``rows`` of which tokens are made, if not of the unit's own

    @property
    def source(self) -> tuple[PackedCells, Int64]:
        """Return the cells of which tokens are made, and their rows."""
        return (self.unit.cells, self.rows) if self.thinned is None else (self.thinned, np.arange(len(self.rows)))

    @property
    def num_genes(self) -> Int64:
        """Return the number of genes of each cell of which tokens are made."""
        cells, rows = self.source
        return cells.num_genes_per_cell[rows]

    def at(self, where: Int64, here: npt.NDArray[np.bool_]) -> _Group:
        """Return the cells ``here``, at other places among the C cells."""
        thinned = None if self.thinned is None else take(self.thinned, np.flatnonzero(here))
        return replace(self, where=where, rows=self.rows[here], repeats=self.repeats[here], thinned=thinned)

    def values_of(self, number: int) -> Int64:
        """Return the number of values above zero that each cell has in a further modality."""
        return self.unit.features[number].num_genes_per_cell[self.rows]

    @property
    def draws(self) -> Int64:
        """The epoch of each cell's random numbers, another one for each repetition."""
        return self.epoch + (self.repeats << REPEAT_SHIFT)


@dataclass(frozen=True, eq=False)
class ChunkFiller:
    """The step from cells to chunks; it is immutable, so threads may share it."""

    options: StreamOptions
    members: Members
    load_controls: Callable[[], Controls] | None = None  # of a stream of pairs

    @functools.cached_property
    def controls(self) -> Controls:
        """The control cells, loaded when the first pair is filled."""
        assert self.load_controls is not None, "this stream has no pairs"
        return self.load_controls()

    @functools.cached_property
    def tokenizer(self) -> CellTokenizer:
        """The tokenizer of the options."""
        translation = self.options.translation
        vocabulary = GeneVocabulary.load_default() if translation is None else translation.vocabulary
        config = self.options.tokenizer
        if self.options.is_expression:  # of the panel, which ``expression`` samples
            config = config.model_copy(update={"max_length": len(self.options.panel or ()) + 1})
        return CellTokenizer(vocabulary, config, panel=self.options.panel)

    @functools.cached_property
    def expression(self) -> ExpressionView | None:
        """The view of pairs with flags of perturbed genes."""
        pairs = self.options.pairs
        if pairs is None or pairs.perturbed is None:
            return None
        assert self.options.panel is not None, "pairs share a panel"
        return ExpressionView.of(
            self.options.panel,
            pairs.perturbed,
            self.members.columns[pairs.column].values,
            max_tokens=self.options.tokenizer.max_length,
            seed=self.options.tokenizer.seed,
        )

    @functools.cached_property
    def feature_tokenizers(self) -> tuple[CellTokenizer, ...]:
        """The tokenizers of further modalities."""
        vocabulary, config = self.tokenizer.vocabulary, self.options.tokenizer
        return tuple(features.tokenizer(vocabulary, config) for features in self.options.features)

    @property
    def bytes_per_cell(self) -> int:
        """Maximum number of bytes of a cell's tokens."""
        if self.expression is not None:
            return 16 * len(self.expression.panel)  # while it is filled: dense values of both cells, and keys
        copies = 2 if self.options.style == "masked" else 1
        item_bytes = self.tokenizer.id_dtype.itemsize + copies * self.tokenizer.value_dtype.itemsize
        return self.options.max_tokens * item_bytes

    def fill(self, steps: Int64, cells: OrderedCells, load: Callable[[int], LoadedUnit], *, team: Team) -> StepChunk:
        """Fill the micro-batches of the T ``steps`` for one rank of the ``team`` that owns the cells."""
        groups, sizes, minibatches = self._deal(self._groups(cells, load), cells, team)
        share = sizes.shape[1:]
        ratios = None
        if self.options.style != "plain":
            ratios = np.repeat(self.options.ratios_at(steps), share[1])
        known, unknown = self._num_tokens(sizes[0].ravel(), ratios if self.options.style == "generative" else None)
        parts = np.concatenate([known[None], sizes[1:].reshape(-1, known.size)])
        known = parts.sum(axis=0)
        order = np.lexsort((known, minibatches, np.repeat(steps, share[1])))
        heads, borders = cut_steps(steps, (known + unknown)[order].reshape(share), self.options)
        places = np.empty_like(order)
        places[order] = np.arange(len(order))
        slots, unknown_slots = (
            find_slots(known[order], borders, self.options),
            find_slots(unknown[order], borders, self.options),
        )
        buffers = self._buffers(slots, unknown_slots)
        for group in groups if self.expression is None else ():
            at, hidden = places[group.where], None if ratios is None else ratios[group.where]
            if self.options.features:
                self._fill_modalities(group, slots.at(at), parts[:, group.where], hidden, buffers)
                continue
            plan = TokenPlan(slots.starts[at], slots.widths[at], ratios=hidden, exact=self.options.panel is not None)
            if self.options.style == "generative":
                plan = TokenPlan(plan.starts, plan.widths, unknown_slots.starts[at], unknown_slots.widths[at], hidden)
            self.tokenizer.fill(*group.source, group.draws, plan, buffers)
        fields = {
            name: Ragged(array, unknown_slots.borders if name in UNKNOWN else slots.borders)
            for name, array in vars(buffers).items()
            if array is not None
        }
        fields["lengths"] = Ragged(known[order].astype(np.int32), borders)
        if self.options.style == "generative":
            fields["unknown_lengths"] = Ragged(unknown[order].astype(np.int32), borders)
        if self.options.pairs is not None:
            fields |= self._sources(groups, places, slots, buffers) | self._source_ids(groups, places, borders)
        if self.options.cells_per_minibatch is not None:
            fields["minibatches"] = Ragged(minibatches[order], borders)
        if self.options.whole_cells is not None:
            wholes = [WholeCells(take(g.unit.cells, g.rows), g.draws, places[g.where]) for g in groups]
            fields |= self.options.whole_cells.fields(wholes, borders, self.tokenizer)
        fields |= self._describe(groups, order, borders) | self._modalities(groups, places, borders)
        return StepChunk(self.options.layout, heads, fields)

    def _groups(self, cells: OrderedCells, load: Callable[[int], LoadedUnit]) -> list[_Group]:
        """Group the cells by unit and epoch."""
        units, places, epochs = cells.units.ravel(), cells.places.ravel(), cells.epochs.ravel()
        if not len(units):
            return []
        keys = epochs * len(self.members.counts) + units
        order = np.argsort(keys, kind="stable")
        groups = []
        for where in np.split(order, np.flatnonzero(np.diff(keys[order])) + 1):
            unit, epoch = int(units[where[0]]), int(epochs[where[0]])
            rows, repeats = self.members.draws(unit, epoch)
            group = _Group(load(unit), unit, epoch, where, rows[places[where]], repeats[places[where]])
            whole = self.options.whole_cells
            if whole is not None and whole.thinning is not None:
                own = take(group.unit.cells, group.rows)
                group = replace(group, thinned=whole.thin(own, group.draws, seed=self.options.tokenizer.seed))
            groups.append(group)
        return groups

    def _deal(self, groups: list[_Group], cells: OrderedCells, team: Team) -> tuple[list[_Group], Int64, Int32]:
        """Return one rank's cells by unit and epoch, their ``_sizes`` (1 + F, T, B), and their minibatches (T * B,)."""
        sizes = self._sizes(groups)
        num_steps, num_cells = cells.units.shape
        if self.options.cells_per_minibatch is None:
            known = self._num_tokens(sizes[0])[0] + sizes[1:].sum(axis=0)
            mine = team.pick(known.reshape(cells.units.shape))
            minibatches = np.zeros(mine.size, np.int32)
        else:
            own = team.pick_minibatches(num_cells, cells_per_minibatch=self.options.cells_per_minibatch)
            mine = np.arange(num_steps, dtype=np.int64)[:, None] * num_cells + own
            minibatches = np.tile(own % (num_cells // self.options.cells_per_minibatch), num_steps).astype(np.int32)
        places = np.full(cells.units.size, -1)
        places[mine.ravel()] = np.arange(mine.size)
        dealt = []
        for group in groups:
            here = places[group.where] >= 0
            if here.any():
                where = places[group.where[here]]
                dealt.append(group.at(where, here))
        return dealt, sizes[:, mine], minibatches

    def _num_tokens(self, num_genes: Int64, ratios: Float64 | None = None) -> tuple[Int64, Int64]:
        """Return the numbers of known tokens and unknown genes of cells with ``num_genes`` genes, in its shape."""
        if self.expression is None:
            return self.tokenizer.num_tokens(num_genes, ratios)
        return np.full_like(num_genes, self.expression.num_tokens), np.zeros_like(num_genes)

    def _sizes(self, groups: list[_Group]) -> Int64:
        """Return the cells' numbers of genes, and of their tokens in each further modality, (1 + F, C)."""
        rows = [_gather(groups, lambda group: group.num_genes, np.int64)]
        for number, features in enumerate(self.options.features):
            values = functools.partial(_Group.values_of, number=number)
            rows.append(features.num_tokens(_gather(groups, values, np.int64)))
        return np.stack(rows)

    def _fill_modalities(
        self, group: _Group, slots: Slots, parts: Int64, ratios: Float64 | None, buffers: TokenBuffers
    ) -> None:
        """Fill genes and features of R cells, the last modality first: where the kernel puts its ``<cls>``, the one
        before then puts its last token. ``parts`` (1 + F, R) are numbers of tokens.
        """
        hidden = None if ratios is None else self._hidden(group, parts, ratios)
        firsts, stops = slots.starts + np.cumsum(parts, axis=0), slots.starts + slots.widths
        for number in reversed(range(len(self.options.features))):
            tokenizer, there = self.feature_tokenizers[number], np.flatnonzero(parts[number + 1])
            begin = firsts[number, there] - 1
            plan = TokenPlan(
                begin,
                stops[there] - begin,
                ratios=None if hidden is None else hidden[number + 1, there],
                exact=tokenizer.panel is not None,
            )
            tokenizer.fill(group.unit.features[number], group.rows[there], group.draws[there], plan, buffers)
            stops[there] = firsts[number, there]
        plan = TokenPlan(
            slots.starts,
            stops - slots.starts,
            ratios=None if hidden is None else hidden[0],
            exact=self.options.panel is not None,
        )
        self.tokenizer.fill(group.unit.cells, group.rows, group.draws, plan, buffers)

    def _hidden(self, group: _Group, parts: Int64, ratios: Float64) -> Float64:
        """Return the share that is masked of each cell's modalities, (1 + F, R): 1 of the one that is hidden whole.

        A cell without any further modality keeps its genes.
        """
        hidden = np.tile(ratios, (len(parts), 1))
        if self.options.hide_whole:
            ids = group.unit.cells.cell_ids[group.rows]
            keys = combine(self.options.tokenizer.seed, int(Purpose.MODALITIES), group.draws, ids)
            drawn = uniform(keys) * (len(parts) / self.options.hide_whole)
            several = parts[1:].any(axis=0)
            for number, shares in enumerate(hidden):
                shares[several & (drawn >= number) & (drawn < number + 1)] = 1.0
        return hidden

    def _buffers(self, known: Slots, unknown: Slots) -> TokenBuffers:
        """Room for the tokens; the kernel writes all of it."""
        ids, values = self.tokenizer.id_dtype, self.tokenizer.value_dtype
        values = values if self.expression is None else np.dtype(np.float32)
        size, hidden = int(known.borders[-1]), int(unknown.borders[-1])
        wanted = {"gene_ids": (size, ids), "values": (size, values)}
        if self.options.style == "masked":
            wanted["masked"] = (size, values)
        if self.options.style == "generative":
            wanted |= {"unknown_gene_ids": (hidden, ids), "unknown_values": (hidden, values)}
        return TokenBuffers(**dict(zip(wanted, empty_arrays(list(wanted.values())), strict=True)))

    def _sources(self, groups: list[_Group], places: Int64, slots: Slots, own: TokenBuffers) -> dict[str, Ragged]:
        """Values of each cell's control, which has the tokens that it has in that epoch itself.

        With flags of perturbed genes it has the cell's tokens, and ``own``, the buffers of the cells, is filled too.
        """
        ids, size = self.tokenizer.id_dtype, int(slots.borders[-1])
        view = self.expression
        if view is None:
            buffers = TokenBuffers(*empty_arrays([(size, ids), (size, self.tokenizer.value_dtype)]))
            for group in groups:
                at, rows = slots.at(places[group.where]), self._control_rows(group)
                plan = TokenPlan(at.starts, at.widths)
                self.tokenizer.fill(self.controls.cells, rows, group.draws, plan, buffers)
            return {"source_values": Ragged(buffers.values, slots.borders)}
        values, flags = empty_arrays([(size, np.dtype(np.float32)), (size, np.dtype(np.int8))])
        arrays = ExpressionArrays(own.gene_ids, own.values, flags, values)
        assert self.options.pairs is not None
        for group in groups:
            pair = take(group.unit.cells, group.rows), take(self.controls.cells, self._control_rows(group))
            codes = self.members.codes(self.options.pairs.column, group.number, group.rows)
            view.fill(pair, codes, group.draws, slots.starts[places[group.where]], arrays)
        return {"source_values": Ragged(values, slots.borders), "perturbations": Ragged(flags, slots.borders)}

    def _source_ids(self, groups: list[_Group], places: Int64, borders: Int64) -> dict[str, Ragged]:
        """Ids of the cells' controls."""
        cell_ids = np.empty(len(places), np.uint64)
        for group in groups:
            cell_ids[places[group.where]] = self.controls.cells.cell_ids[self._control_rows(group)]
        return {"source_cell_ids": Ragged(cell_ids, borders)}

    def _control_rows(self, group: _Group) -> Int64:
        """The control that each cell of a group is paired with, among all controls."""
        assert self.options.pairs is not None
        match, codes = self.options.pairs.match, np.zeros(len(group.rows), np.int32)
        if match is not None:
            codes = self.members.codes(match, group.number, group.rows)
        return self.controls.draw(
            pair_keys(self.options.seed, group.draws, group.unit.cells.cell_ids[group.rows]), codes
        )

    def _describe(self, groups: list[_Group], order: Int64, borders: Int64) -> dict[str, Ragged]:
        """Collect ids, epochs and codes of the cells."""
        ids = _gather(groups, lambda group: group.unit.cells.cell_ids[group.rows], np.uint64)[order]
        epochs = _gather(groups, lambda group: np.full(len(group.rows), group.epoch), np.int32)[order]
        fields = {"cell_ids": Ragged(ids, borders), "epochs": Ragged(epochs, borders)}
        fields["labels"] = Ragged(np.empty(0, np.int32), np.zeros_like(borders))
        for column in self.members.columns:
            field = "labels" if column == self.options.label_key else f"columns/{column}"
            fields[field] = Ragged(self._codes(column, groups)[order], borders)
        return fields

    def _codes(self, column: str, groups: list[_Group]) -> Int32:
        """Codes of a column of obs for the cells."""
        return _gather(groups, lambda group: self.members.codes(column, group.number, group.rows), np.int32)

    def _modalities(self, groups: list[_Group], places: Int64, borders: Int64) -> dict[str, Ragged]:
        """The further matrices of the cells, ragged."""
        fields: dict[str, Ragged] = {}
        for name in self.options.modalities:
            prefix, none = f"modalities/{name}", Ragged(np.empty(0, np.int32), np.zeros_like(borders))
            if not groups:
                fields |= {f"{prefix}/{field}": none for field in ("feature_ids", "values", "lengths")}
                continue
            joined = concatenate([take(group.unit.modalities[name], group.rows) for group in groups])
            cells = take(joined, np.argsort(np.concatenate([places[group.where] for group in groups])))
            fields[f"{prefix}/feature_ids"] = Ragged(packed_gene_ids(cells), cells.indptr[borders])
            fields[f"{prefix}/values"] = Ragged(packed_counts(cells), cells.indptr[borders])
            fields[f"{prefix}/lengths"] = Ragged(cells.num_genes_per_cell.astype(np.int32), borders)
        return fields


def _gather(groups: list[_Group], values_of: Callable[[_Group], Array], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Something of each of the C cells, group by group."""
    found = np.empty(sum(len(group.where) for group in groups), dtype)
    for group in groups:
        found[group.where] = values_of(group)
    return found
