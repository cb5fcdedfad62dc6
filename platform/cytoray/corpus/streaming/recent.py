"""The latest results of a costly function, kept with the object they belong to and forgotten with it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any


class Recent:
    """At most ``size`` results by key; threads may share it, and a pickle or copy of it starts empty.

    ``functools.lru_cache`` on a method would keep each object, with its arrays, for as long as the process runs.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._results: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The result kept under ``key``, or that of ``make``, which replaces the one used longest ago."""
        with self._lock:
            if key in self._results:
                self._results.move_to_end(key)
                return self._results[key]
        result = make()
        with self._lock:
            self._results[key] = result
            while len(self._results) > self._size:
                self._results.popitem(last=False)
        return result

    def __reduce__(self) -> tuple[type[Recent], tuple[int]]:
        """Start empty in another process."""
        return Recent, (self._size,)
