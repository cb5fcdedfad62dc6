"""One rank of ``step_traffic`` without Ray: collectives and waits of the host in each step, and CPU seconds."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.host_traffic import HostTraffic
from benchmarks.train_loop_trial import WARM_UP_STEPS, Trial
from cytoray.corpus.streaming.batches import StepBatch
from cytoray.model.transformer import ScGPT
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.training import engine as engines
from cytoray.training.ahead import StepsAhead, Wishes
from cytoray.training.objectives import ObjectiveModule, build_pretraining_objective
from cytoray.training.pretraining import build_model
from cytoray.training.steps import StepRunner, build_host_group

TIMEOUT_S = 300
COUNTED_STEPS = 2


def take_steps(trial: Trial, rank: int, num_workers: int, port: int) -> dict[str, Any]:
    """Take the trial's steps as a run's loop does between two log points; means per step after the first ones."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_workers)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(trial.threads)
    dist.init_process_group("gloo", rank=rank, world_size=num_workers)
    runner, counts = _build_runner(trial, num_workers), Counter[str]()
    with StepsAhead(_read(trial, rank, num_workers), runner, Wishes) as ahead:
        ahead.ask()
        for _ in range(WARM_UP_STEPS):
            _take(runner, ahead)
        for _ in range(COUNTED_STEPS):  # counting slows every operation, so what is counted is not timed
            with HostTraffic() as traffic:
                _take(runner, ahead)
            counts.update(traffic.counts)
        number = trial.num_steps - WARM_UP_STEPS - COUNTED_STEPS
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        for _ in range(number):
            _take(runner, ahead)
        step_s, cpu_s = (time.perf_counter() - began_s) / number, (time.process_time() - began_cpu_s) / number
    dist.barrier()
    means = {name: count / COUNTED_STEPS for name, count in counts.items()}
    return {"counts": means, "step_s": step_s, "cpu_s": cpu_s}


def _take(runner: StepRunner, ahead: StepsAhead) -> None:
    """Take a step, the next one being made ready meanwhile."""
    ready = next(ahead)
    ahead.ask()
    runner.take(ready.batch, ready.plan, ready.parts)


def _read(trial: Trial, rank: int, num_workers: int) -> Iterator[StepBatch]:
    """This rank's minibatches, read beforehand: what reading costs is no part of this."""
    stream = trial.open_stream()
    steps = [stream.read_step(step, rank=rank, world_size=num_workers) for step in range(trial.num_steps)]
    yield from steps


def _build_runner(trial: Trial, num_workers: int) -> StepRunner:
    """The run's engine with its seeded weights, and what takes steps with it."""
    config = trial.config("ranks", num_workers=num_workers)
    pad_id, model = GeneVocabulary.load_default().pad_id, build_model(config)
    objective = build_pretraining_objective(config.objective, pad_id=pad_id)
    torch.manual_seed(config.train.seed)
    engine = engines.build_engine(ObjectiveModule(ScGPT(model, pad_id=pad_id), objective), config, num_workers)
    return StepRunner(engine, config, model, objective, build_host_group(TIMEOUT_S))
