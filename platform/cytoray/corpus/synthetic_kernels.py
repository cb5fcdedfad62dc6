"""Draw synthetic cells by the ten thousand: one pass per cell, compiled, without the GIL."""

# C cells, G genes, T conditions, N non-zero entries over all cells

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from cytoray.tokens.cells import Float32, Int32, Int64

MAX_GENES = 8_192  # expressed genes of a cell; further ones are left out
BURST_P = 0.6  # of the log-series law: variance of a count / mean = 1 / (1 - p)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class AliasTables:
    """Walker's tables: a gene by the weights of a condition at the price of one random word."""

    keep_TG: Float32
    other_TG: Int32


@dataclass(frozen=True)
class DrawnCells:
    """Cells as rows of a CSR matrix."""

    values: Float32  # (N,)
    gene_ids: Int32  # (N,)
    indptr: Int64  # (C + 1,)


def build_alias(weights_TG: npt.NDArray[np.float64]) -> AliasTables:
    """Tables for rows of weights that sum to one each."""
    keep_TG, other_TG = np.empty(weights_TG.shape, np.float32), np.zeros(weights_TG.shape, np.int32)
    for row, weights_G in enumerate(weights_TG):
        _build_alias_row(weights_G * len(weights_G), keep_TG[row], other_TG[row])
    return AliasTables(keep_TG, other_TG)


def draw_cells(
    alias: AliasTables, conditions: Int64, bursts: npt.NDArray[np.float64], keys: npt.NDArray[np.uint64]
) -> DrawnCells:
    """Draw cells of ``conditions`` with about ``bursts`` bursts each, all of shape (C,), from the random ``keys``."""
    num_cells = len(conditions)
    values = np.empty(num_cells * MAX_GENES, np.float32)  # touched as far as it is filled
    gene_ids = np.empty(num_cells * MAX_GENES, np.int32)
    indptr = np.zeros(num_cells + 1, np.int64)
    _draw(alias.keep_TG, alias.other_TG, conditions, bursts, keys, _burst_sizes(), values, gene_ids, indptr)
    return DrawnCells(values[: indptr[-1]].copy(), gene_ids[: indptr[-1]].copy(), indptr)


def _burst_sizes() -> npt.NDArray[np.uint8]:
    """Size of a burst for each of 65,536 equally likely draws of the log-series law."""
    sizes = np.arange(1, 65)
    law = BURST_P**sizes / sizes
    return np.searchsorted(np.cumsum(law / law.sum()), (np.arange(65_536) + 0.5) / 65_536).astype(np.uint8) + np.uint8(
        1
    )


@numba.njit(cache=True, nogil=True, boundscheck=False)
def _build_alias_row(scaled, keep, other):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Vose's method; ``scaled`` has mean one and is used up."""
    small, large = np.empty(scaled.size, np.int64), np.empty(scaled.size, np.int64)
    num_small, num_large = 0, 0
    for gene in range(scaled.size):
        keep[gene], other[gene] = 1.0, gene
        if scaled[gene] < 1:
            small[num_small] = gene
            num_small += 1
        else:
            large[num_large] = gene
            num_large += 1
    while num_small > 0 and num_large > 0:
        num_small -= 1
        low, high = small[num_small], large[num_large - 1]
        keep[low], other[low] = scaled[low], high
        scaled[high] += scaled[low] - 1
        if scaled[high] < 1:
            num_large -= 1
            small[num_small] = high
            num_small += 1


@numba.njit(cache=True, nogil=True, boundscheck=False, inline="always")
def _mix(word):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """The splitmix64 finaliser."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


@numba.njit(cache=True, nogil=True, boundscheck=False)
def _draw(keep, other, conditions, bursts, keys, sizes, values, gene_ids, indptr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Fill ``values``, ``gene_ids`` and ``indptr`` cell after cell, genes in ascending order."""
    num_genes = keep.shape[1]
    counts = np.zeros(num_genes, np.int32)
    hit = np.zeros(num_genes // 64 + 1, np.uint64)  # one bit a gene: finding the expressed ones costs G / 64
    end = 0
    for cell in range(conditions.size):
        row = conditions[cell]
        state = _mix(keys[cell] + _GOLDEN)
        first = (np.float64(_mix(state + _GOLDEN) >> np.uint64(11)) + 1.0) * 2.0**-53
        second = np.float64(_mix(state + np.uint64(2) * _GOLDEN) >> np.uint64(11)) * 2.0**-53
        normal = np.sqrt(-2 * np.log(first)) * np.cos(2 * np.pi * second)
        # A Poisson number, by its normal limit: cells have hundreds of bursts and more.
        num_bursts = int(np.rint(bursts[cell] + np.sqrt(bursts[cell]) * normal))
        state += np.uint64(2) * _GOLDEN
        for _ in range(max(1, num_bursts)):
            state += _GOLDEN
            word = _mix(state)
            gene = np.int64(((word >> np.uint64(40)) * np.uint64(num_genes)) >> np.uint64(24))
            if np.float64((word >> np.uint64(16)) & np.uint64(0xFFFFFF)) * 2.0**-24 >= keep[row, gene]:
                gene = np.int64(other[row, gene])
            counts[gene] += sizes[word & np.uint64(0xFFFF)]
            hit[gene >> 6] |= np.uint64(1) << np.uint64(gene & 63)
        start = end
        for block in range(hit.size):
            bits = hit[block]
            hit[block] = np.uint64(0)
            while bits != np.uint64(0):
                lowest = bits & (~bits + np.uint64(1))
                gene = (block << 6) + _log2(lowest)
                bits ^= lowest
                if end - start < MAX_GENES:
                    gene_ids[end], values[end] = gene, counts[gene]
                    end += 1
                counts[gene] = 0
        indptr[cell + 1] = end


@numba.njit(cache=True, nogil=True, boundscheck=False, inline="always")
def _log2(power):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Exponent of a power of two below 2^64: exact, since every one is a float64."""
    return np.int64(np.float64(power).view(np.int64) >> 52) - 1023
