"""The training loop of every Ray Train worker: steps in a fixed global order, from the last committed checkpoint."""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import ray.train
import torch
import torch.distributed as dist
from torch import Tensor

from cytoray import storage
from cytoray.corpus.deal import iterate_steps
from cytoray.corpus.ledger import Ledger
from cytoray.corpus.stream import CorpusStream
from cytoray.corpus.streaming.batches import StepBatch
from cytoray.errors import TrainingError
from cytoray.failpoints import failpoint
from cytoray.model.config import ModelConfig
from cytoray.model.gene_rows import train_rows
from cytoray.model.groups import freeze
from cytoray.model.transformer import ScGPT
from cytoray.runs import run_folder
from cytoray.tracking import RunLog
from cytoray.training import checkpoint as checkpoints
from cytoray.training import engine as engines
from cytoray.training import metrics
from cytoray.training.agreement import AgreedError, run_together
from cytoray.training.ahead import ReadyStep, StepsAhead, Wishes
from cytoray.training.averaging import WeightAverage
from cytoray.training.config import RunConfig
from cytoray.training.hardware import describe_worker, package_versions
from cytoray.training.initial import SharedWeights
from cytoray.training.lease import Lease, LeaseLostError
from cytoray.training.meter import Meter
from cytoray.training.objectives import Objective, ObjectiveModule
from cytoray.training.result import is_finished
from cytoray.training.step_log import StepLog
from cytoray.training.steps import StepResult, StepRunner, build_host_group, limit_waits
from cytoray.training.validation import Validator

logger = logging.getLogger(__name__)
SHOWN_CELLS = 5
LOOK_EVERY_S = 5.0  # between checks for nodes that are about to be preempted, which all workers make together
HEAR_EVERY_S = 0.5  # between questions to the board whether to stop


@dataclass(frozen=True)
class WorkerSettings:
    """Everything a worker needs; pickled by the driver."""

    config: RunConfig
    model: ModelConfig
    pad_id: int
    objective: Objective
    manifest_digest: str
    config_digest: str
    run_uuid: str
    initial: SharedWeights | None
    board: Any  # handle of the actor that receives each step
    held_out: CorpusStream | None = None
    rows: npt.NDArray[np.int64] | None = None  # ids of the genes whose embeddings are trained; None: all
    lease: Lease | None = None  # None only in tests and tools that start no driver


def train_worker(arguments: dict[str, Any]) -> None:
    """Train until ``num_steps`` or a request to stop.

    An error that all ranks agree on goes to the board and ends the run; after any other Ray Train restarts the workers.
    """
    settings: WorkerSettings = arguments["settings"]
    torch.set_num_threads(settings.config.workers.threads_per_worker)
    trainer = None
    try:
        trainer = Trainer.start(settings)
        trainer.run()
    except AgreedError as agreed:
        if dist.get_rank() == 0 and not isinstance(agreed.error, LeaseLostError):
            log = _open_log(settings) if trainer is None or trainer.log is None else trainer.log
            log.finish("FAILED")
        ray.get(settings.board.fail.remote(agreed.error))


