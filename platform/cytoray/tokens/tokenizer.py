"""Convert cells to tokens: bin the values, sample cells that are too long, prepend ``<cls>``, hide some values, pad.

A cell's tokens are a pure function of its content, its identity and its epoch, never of its neighbours. Each gene has
one random word, ``combine(seed, epoch, cell id, gene id)`` in training. At inference it is ``combine(0, gene id)``
or, in mode ``drawn``, ``combine(seed, content hash, gene id)``. It holds three numbers: the lower 24 bits choose among
the possible bins of a tied value, the next 20 sample, the upper 20 split or mask. A choice of k among n genes visits
them in order of their ids and takes gene j if ``number * (n - j) < need << 20``, with ``need`` genes still to be taken
(Knuth's Algorithm S).
"""

# C cells, N non-zero entries over all cells, R requested cells, T tokens, S slots for tokens, U slots for unknown genes

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cytoray.tokens import kernels
from cytoray.tokens.binning import bin_rows
from cytoray.tokens.cells import Float32, Int32, Int64, SparseCells, UInt64
from cytoray.tokens.compiling import as_input
from cytoray.tokens.inference import DRAWN, InferenceConfig
from cytoray.tokens.keys import Float64, combine
from cytoray.tokens.packed import PackedCells, content_hashes, only_genes, pack, packed_counts, with_bins
from cytoray.tokens.tokenizer_config import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary

__all__ = ["CellTokenizer", "TokenBuffers", "TokenPlan", "TokenizedCells", "TokenizerConfig"]
Int16 = npt.NDArray[np.int16]
GRAIN = 64  # edges per bin of soft bins, whose values are multiples of 1 / 128
BY_GENE = combine(0)  # the key of every cell if a gene has the same word in all of them
Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class TokenizedCells:
    """C cells as ragged rows of tokens, ``<cls>`` first in each, genes in ascending order after it."""

    gene_ids: Int32  # (T,)
    values: Float32  # (T,)
    indptr: Int64  # (C + 1,)
    cell_ids: UInt64  # (C,)

    @property
    def num_cells(self) -> int:
        """Number of cells C."""
        return len(self.cell_ids)

    @property
    def lengths(self) -> Int64:
        """Number of tokens of each cell, ``<cls>`` included, shape (C,)."""
        return np.diff(self.indptr)

    def take(self, rows: npt.NDArray[np.integer]) -> TokenizedCells:
        """Return the cells at ``rows`` (shape (R,)), in that order; a row may be taken more than once."""
        taken = self._sparse().take(rows)
        return TokenizedCells(taken.gene_ids, taken.values, taken.indptr, taken.cell_ids)

    @staticmethod
    def concatenate(parts: Sequence[TokenizedCells]) -> TokenizedCells:
        """Concatenate cells; without any part the result has zero cells."""
        joined = SparseCells.concatenate([part._sparse() for part in parts])
        return TokenizedCells(joined.gene_ids, joined.values, joined.indptr, joined.cell_ids)

    def _sparse(self) -> SparseCells:
        """Return the same rows as sparse cells, which implement ``take`` and ``concatenate``."""
        return SparseCells(self.gene_ids, self.values, self.indptr, self.cell_ids)


@dataclass(frozen=True, eq=False)
class TokenPlan:
    """Positions of the tokens of R cells in flat buffers; the rest of each cell's width is padded.

    With ``unknown_starts`` the share ``ratios`` of a cell's genes is written to the buffers for unknown genes. With
    ``ratios`` alone that share is masked: each gene at random, or with ``exact`` exactly ``int(n * ratio)`` of n.
    """

    starts: Int64  # (R,)
    widths: Int64  # (R,)
    unknown_starts: Int64 | None = None  # (R,)
    unknown_widths: Int64 | None = None  # (R,)
    ratios: Float64 | None = None  # (R,)
    exact: bool = False

    @staticmethod
    def padded(
        num_cells: int, width: int, *, unknown_width: int | None = None, ratios: Float64 | None = None
    ) -> TokenPlan:
        """Plan rows of equal width: buffers of shape (R, width) and, for unknown genes, (R, unknown_width)."""
        rows = np.arange(num_cells, dtype=np.int64)
        if unknown_width is None:
            return TokenPlan(rows * width, np.full(num_cells, width), ratios=ratios)
        unknown = (rows * unknown_width, np.full(num_cells, unknown_width))
        return TokenPlan(rows * width, np.full(num_cells, width), *unknown, ratios)

    @staticmethod
    def packed(known: Int64, unknown: Int64 | None = None, *, ratios: Float64 | None = None) -> TokenPlan:
        """Plan concatenated cells without padding; ``known`` and ``unknown`` are from ``CellTokenizer.num_tokens``."""
        if unknown is None:
            return TokenPlan(np.cumsum(known) - known, known, ratios=ratios)
        return TokenPlan(np.cumsum(known) - known, known, np.cumsum(unknown) - unknown, unknown, ratios)


