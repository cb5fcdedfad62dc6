"""Messages between a run's workers and its driver: steps and errors one way, the request to stop the other."""

from __future__ import annotations

import logging
import signal
import threading
from dataclasses import dataclass, replace
from typing import Any

import ray

from cytoray import progress
from cytoray.errors import TrainingError

logger = logging.getLogger(__name__)
LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class News:
    """The newest reports of the workers."""

    first_step: int | None = None  # at which the newest workers started
    step: int = 0
    loss: float = float("nan")
    starts: int = 0
    mlflow_run_id: str | None = None
    error: TrainingError | None = None  # that all ranks of the newest workers agreed on
    hardware: tuple[dict[str, str], ...] = ()
    events: tuple[str, ...] = ()


class Board:
    """An actor that receives the reports of rank 0, and that the driver polls."""

    def __init__(self) -> None:
        self._news, self._stop = News(), False

    def begin(self, step: int, hardware: list[dict[str, str]]) -> None:
        """Note that workers have started at ``step``."""
        news = self._news
        event = f"started with {len(hardware)} workers at step {step}" + (
            f", after step {news.step} had been done" if news.starts and news.step > step else ""
        )
        self._news = replace(
            news,
            first_step=step,
            step=max(step, news.step),
            starts=news.starts + 1,
            error=None,
            hardware=tuple(hardware),
            events=(*news.events, event),
        )

    def post(self, step: int, loss: float) -> None:
        """Note the newest step."""
        self._news = replace(self._news, step=step, loss=loss)

    def end(self, mlflow_run_id: str | None) -> None:
        """Note the MLflow run, None if MLflow was never reached."""
        self._news = replace(self._news, mlflow_run_id=mlflow_run_id)

    def note(self, event: str) -> None:
        """Add an event to the run card."""
        self._news = replace(self._news, events=(*self._news.events, event))

    def fail(self, error: TrainingError) -> None:
        """Note the error that all ranks have agreed on; workers that start after it begin without one."""
        if self._news.error is None:
            self._news = replace(self._news, error=error)

    def request_stop(self) -> None:
        """Ask the workers to stop after the current step."""
        self._stop = True

    def is_stopping(self) -> bool:
        """Whether the workers are to stop."""
        return self._stop

    def read(self) -> News:
        """Return the newest reports."""
        return self._news


class Watch:
    """Reports the board's news while the block runs; SIGTERM, or a lost lease, stops the workers.

    A second SIGTERM ends the process at once.
    """

    def __init__(self, board: Any, advance: progress.Advance, *, lost: threading.Event) -> None:
        self._board, self._advance, self._lost = board, advance, lost
        self._shown, self._started, self._num_events = 0, False, 0
        self._over = threading.Event()
        self._asked = False  # by SIGTERM; no Event, whose lock a handler of a signal must not wait for
        self._thread = threading.Thread(target=self._poll, name="cytoray-watch", daemon=True)
        self._before: Any = None

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._on_signal)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
        self._over.set()
        self._thread.join(timeout=5)
        self._show()

    def _on_signal(self, *_: object) -> None:
        """Only set a flag: the polling thread forwards it to the board."""
        self._asked = True
        signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)

    def _poll(self) -> None:
        said = False
        while not self._over.wait(LOOK_EVERY_S):
            if not said and (self._asked or self._lost.is_set()):
                if self._asked:
                    logger.warning("SIGTERM: stopping after the current step and a checkpoint")
                self._board.request_stop.remote()
                said = True
            self._show()

    def _show(self) -> None:
        news: News = ray.get(self._board.read.remote())
        for event in news.events[self._num_events :]:
            logger.info(event)
        self._num_events = len(news.events)
        if not self._started and news.first_step:
            self._advance(news.first_step, already=True)
            self._shown = news.first_step
        self._started = self._started or news.first_step is not None
        if news.step > self._shown:
            self._advance(news.step - self._shown, f"loss {news.loss:.3f}")
            self._shown = news.step
