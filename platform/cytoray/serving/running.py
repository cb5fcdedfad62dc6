"""Run a service in the foreground: start it, wait for SIGTERM or Ctrl-C, answer what is in flight, and stop it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

from cytoray.cluster import connected, is_shared, prepare_auth
from cytoray.serving.config import ServeConfig
from cytoray.serving.edge.keys import read_keys
from cytoray.serving.hosting.planning import plan_models

logger = logging.getLogger(__name__)
POLL_S = 0.1
LINGER_S = 0.3  # the last answers are on their way through the sockets of Serve's HTTP server
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def serve_until_stopped(settings: ServeConfig, *, num_cpus: int, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C; ``on_ready`` is called with the URL.

    Then new requests are refused and those in flight are answered, for ``drain_timeout_s`` at most; a second signal
    ends at once. Raises as ``app.run_service``, and NotFoundError or ConfigError for a bad file of keys.
    """
    if settings.edge.needs_key:
        read_keys(str(settings.edge.keys_file))
    prepare_auth()  # before the first import of Ray, which the edge does
    with ThreadPoolExecutor(1, thread_name_prefix="cytoray-pin") as threads:
        pinning = threads.submit(plan_models, settings)
        if not is_shared():
            from cytoray.serving.edge.proxy import prepare_environment

            prepare_environment(settings, os.environ)
        with connected(num_cpus=num_cpus, for_data=False), _stop_requests() as stops:
            from cytoray.serving.app import run_service, stop_service

            try:
                url = run_service(settings, planned=pinning.result(), **settings.listening())
                on_ready(url)
                stops.wait_for_first()
                _drain(timeout_s=settings.drain_timeout_s, stops=stops)
            finally:
                if is_shared():  # a Ray started here is stopped as a whole
                    stop_service()


class _Stops:
    """The requests to stop that have come as signals."""

    def __init__(self) -> None:
        self.count = 0
        self._is_serving = False
        self._first = threading.Event()

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """Count a signal; while the service is being started it ends that."""
        self.count += 1
        self._first.set()
        if not self._is_serving:
            raise KeyboardInterrupt

    def wait_for_first(self) -> None:
        """Wait for a signal; from here on signals do not interrupt what this thread does."""
        self._is_serving = True
        self._first.wait()


@contextlib.contextmanager
def _stop_requests() -> Iterator[_Stops]:
    """Count signals in the block, instead of Ray's handlers, which end the process with a stack trace."""
    stops = _Stops()
    before = {number: signal.signal(number, stops.on_signal) for number in STOP_SIGNALS}
    try:
        yield stops
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _drain(*, timeout_s: float, stops: _Stops) -> None:
    """Refuse new requests, and wait until those in flight are answered, or a second signal comes."""
    from cytoray.serving.processes import close_gates

    deadline = time.monotonic() + timeout_s
    left = close_gates()
    logger.info("stopping: %d requests in flight", left)
    while left and time.monotonic() < deadline and stops.count < 2:
        time.sleep(POLL_S)
        left = close_gates()
    if left:
        logger.warning("%d requests were not answered", left)
    else:
        time.sleep(LINGER_S)
