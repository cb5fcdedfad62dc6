"""What the baselines share: reading cells from h5ad with h5py alone, timing, memory. Needs numpy, h5py and psutil."""

# C cells, N non-zero entries

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil


def read_csr(paths: Sequence[Path], num_cells: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Data, indices and indptr (C + 1,) of about ``num_cells`` cells, the same number from each file."""
    data, indices, lengths = [], [], []
    share = -(-num_cells // len(paths))
    for path in paths:
        with h5py.File(path, "r") as file:
            indptr = file["X/indptr"][: share + 1].astype(np.int64)
            data.append(file["X/data"][: indptr[-1]])
            indices.append(file["X/indices"][: indptr[-1]])
            lengths.append(np.diff(indptr))
    return np.concatenate(data), np.concatenate(indices), np.concatenate([[0], np.cumsum(np.concatenate(lengths))])


def take_for(batches: Iterable[Any], count: Callable[[Any], int], *, seconds: float) -> dict[str, float]:
    """Take batches for ``seconds``, the first two untimed; an iterable that ends before is begun again."""
    stream = _endless(batches)
    next(stream)
    next(stream)
    started, waits, num_cells = time.perf_counter(), [], 0
    last = started
    while last - started < seconds:
        num_cells += count(next(stream))
        now = time.perf_counter()
        waits.append(now - last)
        last = now
    waits_ms = 1e3 * np.array(waits)
    return {
        "cells_per_s": num_cells / (last - started),
        "num_cells": num_cells,
        "median_ms": float(np.median(waits_ms)),
        "p999_ms": float(np.quantile(waits_ms, 0.999)),
        "max_ms": float(waits_ms.max()),
    }


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    """``batches`` over and over."""
    while True:
        yield from batches


class PeakMemory(threading.Thread):
    """The highest PSS of this process and its children, sampled every half second inside a ``with`` block."""

    def __init__(self) -> None:
        """Start at zero."""
        super().__init__(daemon=True)
        self.peak_bytes = 0
        self._stop_now = threading.Event()

    def run(self) -> None:
        """Sample until told to stop."""
        while not self._stop_now.wait(0.5):
            self._sample()

    def _sample(self) -> None:
        total = 0
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            try:
                total += process.memory_full_info().pss
            except psutil.NoSuchProcess:
                continue
        self.peak_bytes = max(self.peak_bytes, total)

    def __enter__(self) -> PeakMemory:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop_now.set()
        self.join()
        self._sample()


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def show(**record: Any) -> None:
    """Print one JSON line."""
    print(json.dumps(record), flush=True)
