"""Compiled tokenisation of packed cells in one pass per cell: decode, bin, sample, hide, pad."""

# R requested cells, N genes of a cell, E edges, P genes of a panel

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cytoray.tokens.binning import TIE_BITS, Workspace, make_workspace, spread_counts, spread_expression
from cytoray.tokens.cells import Float32, Int32, Int64, UInt64
from cytoray.tokens.coding import UInt8, UInt32, decode_gaps, mix_into
from cytoray.tokens.compiling import Scalar, compiled
from cytoray.tokens.keys import Float64

Array = npt.NDArray[Any]
FIELD_BITS = 20  # of the random numbers that sample and split
COUNTS, EXPRESSION, BINS = 0, 1, 2
PLAIN, MASKED, MASKED_EXACTLY, SPLIT = 0, 1, 2, 3

# A token while it is made: gene id in bits 0 - 27, bin in 28 - 43, the split field in 44 - 63.
_GENE_BITS, _SPLIT_SHIFT = np.uint64(28), np.uint64(44)
_GENE_MASK, _BIN_MASK = np.uint64(2**28 - 1), np.uint64(2**16 - 1)
_SPLIT_MASK = np.uint64((2**20 - 1) << 44)
_TIE_BITS, _TIE_MASK = np.uint64(TIE_BITS), np.uint64(2**TIE_BITS - 1)
_FIELD_BITS, _FIELD_MASK = np.uint64(FIELD_BITS), np.uint64(2**FIELD_BITS - 1)


class Streams(NamedTuple):
    """Packed cells as plain arrays; those that ``kind`` does not use are empty."""

    kind: int  # COUNTS, EXPRESSION or BINS
    genes: UInt8
    gene_starts: Int64
    indptr: Int64
    counts: UInt8
    large: UInt32
    large_starts: Int64
    expression: Float32
    bins: UInt8
    table: Int32  # gene id of each number in the gene streams; empty if they hold gene ids


class Request(NamedTuple):
    """Cells to tokenise, the keys of their random draws, and the positions of their tokens in the outputs."""

    rows: Int64  # (R,)
    identities: UInt64  # (R,)
    ratios: Float64  # (R,) share of genes masked or split off, or empty
    starts: Int64  # (R,) into the outputs
    widths: Int64  # (R,)
    unknown_starts: Int64  # (R,) or empty
    unknown_widths: Int64


class Rules(NamedTuple):
    """Settings of the tokenisation."""

    quantiles: Float64  # (E,)
    max_genes: int
    style: int  # PLAIN, MASKED, MASKED_EXACTLY or SPLIT
    panel: Int32  # (P,) ascending ids of all genes that a cell's tokens have, zeros included; or empty
    grain: int  # 0, or the number of edges per bin of soft bins: values are in units of 1 / (2 * grain)
    depth_scale: float  # 0, or the factor on the logarithm of a cell's total, the value of its second token


class Outputs(NamedTuple):
    """Flat arrays for the tokens; those that the style does not use are empty."""

    gene_ids: Array
    values: Array
    masked: Array
    unknown_gene_ids: Array
    unknown_values: Array
    specials: Array  # gene ids of <cls>, <pad> and <eoc>
    special_values: Array  # values of <cls>, padding and mask
    unit: float  # 0, or the size of the unit of soft bins


@compiled
def fill_tokens(streams: Streams, request: Request, rules: Rules, outputs: Outputs) -> Scalar:
    """Write the tokens of the requested cells; returns the first damaged row, -1 if all are intact."""
    room = 1
    for row in request.rows:
        room = max(room, streams.gene_starts[row + 1] - streams.gene_starts[row] + 1)
    gene_ids, tokens = np.empty(room, np.int32), np.empty(room, np.uint64)
    ranks, spare = np.empty(room, np.uint32), np.empty(max(room, rules.panel.size), np.uint64)
    work, full = make_workspace(room), np.empty(rules.panel.size, np.uint64)
    for place in range(request.rows.size):
        row = request.rows[place]
        size = _decode(streams, row, gene_ids)
        if size < 0:
            return row
        _spread(streams, row, rules.quantiles, work)
        _draw(request.identities[place], gene_ids[:size], work.spreads[:size], tokens[:size], ranks[:size])
        if rules.grain > 0:
            _soften(work.spreads[:size], tokens[:size], rules.grain)
        depth = _depth(streams, row) * rules.depth_scale if rules.depth_scale > 0 else 0.0
        if rules.panel.size > 0:
            if not _include_zeros(request.identities[place], tokens[:size], rules.panel, full):
                return row
            _emit(place, full, spare, request, rules, depth, outputs)
            continue
        kept = size
        if size > rules.max_genes:
            kept = rules.max_genes
            _select(tokens[:size], ranks[:size], kept)
        _emit(place, tokens[:kept], spare, request, rules, depth, outputs)
    return -1


