"""Named crash points for tests, inactive unless ``CYTORAY_FAILPOINTS`` names them.

``CYTORAY_FAILPOINTS="ingest.before_commit=kill@2,train.after_step=sleep:5"``: at the second hit of the first point the
process kills itself; the second point sleeps five seconds at every hit. Actions: ``kill``, ``killpg`` (its process
group), ``raise``, ``enospc``, ``sleep:SECONDS``. Names are ``<protocol>.<before|after>_<step>``. If
``CYTORAY_FAILPOINTS_ONCE`` names a folder, each point fires only once over all processes and leaves a file of its name
there, so that a repeated task succeeds.
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
ONCE_VARIABLE = "CYTORAY_FAILPOINTS_ONCE"
_hits: Counter[str] = Counter()
_logger = logging.getLogger(__name__)


class FailpointError(CytorayError):
    """The error of the action ``raise``."""


def failpoint(name: str) -> None:
    """Do nothing, unless the environment names this point and its hit count matches."""
    plan = os.environ.get(VARIABLE)
    if not plan:
        return
    _hits[name] += 1
    for entry in plan.split(","):
        point, _, rest = entry.strip().partition("=")
        action, _, nth = rest.partition("@")
        if point == name and (not nth or _hits[name] == int(nth)) and _is_first(name):
            _fire(name, action)


def _is_first(name: str) -> bool:
    """Return whether no process has fired this point yet; always True if firings are not recorded."""
    folder = os.environ.get(ONCE_VARIABLE)
    if not folder:
        return True
    try:
        os.close(os.open(os.path.join(folder, name), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True


def _fire(name: str, action: str) -> None:
    """Carry out one action."""
    _logger.warning("failpoint %s fires: %s", name, action)
    verb, _, argument = action.partition(":")
    if verb == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif verb == "killpg":
        os.killpg(os.getpgrp(), signal.SIGKILL)
    elif verb == "raise":
        raise FailpointError(f"Failpoint {name} was set to raise.", remedy=f"Unset {VARIABLE}.", point=name)
    elif verb == "enospc":
        raise OSError(errno.ENOSPC, f"No space left on device (failpoint {name})")
    elif verb == "sleep":
        time.sleep(float(argument))
    else:
        raise ValueError(f"{VARIABLE}: unknown action {action!r} for {name}")
