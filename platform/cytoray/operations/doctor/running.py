"""Run checks side by side, each on its own thread, and report by a deadline whatever hangs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from cytoray.operations.doctor.findings import Check, Finding

TIME_LIMIT_S = 15.0  # for all checks together
logger = logging.getLogger(__name__)


@dataclass
class _Running:
    """A check on its thread, with its findings so far."""

    check: Check
    findings: list[Finding] = field(default_factory=list)
    has_ended: bool = False

    def look(self) -> None:
        """Collect findings until the check ends."""
        try:
            for finding in self.check.look():
                self.findings.append(finding)
        except Exception as error:
            logger.debug("check %s", self.check.name, exc_info=True)
            seen = f"the check itself failed: {type(error).__name__}: {error}"
            self.findings.append(Finding(self.check.name, "fail", seen[:500], "Please report this."))
        self.has_ended = True

    def report(self, limit_s: float) -> list[Finding]:
        """Return what was found, and that it did not end if so."""
        if self.has_ended:
            return list(self.findings)
        late = Finding(self.check.name, self.check.late, f"no answer within {limit_s:.0f} s", self.check.remedy)
        return [*self.findings, late]


def run_checks(checks: Sequence[Check], *, limit_s: float = TIME_LIMIT_S) -> list[Finding]:
    """Run all checks at once; returns their findings in the order of ``checks`` within ``limit_s`` seconds."""
    running = [_Running(check) for check in checks]
    # Daemons: one that hangs must not keep the process.
    threads = [threading.Thread(target=each.look, name=each.check.name, daemon=True) for each in running]
    deadline = time.monotonic() + limit_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [finding for each in running for finding in each.report(limit_s)]
