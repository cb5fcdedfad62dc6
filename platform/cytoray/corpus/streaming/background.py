"""Daemon threads whose errors are not lost, and bounded room for what they produce."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future


def start_daemon(work: Callable[[], None], *, name: str) -> Future[None]:
    """Run ``work`` on a daemon thread; the future's ``result`` raises what the work raised.

    An interpreter that exits joins the threads of a pool, and would hang on one that waits for room.
    """
    done: Future[None] = Future()

    def run() -> None:
        """Do the work and keep its result or error."""
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again by `result`
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Thread(target=run, name=name, daemon=True).start()
    return done


class Room:
    """A bounded number of places for results made ahead, which a consumer frees and may close.

    An abandoned consumer closes it from a finalizer, and Python runs finalizers on any thread at any point, even
    within ``take``. Therefore the places are a ``SimpleQueue``, whose ``put`` is reentrant; a semaphore's lock is not.
    """

    def __init__(self, num_places: int) -> None:
        self._places: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.closed = False
        self.free(num_places)

    def take(self) -> bool:
        """Wait for a free place; False once the room is closed."""
        if not self.closed:
            self._places.get()
        return not self.closed

    def free(self, num_places: int = 1) -> None:
        """Make places free."""
        for _ in range(num_places):
            self._places.put(None)

    def close(self) -> None:
        """Let ``take`` return False from now on, even if it is waiting."""
        self.closed = True
        self._places.put(None)
