"""Change the processes of a running service from inside: ``python chaos_driver.py ACTION [ARGUMENT]``, one JSON line.

``clock SECONDS`` moves the wall clock of HTTP servers and replicas, ``poison VALUE`` makes the model fail on cells with
that value, and ``restore`` undoes both and reports how often they had an effect.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from typing import Any


def move_clock(_actor: object, seconds: float) -> int:
    """Add ``seconds`` to what ``time.time`` returns in this process."""
    import builtins
    import time

    real, seen = time.time, [0]

    def moved() -> float:
        seen[0] += 1
        return real() + seconds

    builtins.chaos_clock = (real, seen)  # type: ignore[attr-defined]
    time.time = moved
    return 1


def poison(_actor: object, value: float) -> int:
    """Make the models of this process fail on cells with ``value``; returns the number of models."""
    import builtins
    import gc

    gc.unfreeze()  # Serve has excluded what was there at the start
    models = [each for each in gc.get_objects() if type(each).__name__ == "ServedModel"]
    gc.freeze()
    seen, undo = [0], []

    def spoil(predictor: Any) -> Any:
        class Poisoned:
            def predict(self, cells: Any) -> Any:
                if (cells.values == value).any():
                    seen[0] += 1
                    raise ZeroDivisionError("poison")
                return predictor.predict(cells)

        return Poisoned()

    for model in models:
        undo.append((model, model.predictor))
        object.__setattr__(model, "predictor", spoil(model.predictor))
    builtins.chaos_poison = (undo, seen)  # type: ignore[attr-defined]
    return len(models)


def restore(_actor: object, _argument: float) -> int:
    """Undo both; returns how often the clock was read or the model failed."""
    import builtins
    import time

    count = 0
    if hasattr(builtins, "chaos_clock"):
        time.time, seen = builtins.chaos_clock
        count += seen[0]
        del builtins.chaos_clock
    if hasattr(builtins, "chaos_poison"):
        undo, seen = builtins.chaos_poison
        for model, predictor in undo:
            object.__setattr__(model, "predictor", predictor)
        count += seen[0]
        del builtins.chaos_poison
    return count


ACTIONS: dict[str, tuple[Callable[[object, float], int], bool]] = {
    "clock": (move_clock, True),
    "poison": (poison, False),
    "restore": (restore, True),
}


def main(action: str, argument: float) -> None:
    """Run an action in all replicas, and in the HTTP servers if it concerns them."""
    warnings.simplefilter("ignore")
    import ray

    from cytoray.serving.processes import find_processes

    ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
    servers, replicas = find_processes()
    work, everywhere = ACTIONS[action]
    actors = replicas | (servers if everywhere else {})
    found = {name: ray.get(actor.__ray_call__.remote(work, argument), timeout=60) for name, actor in actors.items()}
    print(json.dumps(found))
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 0.0)
