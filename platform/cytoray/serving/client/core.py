"""The part that ``Client`` and ``AsyncClient`` share: every call is a coroutine that returns what was received."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cytoray.progress import stage
from cytoray.serving.client.asking import Asker, Received
from cytoray.serving.client.connection import Connection
from cytoray.serving.client.jobs import AsyncJob, JobRequest, Jobs
from cytoray.serving.client.questions import Asked
from cytoray.serving.client.settings import Progress, Settings


class Core:
    """One service, asked by coroutines of one event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.connection = Connection(settings)
        self._asker = Asker(self.connection)

    async def ask(self, asked: Asked) -> Received:
        """Ask, with a display of progress if that is wanted."""
        with _display(self.settings.progress, asked) as progress:
            return await self._asker.ask(asked, progress=progress)

    async def submit_job(self, cells: Any, task: str, options: dict[str, Any]) -> AsyncJob:
        """Submit a job; ``options`` are format, model, parameters and key of ``JobRequest``."""
        jobs = Jobs(self.connection)
        return AsyncJob(jobs, await jobs.submit(JobRequest(cells, task, **{"model": self.settings.model, **options})))

    async def find_job(self, job_id: str) -> AsyncJob:
        """Return a job by its id."""
        jobs = Jobs(self.connection)
        return AsyncJob(jobs, await jobs.find(job_id))

    async def close(self) -> None:
        """Close the connections."""
        await self.connection.close()


@contextmanager
def _display(progress: bool | Progress, asked: Asked) -> Iterator[Progress | None]:
    """Give a function that shows progress; True shows tqdm's bar if it is installed, else that of the command line."""
    if asked.source is None or progress is False:
        yield None
        return
    if callable(progress):
        yield progress
        return
    total, done = asked.source.num_cells, 0
    try:
        from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        shown: Any = stage(asked.endpoint.name, total=total, unit="cells")
    else:
        shown = tqdm(total=total, unit="cells", desc=asked.endpoint.name)
    with shown as bar:
        update = getattr(bar, "update", bar)

        def show(answered: int, _: int) -> None:
            """Show the cells answered since the last time; fewer if some are asked about again."""
            nonlocal done
            update(answered - done)
            done = answered

        yield show