@compiled
def bin_genes(streams: Streams, rows: Int64, identities: UInt64, quantiles: Float64, bins: npt.NDArray[Any]) -> Scalar:
    """Write the bin of every gene of the cells ``rows``, one after the other; returns the first damaged row or -1."""
    room = 1
    for row in rows:
        room = max(room, streams.gene_starts[row + 1] - streams.gene_starts[row] + 1)
    gene_ids, tokens = np.empty(room, np.int32), np.empty(room, np.uint64)
    ranks, work, end = np.empty(room, np.uint32), make_workspace(room), 0
    for place in range(rows.size):
        size = _decode(streams, rows[place], gene_ids)
        if size < 0:
            return rows[place]
        _spread(streams, rows[place], quantiles, work)
        _draw(identities[place], gene_ids[:size], work.spreads[:size], tokens[:size], ranks[:size])
        target = bins[end : end + size]
        for gene in range(size):
            target[gene] = (tokens[gene] >> _GENE_BITS) & _BIN_MASK
        end += size
    return -1


@compiled
def _decode(streams: Streams, row: int, gene_ids: Int32) -> Scalar:
    """Decode the gene ids of a cell; returns their number, -1 if its streams are inconsistent."""
    stream = streams.genes[streams.gene_starts[row] : streams.gene_starts[row + 1]]
    size = decode_gaps(stream, gene_ids)
    if streams.table.size > 0:
        if size > 0 and gene_ids[size - 1] >= streams.table.size:
            return -1
        for place in range(size):
            gene_ids[place] = streams.table[gene_ids[place]]
    num_large = streams.large_starts[row + 1] - streams.large_starts[row]
    return size if size == streams.indptr[row + 1] - streams.indptr[row] and num_large <= size else -1


@compiled
def _spread(streams: Streams, row: int, quantiles: Float64, work: Workspace) -> None:
    """Write the possible bins of each gene of a cell into ``work.spreads``."""
    start, stop = streams.indptr[row], streams.indptr[row + 1]
    if streams.kind == COUNTS:
        large = streams.large[streams.large_starts[row] : streams.large_starts[row + 1]]
        spread_counts(streams.counts[start:stop], large, quantiles, work)
    elif streams.kind == EXPRESSION:
        spread_expression(streams.expression[start:stop], quantiles, work)
    else:
        bins, spreads = streams.bins[start:stop], work.spreads[: stop - start]
        for gene in range(bins.size):
            spreads[gene] = bins[gene]


@compiled
def _draw(identity: Scalar, gene_ids: Int32, spreads: UInt32, tokens: UInt64, ranks: UInt32) -> None:
    """Draw one random word per gene: choose its bin, and set its rank for sampling (see ``_select``)."""
    size = gene_ids.size
    for gene in range(size):
        word = mix_into(identity, np.uint64(gene_ids[gene]))
        spread = np.uint64(spreads[gene])
        value = (spread & _BIN_MASK) - (((word & _TIE_MASK) * (spread >> np.uint64(16))) >> _TIE_BITS)
        tokens[gene] = (word & _SPLIT_MASK) | value << _GENE_BITS | np.uint64(gene_ids[gene])
        ranks[gene] = (((word >> _TIE_BITS) & _FIELD_MASK) * np.uint64(size - gene)) >> _FIELD_BITS


@compiled
def _soften(spreads: UInt32, tokens: UInt64, grain: int) -> None:
    """Replace the bin of each gene by the middle of its possible fine bins, as a number of half ones."""
    for gene in range(tokens.size):
        spread = np.uint64(spreads[gene])
        value = np.uint64(2) * (spread & _BIN_MASK) - (spread >> np.uint64(16)) + np.uint64(2 * grain - 1)
        tokens[gene] = (tokens[gene] & ~(_BIN_MASK << _GENE_BITS)) | value << _GENE_BITS


@compiled
def _depth(streams: Streams, row: int) -> Scalar:
    """Return the decimal logarithm of a cell's total."""
    start, stop = streams.indptr[row], streams.indptr[row + 1]
    total = 0.0
    if streams.kind == EXPRESSION:
        for value in streams.expression[start:stop]:
            total += value
    else:
        for count in streams.counts[start:stop]:
            total += count
        for count in streams.large[streams.large_starts[row] : streams.large_starts[row + 1]]:
            total += count - 255.0
    return np.log10(max(total, 1.0))


@compiled
def _include_zeros(identity: Scalar, tokens: UInt64, panel: Int32, full: UInt64) -> Scalar:
    """Write a token for each gene of ``panel`` (P,), bin 0 unless it is among ``tokens``; False if others are."""
    place = 0
    for number in range(panel.size):
        gene = np.uint64(panel[number])
        if place < tokens.size and (tokens[place] & _GENE_MASK) == gene:
            full[number] = tokens[place]
            place += 1
        else:
            full[number] = (mix_into(identity, gene) & _SPLIT_MASK) | gene
    return place == tokens.size


