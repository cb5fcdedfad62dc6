"""A protocol in a process of its own, that a failpoint kills: ``python crash_driver.py SCENARIO FOLDER SHARED MODE``.

MODE ``run`` does the protocol from the beginning; ``recover`` first looks at what is visible, does it again, looks once
more and tidies up. ``FOLDER/result.json`` gets the result, and how often each failpoint was passed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cytoray import failpoints


@dataclass(frozen=True)
class Scenario:
    """A protocol with a deterministic result that may be killed and done again.

    Attributes:
        run: Does it, or what is missing of it; returns what has to be equal.
        look: Fails if a reader would see something that is not whole.
        tidy: Collects garbage, and fails if something is left that nothing refers to.
        points: Prefixes of its failpoints.
    """

    run: Callable[[Path, Path], Any]
    look: Callable[[Path], None]
    tidy: Callable[[Path], None]
    points: tuple[str, ...]


def find_scenarios() -> dict[str, Scenario]:
    """All scenarios by name."""
    import crash_registry
    import crash_stores

    return {**crash_stores.SCENARIOS, **crash_registry.SCENARIOS}


def main(name: str, folder: Path, shared: Path, mode: str) -> None:
    """Do one scenario."""
    scenario = find_scenarios()[name]
    folder.mkdir(parents=True, exist_ok=True)
    if mode == "recover":
        scenario.look(folder)
    found = scenario.run(folder, shared)
    hits = dict(failpoints._hits)
    if mode == "recover":
        scenario.look(folder)
        scenario.tidy(folder)
        scenario.look(folder)
    (folder / "result.json").write_text(json.dumps({"result": found, "hits": hits}, sort_keys=True))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
