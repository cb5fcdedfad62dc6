"""What every Ray Train worker runs: steps of a fixed global order, from the last committed checkpoint to the end."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist

from cytoray import storage
from cytoray.corpus.deal import iterate_steps
from cytoray.corpus.ledger import Ledger
from cytoray.corpus.streaming.batches import StepBatch
from cytoray.errors import TrainingError
from cytoray.failpoints import failpoint
from cytoray.model.config import ModelConfig
from cytoray.model.transformer import ScGPT
from cytoray.tokens.keys import combine
from cytoray.tracking import RunLog
from cytoray.training import checkpoint as checkpoints
from cytoray.training import engine as engines
from cytoray.training.config import RunConfig
from cytoray.training.meter import Meter
from cytoray.training.objectives import Objective, ObjectiveModule, Prepared

logger = logging.getLogger(__name__)
HISTORY_POINTS = 200
SHOWN_CELLS = 5


@dataclass(frozen=True)
class WorkerSettings:
    """All that a worker needs; crosses from the driver by pickle."""

    config: RunConfig
    model: ModelConfig
    pad_id: int
    objective: Objective
    manifest_digest: str
    config_digest: str
    run_uuid: str
    initial: checkpoints.Checkpoint | None
    board: Any  # actor handle that is told of each step


def train_worker(arguments: dict[str, Any]) -> None:
    """Train until ``num_steps``; rank 0 logs, and writes checkpoints that all ranks gather while they go on."""
    settings: WorkerSettings = arguments["settings"]
    config, context = settings.config, ray.train.get_context()
    torch.set_num_threads(config.workers.threads_per_worker)
    saved = checkpoints.latest_checkpoint(config.store, config.run)
    step, history = (saved.state.step, list(saved.state.history)) if saved is not None else (0, [])
    batches = _read_steps(step, config.train.num_steps)
    engine = engines.build_engine(_build_module(settings, saved), config, context.get_world_size())
    if saved is not None:
        engines.restore_moments(engine, saved.load_moments(), step=step)
        logger.info("run %s goes on at step %d", config.run, step)
    is_first = context.get_world_rank() == 0
    log = _open_log(settings) if is_first else None
    ledger = Ledger() if config.train.ledger else None
    folder = checkpoints.checkpoints_uri(config.store, config.run)
    writer = checkpoints.CheckpointWriter(folder, keep=config.train.keep_checkpoints) if is_first else None
    meter, saved_step = Meter(), step
    while (batch := meter.take(batches)) is not None:
        assert batch.step == step, f"data is at step {batch.step}, training at {step}"
        done = _train_step(engine, batch, settings)
        step += 1
        if ledger is not None:
            ledger.record(batch)
        if step % max(1, config.train.num_steps // HISTORY_POINTS) == 0 or step == config.train.num_steps:
            history.append({"step": float(step), **done.losses})
        if step % config.train.checkpoint_every == 0 or step == config.train.num_steps:
            with meter.stalled():
                if ledger is not None:
                    place = {"rank": context.get_world_rank(), "world_size": context.get_world_size()}
                    ledger.save(ledger_uri(config), start=saved_step, stop=step, **place)
                _save(engine, settings, writer, checkpoint_state(settings, step, history))
            saved_step = step
        if log is not None:
            _tell(settings, log, step, done, meter)
        failpoint("train.after_step")
    if writer is not None:
        writer.wait()
    dist.barrier()  # no rank is done before the last checkpoint is committed
    if log is not None:
        log.finish()
        ray.get(settings.board.end.remote(log.mlflow_run_id))


@dataclass(frozen=True)
class StepResult:
    """What one optimiser step told, over all ranks."""

    losses: dict[str, float]  # means; ``loss`` is their sum
    learning_rate: float
    gradient_norm: float | None  # before clipping; None where DeepSpeed does not tell
    cells: int
    tokens: int  # real ones
    flops: int  # that the objective needs, see model.flops


def ledger_uri(config: RunConfig) -> str:
    """Where a run's ledger lies."""
    return storage.join(config.store, "runs", config.run, "ledger")


def _read_steps(start: int, stop: int) -> Iterator[StepBatch]:
    """This rank's minibatches, being read from now on; none when the run is already done."""
    return iterate_steps(ray.train.get_dataset_shard("train")) if start < stop else iter(())


def _build_module(settings: WorkerSettings, saved: checkpoints.Checkpoint | None) -> ObjectiveModule:
    """The model with its seeded initial weights, those it starts from, or those it goes on with."""
    torch.manual_seed(settings.config.train.seed)
    model = ScGPT(settings.model, pad_id=settings.pad_id)
    start = saved or settings.initial
    if start is not None:
        missing, unexpected = model.load_state_dict(start.load_weights(), strict=False)
        new_head = [name for name in missing if not name.startswith("cls_decoder.")]
        if unexpected or new_head or (saved is not None and missing):
            raise TrainingError(
                f"Checkpoint {start.uri} does not fit this model: missing {missing}, unexpected {unexpected}.",
                remedy="Use the model settings of the run that made it.",
            )
    return ObjectiveModule(model, settings.objective)


