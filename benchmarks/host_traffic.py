"""Count what keeps the host of a training step from running ahead: collectives, and waits for values of tensors."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import torch
from torch.optim.optimizer import _get_value
from torch.utils._python_dispatch import TorchDispatchMode


class HostTraffic(TorchDispatchMode):
    """Counts in this thread, inside the block: c10d collectives by name, and ``sync`` for each value that is read.

    Reading one (``item``, ``tolist``, ``bool`` and so on) waits for a GPU; on a CPU it is counted as well. Threads
    beside this one, such as autograd's and the one that prepares the next step, are not; nor are Adam's own counts of
    steps, which are on the host with a GPU as well.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._tolist: Callable[[torch.Tensor], Any] = torch.Tensor.tolist

    def __enter__(self) -> Self:
        counts, tolist, thread = self.counts, self._tolist, threading.get_ident()

        def counted(tensor: torch.Tensor) -> Any:
            if threading.get_ident() == thread:
                counts["sync"] += 1
            return tolist(tensor)

        torch.Tensor.tolist = counted  # type: ignore[method-assign] # of a CPU's tensor it never reaches the dispatcher
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        torch.Tensor.tolist = self._tolist  # type: ignore[method-assign]

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        if function.namespace == "c10d":
            self.counts[function._opname.strip("_")] += 1
        elif function is torch.ops.aten._local_scalar_dense.default and not _is_in_adam():
            self.counts["sync"] += 1
        return function(*arguments, **(options or {}))


def _is_in_adam() -> bool:
    """Whether torch's optimiser reads its count of steps."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code is _get_value.__code__:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
