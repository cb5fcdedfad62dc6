"""Random numbers as pure functions: keyed 64-bit hashes and uniforms, so that no generator state needs to be kept."""

# C cells, N non-zero entries over all cells

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from cytoray.tokens.cells import SparseCells, UInt64

Float64 = npt.NDArray[np.float64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_MASK = 2**64 - 1


class Purpose(IntEnum):
    """Purpose of a key; two purposes never share random numbers. Values are part of the format: append only."""

    TIES = 1
    SAMPLING = 2
    MASKING = 3
    SPLIT = 4
    ORDER = 5
    PARTITION = 6
    WEIGHTS = 7
    PAIRS = 8
    MODALITIES = 9
    THINNING = 10
    QUERIES = 11
    VIEWS = 12


def mix64(values: UInt64) -> UInt64:
    """Scramble 64-bit words one to one (the splitmix64 finaliser)."""
    with np.errstate(over="ignore"):  # wrapping around is intended; only scalars would warn
        mixed = (values ^ (values >> np.uint64(30))) * _MULTIPLIERS[0]
        mixed = (mixed ^ (mixed >> np.uint64(27))) * _MULTIPLIERS[1]
        return np.asarray(mixed ^ (mixed >> np.uint64(31)))


def combine(*parts: int | npt.NDArray[np.integer]) -> UInt64:
    """Hash ``parts`` in their order to one 64-bit key; arrays broadcast, scalars give a 0-d array.

    For fixed leading parts the map is one to one in the last part, so distinct genes of a cell never collide.
    """
    key = np.zeros((), np.uint64)
    for part in parts:
        word = np.asarray(part & _MASK if isinstance(part, int) else part).astype(np.uint64)
        with np.errstate(over="ignore"):
            key = mix64((key ^ word) + _GOLDEN)
    return key


def uniform(keys: UInt64) -> Float64:
    """Convert each key to a number in [0, 1), from its upper 53 bits."""
    return np.asarray((keys >> np.uint64(11)) * 2.0**-53)


def content_keys(cells: SparseCells) -> UInt64:
    """Return a key of each cell's content, shape (C,), independent of the order of cells and of other cells."""
    entries = combine(cells.gene_ids, cells.values.view(np.uint32))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(entries, dtype=np.uint64)])
    return combine(sums[cells.indptr[1:]] - sums[cells.indptr[:-1]], cells.num_genes_per_cell)


def cell_id(dataset: str, names: Sequence[str]) -> UInt64:
    """Return stable 64-bit ids of the cells ``names`` of ``dataset``, shape (C,)."""
    prefix = hashlib.blake2b(f"{dataset}\0".encode(), digest_size=8)
    digests = bytearray()
    for name in names:
        digest = prefix.copy()
        digest.update(name.encode())
        digests += digest.digest()
    return np.frombuffer(bytes(digests), "<u8").astype(np.uint64)
