"""Compiled loops that encode and decode packed cells."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cytoray.tokens.cells import Int32, Int64, UInt64
from cytoray.tokens.compiling import Scalar, compiled

UInt8 = npt.NDArray[np.uint8]
UInt32 = npt.NDArray[np.uint32]
ESCAPE = 255
MAX_GENES = 2**28

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@compiled
def mix_into(key: Scalar, word: Scalar) -> Scalar:
    """Hash the uint64 ``word`` into the uint64 ``key``: one step of ``keys.combine``."""
    mixed = (key ^ word) + _GOLDEN
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _MULTIPLIER_0
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _MULTIPLIER_1
    return mixed ^ (mixed >> np.uint64(31))


@compiled
def decode_gaps(stream: UInt8, gene_ids: Int32) -> Scalar:
    """Decode one cell's gap stream; ``gene_ids`` must have one entry per byte. Returns the number of genes."""
    running: Scalar = np.int32(-1)
    size: Scalar = 0
    for place in range(stream.size):
        byte = stream[place]
        ends = np.int32(byte != ESCAPE)
        running += np.int32(byte) + ends
        gene_ids[size] = running
        size += ends
    return size


@compiled
def decode_genes(genes: UInt8, gene_starts: Int64, indptr: Int64, gene_ids: Int32) -> Scalar:
    """Decode the gap streams of all cells into ``gene_ids``; returns the number of genes, -1 if indptr differs."""
    scratch = np.empty(longest(gene_starts) + 1, np.int32)
    for cell in range(gene_starts.size - 1):
        size = decode_gaps(genes[gene_starts[cell] : gene_starts[cell + 1]], scratch)
        if size != indptr[cell + 1] - indptr[cell]:
            return -1
        target = gene_ids[indptr[cell] : indptr[cell + 1]]
        for place in range(size):  # assigning to a slice is five times slower
            target[place] = scratch[place]
    return indptr[-1]


@compiled
def longest(starts: Int64) -> Scalar:
    """Return the length of the longest part between two of ``starts``."""
    length: Scalar = np.int64(0)
    for part in range(starts.size - 1):
        length = max(length, starts[part + 1] - starts[part])
    return length


@compiled
def copy_parts(stream: npt.NDArray[Any], starts: Int64, rows: Int64, target: npt.NDArray[Any]) -> None:
    """Copy the parts of ``stream`` at ``rows`` into ``target``, one after the other."""
    end = 0
    for row in rows:
        source = stream[starts[row] : starts[row + 1]]
        part = target[end : end + source.size]
        for place in range(source.size):  # assigning to a slice is five times slower
            part[place] = source[place]
        end += source.size


@compiled
def sum_entry_hashes(genes: UInt8, gene_starts: Int64, indptr: Int64, table: Int32, values: Any, sums: UInt64) -> None:
    """Compute the sum of ``combine(gene id, value bits)`` over each cell's entries.

    ``table`` is that of the gene streams, or empty. ``values`` are (one byte per gene, or empty; float32 bits of values
    without a byte, or whose byte is 255; the starts of these in each cell; float32 bits of each byte).
    """
    counts, wide, wide_starts, bits = values
    room = longest(gene_starts) + 1
    gene_ids, words = np.empty(room, np.int32), np.empty(room, np.uint32)
    for cell in range(sums.size):
        size = decode_gaps(genes[gene_starts[cell] : gene_starts[cell + 1]], gene_ids)
        if table.size > 0:
            for place in range(size):
                gene_ids[place] = table[gene_ids[place]]
        taken = wide_starts[cell]
        if counts.size == 0:
            for place in range(size):
                words[place] = wide[taken + place]
        else:
            narrow = counts[indptr[cell] : indptr[cell + 1]]
            for place in range(size):
                words[place] = bits[narrow[place]]
            if wide_starts[cell + 1] > taken:
                for place in range(size):
                    if narrow[place] == ESCAPE:
                        words[place] = wide[taken]
                        taken += 1
        sums[cell] = _sum_hashes(gene_ids[:size], words[:size])


@compiled
def _sum_hashes(gene_ids: Int32, words: UInt32) -> Scalar:
    """Compute the sum of ``combine(gene id, word)`` over a cell's entries."""
    total = np.uint64(0)
    for place in range(gene_ids.size):
        total += mix_into(mix_into(np.uint64(0), np.uint64(gene_ids[place])), np.uint64(words[place]))
    return total


@compiled
def sort_words(words: UInt64, num_bits: int) -> None:
    """Sort the first half of ``words`` stably by the ``num_bits`` bits from bit 32 up; the second half is scratch."""
    size = words.size // 2
    source, target = words[:size], words[size:]
    starts = np.empty(256, np.int64)
    for shift in range(32, 32 + num_bits, 8):
        for digit in range(256):
            starts[digit] = 0
        for place in range(size):
            starts[(source[place] >> np.uint64(shift)) & np.uint64(255)] += 1
        end = 0
        for digit in range(256):
            count = starts[digit]
            starts[digit] = end
            end += count
        for place in range(size):
            word = source[place]
            at = (word >> np.uint64(shift)) & np.uint64(255)
            target[starts[at]] = word
            starts[at] += 1
        source, target = target, source
    if (num_bits + 7) // 8 % 2 == 1:
        for place in range(size):
            words[place] = words[size + place]