def _train_step(engine: Any, batch: StepBatch, settings: WorkerSettings) -> StepResult:
    """One optimiser step; losses are means over all ranks.

    Losses are divided by the number of terms over all ranks and micro-batches, so the result depends on neither.
    """
    config, rank, world_size = settings.config, dist.get_rank(), dist.get_world_size()
    micro_batches = [settings.objective.prepare(part) for part in batch.split(config.train.accumulation)]
    amounts = _total_amounts(micro_batches, settings, batch.step)
    device = engine.device
    terms = torch.tensor(max(amounts["terms"], 1.0), device=device)
    rate = engines.learning_rate(config.optimizer, batch.step, config.train.num_steps)
    engines.set_learning_rate(engine, rate)
    sums: dict[str, torch.Tensor] = {}
    for index, micro in enumerate(micro_batches):
        torch.manual_seed(int(combine(config.train.seed, batch.step, rank, index)) % 2**63)
        losses = engine(micro.to(device), batch.step)
        total = torch.stack(list(losses.values())).sum()
        # DeepSpeed divides by ranks and by micro-batches; what is wanted is the sum over both.
        engine.backward(total * (world_size * config.train.accumulation) / terms)
        engine.step()
        for name, loss in losses.items():
            sums[name] = sums.get(name, torch.zeros((), device=device)) + loss.detach()
    means = torch.stack(list(sums.values())) / terms
    dist.all_reduce(means)
    values = dict(zip(sums, means.tolist(), strict=True))
    _refuse_infinite(values, batch)
    norm = engine.get_global_grad_norm()
    return StepResult(
        {"loss": sum(values.values()), **values},
        rate,
        None if norm is None else float(norm),
        int(amounts["cells"]),
        int(amounts["tokens"]),
        int(amounts["flops"]),
    )


def _total_amounts(micro_batches: list[Prepared], settings: WorkerSettings, step: int) -> dict[str, float]:
    """Terms, cells, tokens and needed operations of a step over all ranks and micro-batches."""
    objective, names = settings.objective, ("terms", "cells", "tokens", "flops")
    parts = [(objective.num_terms(micro), *objective.amounts(settings.model, micro, step)) for micro in micro_batches]
    totals = torch.tensor(parts, dtype=torch.float64).sum(dim=0)
    dist.all_reduce(totals)
    return dict(zip(names, totals.tolist(), strict=True))


def _refuse_infinite(losses: dict[str, float], batch: StepBatch) -> None:
    """TrainingError that names the first cells of a step whose loss is not finite."""
    if all(math.isfinite(value) for value in losses.values()):
        return
    cells = [f"{cell:016x}" for cell in batch.cell_ids[:SHOWN_CELLS]]
    raise TrainingError(
        f"The loss is not finite at step {batch.step}: {losses}.",
        remedy="Lower optimizer.learning_rate; the last committed checkpoint is intact.",
        step=batch.step,
        cells=cells,
    )


def _open_log(settings: WorkerSettings) -> RunLog:
    """The run's log, new or gone on with."""
    config = settings.config
    log = RunLog(config.tracking, run_uuid=settings.run_uuid, run_name=config.run)
    log.set_tags(
        {
            "cytoray.corpus_manifest": settings.manifest_digest,
            "cytoray.config": settings.config_digest,
            "cytoray.store": config.store,
        }
    )
    return log


def _tell(settings: WorkerSettings, log: RunLog, step: int, done: StepResult, meter: Meter) -> None:
    """Journal one step and tell whoever watches."""
    figures = meter.end_step(cells=done.cells, tokens=done.tokens, flops=done.flops)
    norm = {} if done.gradient_norm is None else {"gradient_norm": done.gradient_norm}
    log.log_metrics({**done.losses, "learning_rate": done.learning_rate, **norm, **figures}, step=step)
    settings.board.post.remote(step, done.losses["loss"])


def checkpoint_state(settings: WorkerSettings, step: int, history: list[dict[str, float]]) -> checkpoints.TrainerState:
    """What a checkpoint after ``step`` steps has to say of its run."""
    return checkpoints.TrainerState(
        step=step,
        manifest_digest=settings.manifest_digest,
        config_digest=settings.config_digest,
        history=tuple(history),
    )


def _save(
    engine: Any,
    settings: WorkerSettings,
    writer: checkpoints.CheckpointWriter | None,
    state: checkpoints.TrainerState,
) -> None:
    """Gather copies on all ranks, and have rank 0 write them while training goes on."""
    weights, moments = engines.gather_weights(engine), engines.gather_moments(engine)
    if writer is not None:
        writer.submit(weights, moments, state)
