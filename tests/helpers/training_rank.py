"""One rank of DeepSpeed runs without Ray: python training_rank.py JOBS.pickle RANK WORLD MEETING.

JOBS holds ``(WorkerSettings, stream, step to stop at, folder, store or None)`` for each run, one after another. With a
store, training continues from the newest checkpoint of run ``run`` in it. At the end rank 0 writes whole weights and
moments, gathered by DeepSpeed, to ``out.safetensors`` in the folder, and all ranks write a checkpoint of run ``run``
into the folder as a store; rank 0 also writes to ``out.json`` the losses of the steps, and what it has of the last
step's cells in validation. Rank R writes the number of files of slices that it read to ``read.R``, and the sum of all
buffers to ``buffers.R``.
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rank_group import join
from safetensors.torch import save_file

from cytoray.corpus.stream import CorpusStream
from cytoray.training import checkpoint as checkpoints
from cytoray.training import engine as engines
from cytoray.training.loop import WorkerSettings, _build_module
from cytoray.training.steps import StepRunner
from cytoray.training.validation import Validator


def main() -> None:
    jobs_path, rank, world_size, meeting = sys.argv[1:]
    torch.set_num_threads(1)
    jobs = pickle.loads(Path(jobs_path).read_bytes())  # noqa: S301 - written by the test itself
    join(meeting, rank=int(rank), world_size=int(world_size))
    for job in jobs:
        _train(*job)
        dist.barrier()


def _train(settings: WorkerSettings, stream: CorpusStream, num_steps: int, *folders: Any) -> None:
    """One run: into the first folder, from the checkpoint in the second one if that is not None."""
    (folder, source), rank, world_size = folders, dist.get_rank(), dist.get_world_size()
    saved = checkpoints.require_checkpoint(str(source), "run") if source is not None else None
    engine = engines.build_engine(_build_module(settings, saved), settings.config, world_size)
    start = 0
    if saved is not None:
        start = saved.state.step
        (folder / f"read.{rank}").write_text(str(engines.restore(engine, saved)))
    runner = StepRunner(engine, settings.config, settings.model, settings.objective)
    results = []
    for step in range(start, num_steps):
        batch = stream.read_step(step, rank=rank, world_size=world_size)
        results.append(runner.take(batch, runner.plan(batch)))
    engines.average_buffers(engine)
    buffers = sum(float(buffer.double().sum()) for buffer in engine.module.model.buffers())
    (folder / f"buffers.{rank}").write_text(repr(buffers))
    judged = Validator(batch, settings.objective, stream.options.cells_per_step).judge(engine)
    figures = {"losses": [done.losses for done in runner.fetch(results)], "judged": judged}
    weights, moments = engines.gather_weights(engine), engines.gather_moments(engine)
    if rank == 0:
        save_file(weights | moments, folder / "out.safetensors")
        (folder / "out.json").write_text(json.dumps(figures))
    uri = checkpoints.checkpoints_uri(str(folder), "run")
    writer = checkpoints.CheckpointWriter(uri, keep=2, attempt="test", timeout_s=60)
    state = checkpoints.TrainerState(step=num_steps, manifest_digest="m", config_digest="c", history=())
    writer.submit(engines.take_snapshot(engine), state)
    writer.wait()
    engine.destroy()


if __name__ == "__main__":
    main()