@dataclass(frozen=True, eq=False)
class TokenBuffers:
    """Flat output arrays: ids of any integer type that holds the vocabulary, values int8, int16 or float32."""

    gene_ids: Array  # (S,)
    values: Array  # (S,)
    masked: Array | None = None  # (S,) values with some hidden
    unknown_gene_ids: Array | None = None  # (U,)
    unknown_values: Array | None = None  # (U,)


@dataclass(frozen=True)
class CellTokenizer:
    """A tokenizer: a cell's tokens depend on its own content (or id) and the seed, never on its neighbours."""

    vocabulary: GeneVocabulary
    config: TokenizerConfig
    inference: InferenceConfig = DRAWN  # for calls without an epoch
    panel: tuple[int, ...] | None = None  # ids of the genes that every cell's tokens have, zeros included

    def __post_init__(self) -> None:
        if self.panel is not None:
            special = {self.vocabulary.cls_id, self.vocabulary.pad_id}
            assert len(set(self.panel) - special) == len(self.panel) > 0, "a panel is distinct genes"
            assert 0 <= min(self.panel) <= max(self.panel) < self.vocabulary.size, "a panel is genes of the vocabulary"
            assert len(self.panel) + self.config.num_special <= self.max_length, "a panel is not sampled"

    @property
    def max_length(self) -> int:
        """Maximum number of tokens per cell, ``<cls>`` included."""
        return self.inference.max_length if self.goes_by_gene else self.config.max_length

    @property
    def goes_by_gene(self) -> bool:
        """Whether a gene's random word is the same in all cells; such tokens have no epoch."""
        return self.inference.mode == "by_gene" and self.config.ties != "global_rng"

    @property
    def id_dtype(self) -> np.dtype[Any]:
        """The narrowest type that holds every gene id: uint16 or int32."""
        return np.dtype(np.uint16 if self.vocabulary.size <= 2**16 else np.int32)

    @property
    def value_dtype(self) -> np.dtype[Any]:
        """The narrowest type that holds every bin and special value: int8, int16, or float32 if one is a fraction."""
        config = self.config
        values = (config.n_bins - 1, config.cls_value, config.pad_value, config.mask_value)
        if self.is_fractional:
            return np.dtype(np.float32)
        return next(
            np.dtype(kind) for kind in (np.int8, np.int16, np.float32) if kind == np.float32 or _fit(values, kind)
        )

    @property
    def is_fractional(self) -> bool:
        """Whether values are not whole numbers."""
        return self.config.values == "soft" or self.config.depth_token is not None

    def __call__(
        self, cells: SparseCells | PackedCells, *, epoch: int | None = None, bins: Int16 | None = None
    ) -> TokenizedCells:
        """Tokenise ``cells``; ``bins`` (shape (N,), up to 255) are used instead of binning if given.

        With an ``epoch``, ties and samples are drawn again in every epoch, by cell id. Without one, ``inference``
        applies, and the same cell always gets the same tokens.
        """
        assert bins is None or self.panel is None, "a panel's bins are those among its genes"
        assert bins is None or self.config.values == "hard", "soft bins are not given"
        packed = self.pack(cells) if bins is None else with_bins(_packed(cells), bins)
        known, _ = self.num_tokens(packed.num_genes_per_cell)
        num_tokens = int(known.sum())
        buffers = TokenBuffers(np.empty(num_tokens, np.int32), np.empty(num_tokens, np.float32))
        rows = np.arange(packed.num_cells)
        self.fill_as(packed, rows, self.identities(packed, epoch), TokenPlan.packed(known), buffers)
        indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(known)])
        return TokenizedCells(buffers.gene_ids, buffers.values, indptr, cells.cell_ids)

    def bin_cells(self, cells: SparseCells | PackedCells, *, epoch: int | None = None) -> Int16:
        """Return the bins (shape (N,)) that a call with the same ``epoch`` would use."""
        packed = _packed(cells)
        if self.config.ties == "global_rng":
            values = packed_counts(packed).astype(np.float32)
            return bin_rows(values, packed.indptr, n_bins=self.config.n_bins).astype(np.int16)
        bins = np.empty(len(packed.values), np.int16)
        rows, identities = np.arange(packed.num_cells), self.identities(packed, epoch)
        bad = kernels.bin_genes(_streams(packed), rows, identities, self._quantiles, bins)
        assert bad < 0, f"the streams of cell {bad} disagree"
        return bins

    def identities(self, packed: PackedCells, epoch: int | None = None) -> UInt64:
        """Return the key of each cell's draws (C,): seed and content, or with an ``epoch`` seed, epoch and cell id.

        With inference ``by_gene`` the key is the same for all cells and seeds.
        """
        assert epoch is None or not self.goes_by_gene, "training needs a tokenizer that draws"
        if self.goes_by_gene:
            return np.full(packed.num_cells, BY_GENE)
        if epoch is None:
            return combine(self.config.seed, content_hashes(packed))
        return combine(self.config.seed, epoch, packed.cell_ids)

    def pack(self, cells: SparseCells | PackedCells) -> PackedCells:
        """Convert cells to streams, of the panel if there is one, with bins that depend on the order of the cells."""
        packed = self.restrict(_packed(cells))
        if packed.bins is None and self.config.ties == "global_rng":
            return with_bins(packed, self.bin_cells(packed))
        return packed

    def restrict(self, packed: PackedCells) -> PackedCells:
        """The cells with the genes of the panel alone; themselves without one."""
        return packed if self.panel is None else only_genes(packed, self._panel)

    def num_tokens(self, num_genes: Int64, ratios: Float64 | None = None) -> tuple[Int64, Int64]:
        """Count known tokens (``<cls>`` included) and unknown genes of cells with ``num_genes`` genes, in its shape.

        ``ratios`` is the share of unknown genes; a masked gene stays a known token.
        """
        kept = np.minimum(num_genes, self.max_length - self.config.num_special)
        if self.panel is not None:
            kept = np.full_like(kept, len(self.panel))
        unknown = np.zeros_like(kept) if ratios is None else (kept * ratios).astype(np.int64)
        return kept - unknown + self.config.num_special, unknown

    def fill(self, packed: PackedCells, rows: Int64, epochs: Int64, plan: TokenPlan, buffers: TokenBuffers) -> None:
        """Write the tokens of the cells at ``rows`` (shape (R,)), each in its epoch of ``epochs`` (R,).

        Releases Python's lock while it works. Stored bins are used where ``packed`` has them. With a panel ``packed``
        must have been through ``restrict``.
        """
        assert self.config.ties == "keyed" or packed.bins is not None, (
            "a global generator needs an order, which a stream has not"
        )
        identities = combine(self.config.seed, epochs, packed.cell_ids[rows])
        self.fill_as(packed, rows, identities, plan, buffers)

    def fill_as(
        self, packed: PackedCells, rows: Int64, identities: UInt64, plan: TokenPlan, buffers: TokenBuffers
    ) -> None:
        """Like ``fill``, with given ``identities`` (R,), on which the cells' draws depend."""
        assert not len(rows) or rows.min() >= 0, "rows must not be negative"
        self._check(packed.num_genes_per_cell[rows], plan, buffers)
        request = kernels.Request(
            as_input(rows, np.int64),
            as_input(identities, np.uint64),
            _input_or_none(plan.ratios, np.float64),
            as_input(plan.starts, np.int64),
            as_input(plan.widths, np.int64),
            _input_or_none(plan.unknown_starts, np.int64),
            _input_or_none(plan.unknown_widths, np.int64),
        )
        soft, depth = self.config.values == "soft", self.config.depth_token
        if soft and packed.bins is not None:
            packed = replace(packed, bins=None)
        rules = kernels.Rules(
            self._soft_quantiles if soft else self._quantiles,
            self.max_length - self.config.num_special,
            _style(plan),
            as_input(self._panel, np.int32),
            GRAIN if soft else 0,
            0.0 if depth is None else 1 / math.log10(depth),
        )
        bad = kernels.fill_tokens(_streams(packed), request, rules, self._outputs(buffers))
        assert bad < 0, f"the streams of cell {bad} disagree, or have genes outside the panel"

    @functools.cached_property
    def _quantiles(self) -> Float64:
        return np.linspace(0, 1, self.config.n_bins - 1)

    @functools.cached_property
    def _soft_quantiles(self) -> Float64:
        """Quantiles of the edges of soft bins, ``GRAIN`` for each of the others."""
        return np.linspace(0, 1, (self.config.n_bins - 2) * GRAIN + 1)

    @functools.cached_property
    def _panel(self) -> Int32:
        """Ids of the panel, ascending; empty without one."""
        return np.array(sorted(self.panel or ()), np.int32)

    def _outputs(self, buffers: TokenBuffers) -> kernels.Outputs:
        config, ids, values = self.config, buffers.gene_ids.dtype, buffers.values.dtype
        return kernels.Outputs(
            buffers.gene_ids,
            buffers.values,
            np.empty(0, values) if buffers.masked is None else buffers.masked,
            np.empty(0, ids) if buffers.unknown_gene_ids is None else buffers.unknown_gene_ids,
            np.empty(0, values) if buffers.unknown_values is None else buffers.unknown_values,
            np.array([self.vocabulary.cls_id, self.vocabulary.pad_id, self.vocabulary.eoc_id], ids),
            np.array([config.cls_value, config.pad_value, config.mask_value], values),
            0.5 / GRAIN if config.values == "soft" else 0.0,
        )

    def _check(self, num_genes: Int64, plan: TokenPlan, buffers: TokenBuffers) -> None:
        """Assert that the buffers are large and wide enough, which the kernel does not check."""
        config, ids, values = self.config, buffers.gene_ids.dtype.type, buffers.values.dtype.type
        split = plan.unknown_starts is not None
        known, unknown = self.num_tokens(num_genes, plan.ratios if split else None)
        assert _fit((self.vocabulary.size - 1,), ids), "gene ids do not fit"
        specials = (config.n_bins - 1, config.cls_value, config.pad_value, config.mask_value)
        assert _fit(specials, values), "values do not fit"
        assert not self.is_fractional or issubclass(values, np.floating), "values do not fit"
        assert buffers.unknown_gene_ids is None or buffers.unknown_gene_ids.dtype == ids, "ids of one type"
        others = (buffers.masked, buffers.unknown_values)
        assert all(array is None or array.dtype == values for array in others), "values of one type"
        assert plan.ratios is None or (
            len(plan.ratios) == len(known) and np.all((plan.ratios >= 0) & (plan.ratios <= 1))
        )
        assert _inside(known, plan.starts, plan.widths, buffers.gene_ids, buffers.values)
        if plan.unknown_starts is not None:
            assert plan.unknown_widths is not None, "unknown genes need widths"
            assert plan.ratios is not None, "a split needs its ratios"
            places = (plan.unknown_starts, plan.unknown_widths)
            assert _inside(unknown, *places, buffers.unknown_gene_ids, buffers.unknown_values)
        elif plan.ratios is not None:
            assert _inside(known, plan.starts, plan.widths, buffers.gene_ids, buffers.masked)


