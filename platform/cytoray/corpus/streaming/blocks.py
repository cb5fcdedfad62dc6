"""Memory for minibatches: several arrays in one Arrow buffer, whose pool hands out again what was returned to it.

Arrow's pool keeps pages between buffers (fresh ones cost a fifth of the time that filling a chunk takes) and takes
back a buffer with the last array in it, on whatever thread and in the midst of whatever that thread was doing. A pool
of our own would need a finalizer and a lock, and Python runs finalizers wherever its cyclic collector starts, even on
a thread that holds that lock.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

ALIGNMENT = 64


def empty_arrays(wanted: list[tuple[int, np.dtype[Any]]]) -> list[npt.NDArray[Any]]:
    """Uninitialised arrays of the ``wanted`` (length, type) in one block, aligned to 64 bytes."""
    sizes = [-(-length * dtype.itemsize // ALIGNMENT) * ALIGNMENT for length, dtype in wanted]
    block = np.frombuffer(pa.allocate_buffer(max(ALIGNMENT, sum(sizes))), np.uint8)
    ends = np.cumsum(sizes).tolist()
    return [
        block[end - size : end - size + length * dtype.itemsize].view(dtype)
        for (length, dtype), size, end in zip(wanted, sizes, ends, strict=True)
    ]
