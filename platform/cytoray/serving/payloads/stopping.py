"""Stop the work on a request whose client has left or whose time is over."""

from __future__ import annotations

import threading

from cytoray.errors import RequestError


class Stop:
    """A flag that the work on a request looks at between its steps."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Ask the work to stop."""
        self._event.set()

    def check(self) -> None:
        """Raise RequestError if the work was asked to stop; nobody reads it."""
        if self._event.is_set():
            raise RequestError("The request was given up.", code="client_closed")


NEVER = Stop()