class Draft(NamedTuple):
    """Scratch memory for encoding a row."""

    gene_ids: Int32  # the row's genes, ascending
    values: npt.NDArray[np.float64]  # exact for counts: below 2**53
    words: UInt64  # twice as long, for sorting


@compiled
def encode_rows(matrix: Any, num_genes: int, streams: Any, ends: Int64, as_counts: bool) -> int:
    """Encode CSR rows ``matrix`` = (values, columns, indptr, gene id of each column).

    ``streams`` = (genes, counts, large counts, expression) must be long enough; ``ends`` (3, C + 1) receives the start
    of each cell in genes, values and large. Returns the first row with a value that is not a count, -1 if none has.
    """
    values, columns, indptr, gene_ids = matrix
    genes, counts, large, expression = streams
    room = longest(indptr) + 1
    draft = Draft(np.empty(room, np.int32), np.empty(room), np.empty(2 * room, np.uint64))
    num_bits = 8
    while num_genes >> num_bits > 0:
        num_bits += 8
    ordered = _ascends(gene_ids)
    for row in range(indptr.size - 1):
        start, stop = indptr[row], indptr[row + 1]
        size = _copy_row(values[start:stop], columns[start:stop], gene_ids, draft) if ordered else -1
        if size < 0:
            size = _sort_row(values[start:stop], columns[start:stop], gene_ids, num_bits, draft)
        end, large_end = ends[1, row], ends[2, row]
        if as_counts:
            num_large = _encode_counts(draft.values[:size], counts[end : end + size], large[large_end:])
            if num_large < 0:
                return row
            large_end += num_large
        else:
            for place in range(size):
                expression[end + place] = draft.values[place]
        ends[0, row + 1] = ends[0, row] + _encode_gaps(draft.gene_ids[:size], genes[ends[0, row] :])
        ends[1, row + 1], ends[2, row + 1] = end + size, large_end
    return -1


@compiled
def _ascends(gene_ids: Int32) -> bool:
    """Return whether the known genes are in ascending order without duplicates."""
    previous = np.int32(-1)
    for gene in gene_ids:
        if gene >= 0:
            if gene <= previous:
                return False
            previous = gene
    return True


@compiled
def _copy_row(values: Any, columns: Any, gene_ids: Int32, draft: Draft) -> Scalar:
    """Prepare a row with ascending columns; returns its number of genes, -1 if the columns are not ascending."""
    size: Scalar = 0
    disordered = False
    for entry in range(columns.size):
        gene, value = gene_ids[columns[entry]], np.float64(values[entry])
        disordered |= entry > 0 and columns[entry] <= columns[entry - 1]
        draft.gene_ids[size] = gene
        draft.values[size] = value
        size += np.int64((gene >= 0) & (value != 0.0))
    return -1 if disordered else size


@compiled
def _sort_row(values: Any, columns: Any, gene_ids: Int32, num_bits: int, draft: Draft) -> Scalar:
    """Prepare a row with columns in any order, summing the columns of each gene; returns its number of genes."""
    num_known: Scalar = 0
    for entry in range(columns.size):
        gene = gene_ids[columns[entry]]
        draft.words[num_known] = np.uint64(gene) << np.uint64(32) | np.uint64(entry)
        num_known += np.int64((gene >= 0) & (values[entry] != 0))
    words = draft.words[: 2 * num_known]
    sort_words(words, num_bits)
    size, previous = 0, np.int32(-1)
    for place in range(num_known):
        gene = np.int32(words[place] >> np.uint64(32))
        value = np.float64(values[words[place] & np.uint64(0xFFFFFFFF)])
        if gene == previous:
            draft.values[size - 1] += value
        else:
            draft.gene_ids[size], draft.values[size] = gene, value
            size += 1
        previous = gene
    return size


@compiled
def _encode_gaps(gene_ids: Int32, stream: UInt8) -> int:
    """Gap-code a cell's ascending genes; returns the number of bytes."""
    end = 0
    previous: Scalar = np.int32(-1)
    for gene in gene_ids:
        gap = gene - previous - 1
        previous = gene
        while gap >= ESCAPE:
            stream[end] = ESCAPE
            end += 1
            gap -= ESCAPE
        stream[end] = gap
        end += 1
    return end


@compiled
def _encode_counts(values: npt.NDArray[np.float64], counts: UInt8, large: UInt32) -> Scalar:
    """Write a cell's counts; returns how many were large, -1 if one is not an integer from 1 to 2**32 - 1."""
    num_large: Scalar = 0
    sound = True
    for place in range(values.size):
        value = values[place]
        sound &= (value >= 1.0) & (value <= 4294967295.0)
        count = np.int64(value)
        sound &= np.float64(count) == value
        counts[place] = count if count < ESCAPE else ESCAPE
        num_large += count >= ESCAPE
    if not sound:
        return -1
    if num_large > 0:
        num_large = 0
        for value in values:
            if value >= ESCAPE:
                large[num_large] = np.uint32(value)
                num_large += 1
    return num_large