class Trainer:
    """One rank of a run. All ranks do the same; rank 0 also logs and commits checkpoints."""

    def __init__(self, settings: WorkerSettings, saved: checkpoints.Checkpoint | None, *, attempt: str) -> None:
        config = settings.config
        self.settings, self.config = settings, config
        self.state = saved.state if saved is not None else _first_state(settings)
        self.step, self.saved_step = self.state.step, self.state.step
        self.skipped = list(self.state.skipped)
        self.history, self.validation = list(self.state.history), list(self.state.validation)
        self.elapsed_before, self.started = self.state.elapsed_s, time.monotonic()
        module = run_together(lambda: _build_module(settings, saved))
        self.engine = engines.build_engine(module, config, dist.get_world_size())
        if saved is not None:
            run_together(lambda: engines.restore(self.engine, saved))
            logger.info("run %s continues at step %d", config.run, self.step)
        self.average = (
            None
            if config.train.ema_decay is None
            else WeightAverage(self.engine, decay=config.train.ema_decay, saved=saved.load_ema() if saved else None)
        )
        host_group = build_host_group(config.workers.collective_timeout_s)
        limit_waits(config.workers.collective_timeout_s)
        self.runner = StepRunner(self.engine, config, settings.model, settings.objective, host_group)
        self.validator = None if settings.held_out is None else Validator.read(settings.held_out, settings.objective)
        self.log = _open_log(settings) if dist.get_rank() == 0 else None
        self.step_log = StepLog(self.runner, self.log, settings.board, config)
        self.ledger = Ledger() if config.train.ledger else None
        folder = checkpoints.checkpoints_uri(config.store, config.run)
        keep = config.train.keep_checkpoints
        patience = float(config.workers.collective_timeout_s)
        self.writer = checkpoints.CheckpointWriter(
            folder, keep=keep, attempt=attempt, timeout_s=patience, lease=settings.lease
        )
        self.meter = Meter()
        self.selected_by = self.state.selected_by
        self.in_a_row = 0  # consecutive skipped steps
        self.heard = self.looked = time.monotonic()

    @staticmethod
    def start(settings: WorkerSettings) -> Trainer:
        """Start from the newest intact checkpoint; rank 0 finds it and names this start of the workers."""
        config = settings.config
        found: list[Any] = [None, None]
        if dist.get_rank() == 0:
            found = [checkpoints.latest_checkpoint(config.store, config.run), uuid.uuid4().hex]
        dist.broadcast_object_list(found, src=0)
        if settings.lease is not None:
            run_together(settings.lease.check)
        return Trainer(settings, found[0], attempt=found[1])

    def run(self) -> None:
        """Train; at the end, or when stopped, a checkpoint is committed before any rank returns."""
        self._report_start()
        with StepsAhead(self._batches(), self.runner, self._wishes) as ahead:
            ahead.ask()
            stopping = False
            while not stopping and (ready := self.meter.take(ahead)) is not None:
                stopping = ready.wishes.stop
                if not stopping:
                    ahead.ask()
                self._take(ready)
                leaving = ready.wishes.look and self._is_node_leaving()
                is_last = self.step == self.config.train.num_steps
                if self.step % self.config.train.checkpoint_every == 0 or is_last or stopping or leaving:
                    self._save()
                    stopping = stopping or self._is_finished
                failpoint("train.after_step")
        self.writer.wait()
        if dist.get_rank() == 0:
            self.writer.clean_up()
        dist.barrier()  # no rank returns before the last checkpoint is committed
        self._close_log()

    def _take(self, ready: ReadyStep) -> None:
        """Take one step; the host waits for its losses only if it was left out, or steps are to be logged."""
        batch = ready.batch
        assert batch.step == self.step, f"data is at step {batch.step}, training at {self.step}"
        done = self.runner.take(batch, ready.plan, ready.parts)
        self.step += 1
        rates = {} if self.log is None else self.meter.end_step(done.amounts, self.engine.device)
        self.step_log.add(self.step, done, rates)
        if ready.wishes.log or self.step_log.is_due() or not done.applied:
            self.history += self.step_log.write()
        self._note(batch, done)

    def _wishes(self) -> Wishes:
        """The wishes of this rank for the next step, by rank 0's clock; called by the thread that prepares it."""
        if dist.get_rank():
            return Wishes()
        now, stop, look = time.monotonic(), False, False
        if now - self.heard >= HEAR_EVERY_S:
            self.heard, stop = now, ray.get(self.settings.board.is_stopping.remote())
        if now - self.looked >= LOOK_EVERY_S:
            self.looked, look = now, True
        return Wishes(stop, look, self.step_log.is_stale())

    @property
    def _is_finished(self) -> bool:
        return is_finished(self.config, self.step, self.validation, selected_by=self.selected_by)

    def _batches(self) -> Iterator[StepBatch]:
        """Start reading this rank's minibatches; empty if the run is already done."""
        return iterate_steps(ray.train.get_dataset_shard("train")) if not self._is_finished else iter(())

    def _note(self, batch: StepBatch, done: StepResult) -> None:
        """Record a step; raises AgreedError if too many in a row were skipped."""
        if self.ledger is not None:
            self.ledger.record(batch)
        self.in_a_row = 0 if done.applied else self.in_a_row + 1
        if done.applied:
            if self.average is not None:
                self.average.update()
            return
        self.skipped.append(batch.step)
        if self.in_a_row > self.config.train.max_skipped_steps:
            self.writer.wait()
            _give_up(batch, self.step_log.losses, self.in_a_row)
        if dist.get_rank() == 0:
            event = f"step {batch.step} was skipped: its gradient is not finite (losses {self.step_log.losses})"
            self.settings.board.note.remote(event)

    def _save(self) -> None:
        """Validate if cells are held out, copy this rank's part of a checkpoint, and start writing it."""
        self.history += self.step_log.write()
        with self.meter.stalled():
            if self.ledger is not None:
                place = {"rank": dist.get_rank(), "world_size": dist.get_world_size()}
                self.ledger.save(ledger_uri(self.config), start=self.saved_step, stop=self.step, **place)
        engines.average_buffers(self.engine)
        if self.validator is not None:
            with self.meter.validating():
                self._validate(self.validator)
        with self.meter.stalled():
            averages = None if self.average is None else self.average.weights()
            self.writer.submit(engines.take_snapshot(self.engine, averages=averages), self._state())
        self.saved_step = self.step

    def _validate(self, validator: Validator) -> None:
        """Validate the weights, or their average if one is kept, on the held-out cells."""
        if self.average is None:
            found = validator.judge(self.engine)
        else:
            with self.average.swapped_in():
                found = validator.judge(self.engine)
        self.validation = [point for point in self.validation if point["step"] < self.step]
        self.selected_by = next(iter(found))
        # JSON has no numbers that are not finite.
        kept = {name: value for name, value in found.items() if math.isfinite(value)}
        self.validation.append({"step": float(self.step), **kept})
        if self.log is not None:
            self.log.log_metrics({f"validation_{name}": value for name, value in found.items()}, step=self.step)

    def _state(self) -> checkpoints.TrainerState:
        """Return the state for a checkpoint of the current step."""
        metric = None
        if self.validation and self.validation[-1]["step"] == self.step:
            metric = self.validation[-1].get(self.selected_by)
        return checkpoints.TrainerState(
            step=self.step,
            manifest_digest=self.settings.manifest_digest,
            config_digest=self.settings.config_digest,
            history=tuple(self.history),
            validation=tuple(self.validation),
            num_updates=self.step - len(self.skipped),
            skipped=tuple(self.skipped),
            metric=metric,
            selected_by=self.selected_by,
            versions=package_versions(),
            world_size=dist.get_world_size(),
            zero_stage=self.config.workers.zero_stage,
            elapsed_s=self.elapsed_before + time.monotonic() - self.started,
        )

    @staticmethod
    def _is_node_leaving() -> bool:
        """Whether a node is about to be preempted. Collective."""
        return ray.train.get_preemption_info() is not None

    def _report_start(self) -> None:
        """Report the workers and the first step to the board."""
        described: list[dict[str, str] | None] = [None] * dist.get_world_size()
        dist.all_gather_object(described, describe_worker(self.engine.device))
        if self.log is not None:
            metrics.note_start(self.config.run, num_steps=self.config.train.num_steps)
            ray.get(self.settings.board.begin.remote(self.step, described))

    def _close_log(self) -> None:
        """Close the log; the run is finished unless it was stopped."""
        if self.log is None:
            return
        self.log.finish("FINISHED" if self._is_finished else "KILLED")
        ray.get(self.settings.board.end.remote(self.log.mlflow_run_id))


