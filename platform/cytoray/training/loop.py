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
from cytoray.training.objectives import Objective, ObjectiveModule

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
    """Train until ``num_steps``; rank 0 logs, and writes checkpoints that all ranks gather."""
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
    log = _open_log(settings) if context.get_world_rank() == 0 else None
    ledger = Ledger() if config.train.ledger else None
    saved_step = step
    for batch in batches:
        assert batch.step == step, f"data is at step {batch.step}, training at {step}"
        losses = _train_step(engine, batch, settings)
        step += 1
        if ledger is not None:
            ledger.record(batch)
        if log is not None:
            _tell(settings, log, step, losses)
        if step % max(1, config.train.num_steps // HISTORY_POINTS) == 0 or step == config.train.num_steps:
            history.append({"step": float(step), **losses})
        if step % config.train.checkpoint_every == 0 or step == config.train.num_steps:
            if ledger is not None:
                place = {"rank": context.get_world_rank(), "world_size": context.get_world_size()}
                ledger.save(ledger_uri(config), start=saved_step, stop=step, **place)
            _save(engine, settings, step, history)
            saved_step = step
        failpoint("train.after_step")
    if log is not None:
        log.finish()
        ray.get(settings.board.end.remote(log.mlflow_run_id))


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


def _train_step(engine: Any, batch: StepBatch, settings: WorkerSettings) -> dict[str, float]:
    """One optimiser step; returns the mean losses over all ranks.

    Losses are divided by the number of terms over all ranks and micro-batches, so the result depends on neither.
    """
    config, rank, world_size = settings.config, dist.get_rank(), dist.get_world_size()
    micro_batches = [settings.objective.prepare(part) for part in batch.split(config.train.accumulation)]
    terms = torch.tensor(float(sum(settings.objective.num_terms(micro) for micro in micro_batches)))
    device = engine.device
    terms = terms.to(device)
    dist.all_reduce(terms)
    engines.set_learning_rate(engine, engines.learning_rate(config.optimizer, batch.step, config.train.num_steps))
    sums: dict[str, torch.Tensor] = {}
    for index, micro in enumerate(micro_batches):
        torch.manual_seed(int(combine(config.train.seed, batch.step, rank, index)) % 2**63)
        losses = engine(micro.to(device), batch.step)
        total = torch.stack(list(losses.values())).sum()
        # DeepSpeed divides by ranks and by micro-batches; what is wanted is the sum over both.
        engine.backward(total * (world_size * config.train.accumulation) / terms.clamp(min=1))
        engine.step()
        for name, loss in losses.items():
            sums[name] = sums.get(name, torch.zeros((), device=device)) + loss.detach()
    means = torch.stack(list(sums.values())) / terms.clamp(min=1)
    dist.all_reduce(means)
    values = dict(zip(sums, means.tolist(), strict=True))
    if not all(math.isfinite(value) for value in values.values()):
        cells = [f"{cell:016x}" for cell in batch.cell_ids[:SHOWN_CELLS]]
        raise TrainingError(
            f"The loss is not finite at step {batch.step}: {values}.",
            remedy="Lower optimizer.learning_rate; the last committed checkpoint is intact.",
            step=batch.step,
            cells=cells,
        )
    return {"loss": sum(values.values()), **values}


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


def _tell(settings: WorkerSettings, log: RunLog, step: int, losses: dict[str, float]) -> None:
    """Journal one step and tell whoever watches."""
    log.log_metrics(losses, step=step)
    settings.board.post.remote(step, losses["loss"])


def _save(engine: Any, settings: WorkerSettings, step: int, history: list[dict[str, float]]) -> None:
    """Gather on all ranks, write from rank 0, and let none go on before it is committed."""
    weights, moments = engines.gather_weights(engine), engines.gather_moments(engine)
    config = settings.config
    if dist.get_rank() == 0:
        state = checkpoints.TrainerState(
            step=step,
            manifest_digest=settings.manifest_digest,
            config_digest=settings.config_digest,
            history=tuple(history),
        )
        folder = checkpoints.checkpoints_uri(config.store, config.run)
        checkpoints.save_checkpoint(folder, weights, moments, state)
        checkpoints.sweep(folder, keep=config.train.keep_checkpoints)
    dist.barrier()
