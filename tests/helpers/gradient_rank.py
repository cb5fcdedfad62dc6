"""One rank that computes the gradients of one step by many DeepSpeed engines, one after another, without Ray.

python gradient_rank.py CASES.pickle RANK WORLD MEETING OUT: CASES holds ``{name: (WorkerSettings, stream)}``; rank 0
writes ``OUT`` with every parameter's full gradient as ``<case>/<parameter>``, after the reduction and before clipping.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rank_group import join
from safetensors.torch import save_file

from cytoray.corpus.stream import CorpusStream
from cytoray.training import engine as engines
from cytoray.training.loop import WorkerSettings, _build_module
from cytoray.training.steps import StepRunner


def main() -> None:
    cases_path, rank, world_size, meeting, out = sys.argv[1:]
    torch.set_num_threads(1)
    cases = pickle.loads(Path(cases_path).read_bytes())  # noqa: S301 - written by the test itself
    join(meeting, rank=int(rank), world_size=int(world_size))
    found: dict[str, torch.Tensor] = {}
    for name, (settings, stream) in cases.items():
        gradients = _gradients(stream, settings, int(rank), int(world_size))
        found |= {f"{name}/{parameter}": gradient for parameter, gradient in gradients.items()}
    if rank == "0":
        save_file(found, out)
    dist.barrier()


def _gradients(stream: CorpusStream, settings: WorkerSettings, rank: int, world_size: int) -> dict[str, torch.Tensor]:
    """Gradients of step 0 by one engine."""
    engine = engines.build_engine(_build_module(settings, None), settings.config, world_size)
    found: dict[str, torch.Tensor] = {}
    update = engine._take_model_step  # after the reduction, which the step begins with

    def look_then_update(*arguments: Any, **options: Any) -> Any:
        found.update(engines.gather_gradients(engine))
        return update(*arguments, **options)

    engine._take_model_step = look_then_update
    runner = StepRunner(engine, settings.config, settings.model, settings.objective)
    batch = stream.read_step(0, rank=rank, world_size=world_size)
    runner.take(batch, runner.plan(batch))
    engine._take_model_step = update
    engine.destroy()
    return found


if __name__ == "__main__":
    main()