def ledger_uri(config: RunConfig) -> str:
    """Return the folder of a run's ledger."""
    return storage.join(run_folder(config.store, config.run), "ledger")


def _first_state(settings: WorkerSettings) -> checkpoints.TrainerState:
    """The state before the first step."""
    return checkpoints.TrainerState(
        step=0, manifest_digest=settings.manifest_digest, config_digest=settings.config_digest, history=()
    )


def _build_module(settings: WorkerSettings, saved: checkpoints.Checkpoint | None) -> ObjectiveModule:
    """Build the model with its seeded initial weights, those of ``initial``, or those of ``saved``."""
    torch.manual_seed(settings.config.train.seed)
    model = ScGPT(settings.model, pad_id=settings.pad_id)
    if saved is not None and settings.rows is not None:
        train_rows(model, settings.rows)
    if saved is not None or settings.initial is not None:
        uri, weights = _first_weights(settings, saved)
        missing, unexpected = model.load_state_dict(weights, strict=False)
        new_head = [name for name in missing if not name.startswith("cls_decoder.")]
        if unexpected or new_head or (saved is not None and missing):
            raise TrainingError(
                f"{uri} does not fit this model: missing {missing}, unexpected {unexpected}.",
                remedy="Use the model settings of the run that made it.",
            )
    if saved is None and settings.rows is not None:
        train_rows(model, settings.rows)
    freeze(model, settings.config.optimizer.freeze_layers)
    return ObjectiveModule(model, settings.objective)


def _first_weights(settings: WorkerSettings, saved: checkpoints.Checkpoint | None) -> tuple[str, dict[str, Tensor]]:
    """Load the weights of ``saved``, or of the model that the run starts from, with their origin."""
    if saved is not None:
        return saved.uri, saved.load_weights()
    assert settings.initial is not None, "neither a checkpoint nor an initial model"
    return settings.initial.uri, settings.initial.load()


def _give_up(batch: StepBatch, losses: dict[str, float], in_a_row: int) -> None:
    """Raise AgreedError that names the cells of a step whose gradient is not finite, of all ranks."""
    parts: list[list[str] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, [f"{cell:016x}" for cell in batch.cell_ids])
    cells = [cell for part in parts for cell in part or ()]
    error = TrainingError(
        f"The gradient is not finite at step {batch.step}, the last of {in_a_row} in a row (losses {losses}). "
        f"Cells of that step: {', '.join(cells[:SHOWN_CELLS])}{', ...' if len(cells) > SHOWN_CELLS else ''}.",
        remedy="Lower optimizer.learning_rate or look at these cells (column _cell_id of the corpus's obs); "
        "weights and the last committed checkpoint are intact.",
        step=batch.step,
        cells=cells,
    )
    raise AgreedError(error)


def _open_log(settings: WorkerSettings) -> RunLog:
    """Open the run's log, or continue it."""
    config = settings.config
    log = RunLog.open(config.tracking, run_uuid=settings.run_uuid, run_name=config.run)
    log.set_tags(
        {
            "cytoray.corpus_manifest": settings.manifest_digest,
            "cytoray.config": settings.config_digest,
            "cytoray.store": config.store,
        }
    )
    return log