def _packed(cells: SparseCells | PackedCells) -> PackedCells:
    """Convert cells to streams: as counts if all values are integers that float32 holds exactly."""
    if isinstance(cells, PackedCells):
        return cells
    whole = bool(np.all((cells.values == np.floor(cells.values)) & (cells.values < 2**24)))
    return pack(cells, counts=whole)


def _streams(packed: PackedCells) -> kernels.Streams:
    kind = kernels.COUNTS if packed.holds_counts else kernels.EXPRESSION
    return kernels.Streams(
        kernels.BINS if packed.bins is not None else kind,
        as_input(packed.genes, np.uint8),
        as_input(packed.gene_starts, np.int64),
        as_input(packed.indptr, np.int64),
        _input_or_none(packed.values if packed.holds_counts else None, np.uint8),
        as_input(packed.large, np.uint32),
        as_input(packed.large_starts, np.int64),
        _input_or_none(None if packed.holds_counts else packed.values, np.float32),
        _input_or_none(packed.bins, np.uint8),
        _input_or_none(packed.table, np.int32),
    )


def _input_or_none(array: Array | None, kind: npt.DTypeLike) -> Array:
    """Return an optional input of the kernel; an empty array if it is None."""
    return as_input(np.empty(0) if array is None else array, kind)


def _style(plan: TokenPlan) -> int:
    if plan.unknown_starts is not None:
        return kernels.SPLIT
    if plan.ratios is None:
        return kernels.PLAIN
    return kernels.MASKED_EXACTLY if plan.exact else kernels.MASKED


def _fit(values: tuple[float, ...], kind: type[Any]) -> bool:
    """Return whether numbers of ``kind`` hold all ``values`` exactly."""
    if np.issubdtype(kind, np.integer):
        limits = np.iinfo(kind)
        return all(value == int(value) and limits.min <= value <= limits.max for value in values)
    return all(float(kind(value)) == value for value in values)


def _inside(lengths: Int64, starts: Int64, widths: Int64, *arrays: Array | None) -> bool:
    """Return whether ``lengths`` fit into ``widths``, and the slots from ``starts`` on into all of ``arrays``."""
    fits = len(starts) == len(lengths) and np.all(lengths <= widths) and np.all(starts >= 0)
    end = int((starts + widths).max(initial=0))
    return bool(fits) and all(
        array is not None and array.ndim == 1 and len(array) >= end and array.flags.c_contiguous for array in arrays
    )
