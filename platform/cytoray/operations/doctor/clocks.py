"""Compare the clock of this machine with the Date header of a server."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime

from cytoray.operations.doctor.findings import Finding, fail, ok, warn

WARN_S, FAIL_S = 30.0, 300.0  # S3 refuses requests that are 15 minutes off


def check_clock(name: str, date: str, *, whose: str, now_s: float | None = None) -> Finding | None:
    """Return a finding about the difference to the HTTP date ``date``; None if the server sent none."""
    try:
        theirs = parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return None
    skew = (time.time() if now_s is None else now_s) - theirs
    seen = f"this clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} that of {whose}"
    remedy = "Synchronise the clock (timedatectl set-ntp true, chronyc makestep): signed requests expire by it."
    if abs(skew) >= FAIL_S:
        return fail(name, seen, remedy=remedy)
    return warn(name, seen, remedy=remedy) if abs(skew) >= WARN_S else ok(name, f"within {WARN_S:.0f} s of {whose}")
