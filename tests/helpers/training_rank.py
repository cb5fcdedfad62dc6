"""One rank of a DeepSpeed run without Ray: python training_rank.py SETTINGS.pickle RANK WORLD PORT OUT [IN START].

SETTINGS holds ``(WorkerSettings, stream, step to stop at)``. With IN, weights and moments of an earlier run, training
goes on at step START.
"""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from cytoray.training import engine as engines
from cytoray.training.loop import _build_module
from cytoray.training.steps import train_step


def main() -> None:
    settings_path, rank, world_size, port, out, *resume = sys.argv[1:]
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
    module, stored, start = _build_module(settings, None), {}, 0
    if resume:
        stored, start = load_file(resume[0]), int(resume[1])
        moments = {name for name in stored if name.startswith(engines.MOMENTS)}
        module.model.load_state_dict({name: tensor for name, tensor in stored.items() if name not in moments})
    engine = engines.build_engine(module, settings.config, int(world_size))
    if resume:
        engines.restore_moments(engine, stored, step=start)
    for step in range(start, num_steps):
        train_step(engine, stream.read_step(step, rank=int(rank), world_size=int(world_size)), settings)
    weights, moments = engines.gather_weights(engine), engines.gather_moments(engine)
    if rank == "0":
        save_file(weights | moments, out)
    dist.barrier()


if __name__ == "__main__":
    main()
