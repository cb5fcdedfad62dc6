"""Quotas of the owners of keys: cells per minute as a token bucket, and requests in flight."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from cytoray.errors import RequestError
from cytoray.serving.edge.keys import Allowance

MINUTE_S = 60.0


@dataclass
class _Account:
    """An owner's balance of cells at a time, and the requests in flight."""

    balance: float
    since: float
    in_flight: int = 0


@dataclass
class Quotas:
    """The accounts of all owners, in this process.

    The cells of a request are known when it has been answered, so it is admitted if the balance is positive and pays
    afterwards: the balance may become negative, and is then first earned back.
    """

    clock: Callable[[], float]
    accounts: dict[str, _Account] = field(default_factory=dict)

    def enter(self, owner: str, allowance: Allowance, *, asks_cells: bool = True) -> None:
        """Count a request in; raises RequestError if the owner has to wait.

        One that does not ask for answers to cells, such as about a job, need not wait until cells have been earned.
        """
        account = self._updated(owner, allowance)
        if allowance.concurrency is not None and account.in_flight >= allowance.concurrency:
            raise _limited(
                f"This key has {account.in_flight} requests in flight, its limit.",
                remedy="Wait for their answers.",
                wait_s=1,
            )
        if asks_cells and allowance.cells_per_minute is not None and account.balance < 1:
            raise _limited(
                f"This key has used its {allowance.cells_per_minute:g} cells per minute.",
                remedy="Send fewer cells, or ask the operator for a higher quota.",
                wait_s=math.ceil((1 - account.balance) * MINUTE_S / allowance.cells_per_minute),
            )
        account.in_flight += 1

    def leave(self, owner: str, allowance: Allowance, *, cells: int) -> None:
        """Count a request out, and charge its cells."""
        account = self._updated(owner, allowance)
        account.in_flight -= 1
        account.balance -= cells

    def headers(self, owner: str, allowance: Allowance, *, cells: int = 0) -> dict[str, str]:
        """Return the headers about the quota, after ``cells`` more will have been charged; none without a quota."""
        if allowance.cells_per_minute is None:
            return {}
        rate, left = allowance.cells_per_minute, self._updated(owner, allowance).balance - cells
        return {
            "RateLimit-Limit": f"{rate:g}",
            "RateLimit-Remaining": str(max(math.floor(left), 0)),
            "RateLimit-Reset": str(max(math.ceil((rate - left) * MINUTE_S / rate), 0)),  # seconds until it is full
        }

    def _updated(self, owner: str, allowance: Allowance) -> _Account:
        """Return the account with what it has earned since it was last looked at."""
        now, rate = self.clock(), allowance.cells_per_minute or 0.0
        account = self.accounts.setdefault(owner, _Account(rate, now))
        account.balance = min(account.balance + (now - account.since) * rate / MINUTE_S, rate)
        account.since = now
        return account


def _limited(problem: str, *, remedy: str, wait_s: int) -> RequestError:
    return RequestError(problem, remedy=remedy, code="rate_limited", retry_after_s=max(wait_s, 1))
