"""One rank of a DeepSpeed run without Ray: python training_rank.py SETTINGS.pickle RANK WORLD PORT OUT [STORE].

SETTINGS holds ``(WorkerSettings, stream, step to stop at)``. With STORE, training continues from the newest checkpoint
of run ``run`` in it. At the end rank 0 writes whole weights and moments, gathered by DeepSpeed, to OUT, and all ranks
write a checkpoint of run ``run`` into the store that is OUT's folder; rank 0 also writes the losses of the steps, and
what it has of the last step's cells in validation, beside OUT as JSON. Prints the number of files of slices read, and
the sum of all buffers.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from cytoray.training import checkpoint as checkpoints
from cytoray.training import engine as engines
from cytoray.training.loop import _build_module
from cytoray.training.steps import StepRunner
from cytoray.training.validation import Validator


def main() -> None:
    settings_path, rank, world_size, port, out, *source = sys.argv[1:]
    os.environ.update(
        RANK=rank,
        LOCAL_RANK=rank,
        WORLD_SIZE=world_size,
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=port,
        DS_ACCELERATOR="cpu",
    )
    torch.set_num_threads(1)
    settings, stream, num_steps = pickle.loads(Path(settings_path).read_bytes())  # noqa: S301 - written by the test itself
    dist.init_process_group("gloo", rank=int(rank), world_size=int(world_size))
    saved = checkpoints.require_checkpoint(source[0], "run") if source else None
    engine = engines.build_engine(_build_module(settings, saved), settings.config, int(world_size))
    start = 0
    if saved is not None:
        start = saved.state.step
        print(f"read {engines.restore(engine, saved)}")
    runner = StepRunner(engine, settings.config, settings.model, settings.objective)
    results = []
    for step in range(start, num_steps):
        batch = stream.read_step(step, rank=int(rank), world_size=int(world_size))
        results.append(runner.take(batch, runner.plan(batch)))
    engines.average_buffers(engine)
    print(f"buffers {sum(float(buffer.double().sum()) for buffer in engine.module.model.buffers())!r}")
    judged = Validator(batch, settings.objective, stream.options.cells_per_step).judge(engine)
    figures = {"losses": [done.losses for done in runner.fetch(results)], "judged": judged}
    weights, moments = engines.gather_weights(engine), engines.gather_moments(engine)
    if rank == "0":
        save_file(weights | moments, out)
        Path(out).with_suffix(".json").write_text(json.dumps(figures))
    folder = checkpoints.checkpoints_uri(str(Path(out).parent), "run")
    writer = checkpoints.CheckpointWriter(folder, keep=2, attempt="test", timeout_s=60)
    state = checkpoints.TrainerState(step=num_steps, manifest_digest="m", config_digest="c", history=())
    writer.submit(engines.take_snapshot(engine), state)
    writer.wait()
    dist.barrier()


if __name__ == "__main__":
    main()
