"""Work on a thread that nobody has to wait for when the process ends, and whose error is not lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future


def start_daemon(work: Callable[[], None], *, name: str) -> Future[None]:
    """Run ``work`` on a daemon thread; the future's ``result`` raises what the work raised.

    An interpreter that exits joins the threads of a pool, and would hang on one that waits for room.
    """
    done: Future[None] = Future()

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is raised where the result is wanted
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Thread(target=run, name=name, daemon=True).start()
    return done
