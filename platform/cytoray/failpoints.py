"""Named crash points, inert unless ``CYTORAY_FAILPOINTS`` switches them on, so that tests can die exactly there.

``CYTORAY_FAILPOINTS="ingest.before_commit=kill@2,train.after_step=sleep:5"``: at the second hit of the first point the
process kills itself; the second point sleeps five seconds at every hit. Actions: ``kill``, ``raise``, ``enospc``,
``sleep:SECONDS``. Names are ``<protocol>.<before|after>_<step>``.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import time
from collections import Counter

from cytoray.errors import CytorayError

VARIABLE = "CYTORAY_FAILPOINTS"
_hits: Counter[str] = Counter()
_logger = logging.getLogger(__name__)


class FailpointError(CytorayError):
    """What the action ``raise`` raises."""


def failpoint(name: str) -> None:
    """Do nothing, unless the environment names this point and its hit count matches."""
    plan = os.environ.get(VARIABLE)
    if not plan:
        return
    _hits[name] += 1
    for entry in plan.split(","):
        point, _, rest = entry.strip().partition("=")
        action, _, nth = rest.partition("@")
        if point == name and (not nth or _hits[name] == int(nth)):
            _fire(name, action)


def _fire(name: str, action: str) -> None:
    """Carry out one action."""
    _logger.warning("failpoint %s fires: %s", name, action)
    verb, _, argument = action.partition(":")
    if verb == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif verb == "raise":
        raise FailpointError(f"Failpoint {name} was told to raise.", remedy=f"Unset {VARIABLE}.", point=name)
    elif verb == "enospc":
        raise OSError(errno.ENOSPC, f"No space left on device (failpoint {name})")
    elif verb == "sleep":
        time.sleep(float(argument))
    else:
        raise ValueError(f"{VARIABLE}: unknown action {action!r} for {name}")
