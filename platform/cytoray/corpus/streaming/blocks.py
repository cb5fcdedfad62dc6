"""Memory for minibatches, used again: fresh pages for every chunk cost a fifth of the time that filling it takes."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

Block = npt.NDArray[np.uint8]
ALIGNMENT = 64
ROUNDING = 2**20
MAX_SPARE = 6  # blocks of about 10 MB that wait for the next chunk


class BlockPool:
    """Hands out arrays; once nobody holds any part of a block, it is handed out again. Threads may share it."""

    def __init__(self) -> None:
        self._spare: list[Block] = []
        self._lock = threading.Lock()

    def empty(self, wanted: list[tuple[int, np.dtype[Any]]]) -> list[npt.NDArray[Any]]:
        """Uninitialised arrays of the ``wanted`` (length, type) in one block."""
        sizes = [-(-length * dtype.itemsize // ALIGNMENT) * ALIGNMENT for length, dtype in wanted]
        block = self._take(sum(sizes))
        # Views have this array as their base, not the block behind it: it goes when the last of them does.
        lease = np.frombuffer(block.data, np.uint8)
        weakref.finalize(lease, self._give_back, block).atexit = False
        ends = np.cumsum(sizes).tolist()
        return [
            lease[end - size : end - size + length * dtype.itemsize].view(dtype)
            for (length, dtype), size, end in zip(wanted, sizes, ends, strict=True)
        ]

    def _take(self, num_bytes: int) -> Block:
        with self._lock:
            fitting = [place for place, block in enumerate(self._spare) if len(block) >= num_bytes]
            if fitting:
                return self._spare.pop(fitting[-1])
        # Not a bytearray: to fill that with zeros keeps Python's lock for 5 ms.
        return np.empty(max(1, -(-num_bytes // ROUNDING)) * ROUNDING, np.uint8)

    def _give_back(self, block: Block) -> None:
        with self._lock:
            self._spare.append(block)
            if len(self._spare) > MAX_SPARE:
                self._spare.remove(min(self._spare, key=len))