@compiled
def _select(tokens: UInt64, ranks: UInt32, num_kept: int) -> None:
    """Move a random ``num_kept`` of the tokens to the front, in order.

    Knuth's Algorithm S: with ``need`` still to be chosen among the ``left`` that remain, a gene is kept with
    probability need / left. The loop has no branches: a comparison moves the cursor.
    """
    need, kept = np.uint32(num_kept), np.uint64(0)
    for gene in range(tokens.size):
        chosen = np.uint32(ranks[gene] < need)
        tokens[kept] = tokens[gene]
        kept += np.uint64(chosen)
        need = np.uint32(need - chosen)


@compiled
def _emit(
    place: int, tokens: UInt64, spare: UInt64, request: Request, rules: Rules, depth: float, outputs: Outputs
) -> None:
    """Write one cell's tokens in the requested style, and pad them."""
    style = rules.style
    start, stop = request.starts[place], request.starts[place] + request.widths[place]
    gene_ids, values = outputs.gene_ids[start:stop], outputs.values[start:stop]
    num_known: Scalar = tokens.size
    if style == SPLIT:
        num_hidden = np.int64(tokens.size * request.ratios[place])
        num_known -= num_hidden
        _split(tokens, spare, num_hidden)
        low, high = request.unknown_starts[place], request.unknown_starts[place] + request.unknown_widths[place]
        _write(spare[:num_hidden], outputs.unknown_gene_ids[low:high], outputs.unknown_values[low:high], outputs)
    gene_ids[0], values[0] = outputs.specials[0], outputs.special_values[0]
    last = 0  # of the special tokens
    if rules.depth_scale > 0:
        last = 1
        gene_ids[1], values[1] = outputs.specials[2], depth
    _write(tokens[:num_known], gene_ids[last + 1 :], values[last + 1 :], outputs)
    if style != MASKED and style != MASKED_EXACTLY:
        return
    masked = outputs.masked[start:stop]
    masked[0] = values[0]
    if style == MASKED:
        _mask(tokens, values[last:], masked[last:], request.ratios[place], outputs.special_values[2])
    else:
        _mask_exactly(tokens, values[last:], masked[last:], request.ratios[place], outputs.special_values[2])


@compiled
def _write(tokens: UInt64, gene_ids: Array, values: Array, outputs: Outputs) -> None:
    """Unpack tokens and pad the rest. The loops are faster: assigning to slices takes five times as long."""
    size, pad, pad_value = tokens.size, outputs.specials[1], outputs.special_values[1]
    for gene in range(size):
        gene_ids[gene] = tokens[gene] & _GENE_MASK
        values[gene] = (tokens[gene] >> _GENE_BITS) & _BIN_MASK
    if outputs.unit > 0:
        for gene in range(size):
            values[gene] *= outputs.unit
    for gene in range(size, gene_ids.size):
        gene_ids[gene] = pad
        values[gene] = pad_value


@compiled
def _split(tokens: UInt64, chosen_tokens: UInt64, num_chosen: Scalar) -> None:
    """Move a random ``num_chosen`` of the tokens to ``chosen_tokens`` and the rest to the front, both in order."""
    need, chosen_end, end = np.uint32(num_chosen), np.uint64(0), np.uint64(0)
    size = tokens.size
    for gene in range(size):
        token = tokens[gene]
        chosen = np.uint32((((token >> _SPLIT_SHIFT) * np.uint64(size - gene)) >> _FIELD_BITS) < need)
        chosen_tokens[chosen_end] = token
        tokens[end] = token
        chosen_end += np.uint64(chosen)
        end += np.uint64(1) - np.uint64(chosen)
        need = np.uint32(need - chosen)


@compiled
def _mask(tokens: UInt64, values: Array, masked: Array, ratio: float, mask_value: Scalar) -> None:
    """Copy ``values``, hiding each gene's with probability ``ratio``; those of ``<cls>`` and padding stay."""
    size, threshold = tokens.size, np.uint64(np.ceil(ratio * 2.0**FIELD_BITS))
    masked[0] = values[0]
    after, source = masked[1:], values[1:]
    for gene in range(size):
        after[gene] = mask_value if tokens[gene] >> _SPLIT_SHIFT < threshold else source[gene]
    for gene in range(size, after.size):
        after[gene] = source[gene]


@compiled
def _mask_exactly(tokens: UInt64, values: Array, masked: Array, ratio: float, mask_value: Scalar) -> None:
    """Copy ``values``, hiding a random ``int(N * ratio)`` of those of the N genes."""
    size = tokens.size
    need = np.uint64(size * ratio)
    for place in range(masked.size):
        masked[place] = values[place]
    for gene in range(size):
        if ((tokens[gene] >> _SPLIT_SHIFT) * np.uint64(size - gene)) >> _FIELD_BITS < need:
            masked[gene + 1] = mask_value
            need -= np.uint64(1)
