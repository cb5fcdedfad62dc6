"""One rank that takes steps ahead without Ray: python ahead_rank.py SETTINGS.pickle RANK WORLD MEETING OUT.

SETTINGS holds ``({name: WorkerSettings}, stream, number of steps)``. Rank R writes ``OUT.R.json``, for each name:
figures of steps that were planned, taken and fetched one by one, and of the same steps taken ahead and fetched
together, with the traffic of the host in each; the steps taken when rank 1 wished to stop; and how it ended when rank
1 could not read its data.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rank_group import join

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.host_traffic import HostTraffic
from cytoray.corpus.stream import CorpusStream
from cytoray.corpus.streaming.batches import StepBatch
from cytoray.errors import CorpusError
from cytoray.training import engine as engines
from cytoray.training.ahead import StepsAhead, Wishes
from cytoray.training.loop import WorkerSettings, _build_module
from cytoray.training.steps import StepRunner, build_host_group

RAISES_AT, WISHES_AT = 2, 1


def main() -> None:
    settings_path, rank, world_size, meeting, out = sys.argv[1:]
    torch.set_num_threads(1)
    cases, stream, num_steps = pickle.loads(Path(settings_path).read_bytes())  # noqa: S301 - written by the test itself
    join(meeting, rank=int(rank), world_size=int(world_size))
    found = {}
    for name, settings in cases.items():
        found[name] = _go_through(settings, stream, num_steps)
        dist.barrier()
    Path(f"{out}.{rank}.json").write_text(json.dumps(found))
    dist.barrier()


def _go_through(settings: WorkerSettings, stream: CorpusStream, num_steps: int) -> dict[str, Any]:
    """All that is looked at with these settings."""
    found: dict[str, Any] = {}
    runner = _build_runner(settings)
    found["one_by_one"] = []
    for batch in _read(stream, num_steps):
        (figures,) = runner.fetch([runner.take(batch, runner.plan(batch))])
        found["one_by_one"].append(dataclasses.asdict(figures))
    runner.engine.destroy()
    runner = _build_runner(settings)
    results, found["traffic"] = _take_ahead(runner, _read(stream, num_steps))
    with HostTraffic() as traffic:
        figures_of_all = runner.fetch(results)
    found["together"] = [dataclasses.asdict(figures) for figures in figures_of_all]
    found["fetch"] = traffic.counts
    found["stopped"] = _stop(runner, _read(stream, num_steps))
    found["failed"] = _fail(runner, _read(stream, num_steps))
    runner.engine.destroy()
    return found


def _build_runner(settings: WorkerSettings) -> StepRunner:
    """The run's engine and runner."""
    engine = engines.build_engine(_build_module(settings, None), settings.config, dist.get_world_size())
    return StepRunner(engine, settings.config, settings.model, settings.objective, build_host_group(60))


def _read(stream: CorpusStream, num_steps: int) -> Iterator[StepBatch]:
    for step in range(num_steps):
        yield stream.read_step(step, rank=dist.get_rank(), world_size=dist.get_world_size())


def _take_ahead(runner: StepRunner, batches: Iterator[StepBatch]) -> tuple[list[Any], list[dict[str, int]]]:
    """Results of all steps, and the traffic of each."""
    results, traffics = [], []
    with StepsAhead(batches, runner, Wishes) as ahead:
        ahead.ask()
        while True:
            with HostTraffic() as traffic:
                ready = next(ahead, None)
                if ready is None:
                    return results, traffics
                ahead.ask()
                results.append(runner.take(ready.batch, ready.plan, ready.parts))
            traffics.append(dict(traffic.counts))


def _stop(runner: StepRunner, batches: Iterator[StepBatch]) -> list[int]:
    """The steps taken if rank 1 wishes to stop after step ``WISHES_AT``."""
    calls, taken = iter(range(10**6)), []
    with StepsAhead(batches, runner, lambda: Wishes(stop=next(calls) == WISHES_AT and dist.get_rank() == 1)) as ahead:
        ahead.ask()
        for ready in ahead:
            if not ready.wishes.stop:
                ahead.ask()
            runner.take(ready.batch, ready.plan, ready.parts)
            taken.append(ready.batch.step)
            if ready.wishes.stop:
                break
    return taken


def _fail(runner: StepRunner, batches: Iterator[StepBatch]) -> dict[str, Any]:
    """The steps taken, and the error, if rank 1 cannot read step ``RAISES_AT``."""

    def damaged() -> Iterator[StepBatch]:
        for batch in batches:
            if batch.step == RAISES_AT and dist.get_rank() == 1:
                raise CorpusError("Shard 7 is damaged.", remedy="Ingest it again.")
            yield batch

    taken: list[int] = []
    try:
        with StepsAhead(damaged(), runner, Wishes) as ahead:
            ahead.ask()
            for ready in ahead:
                ahead.ask()
                runner.take(ready.batch, ready.plan, ready.parts)
                taken.append(ready.batch.step)
    except CorpusError as error:
        return {"taken": taken, "error": str(error)}
    return {"taken": taken, "error": None}


if __name__ == "__main__":
    main()
