"""One optimiser step: micro-batches, losses over all ranks, each divided by its own count, and a finite update.

The host waits for the device in the update alone, which DeepSpeed skips if the gradient is not finite. Plans are
exchanged by the hosts, and losses and norms stay on the device until ``StepRunner.fetch``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from cytoray.corpus.streaming.batches import StepBatch
from cytoray.model.config import ModelConfig
from cytoray.tokens.keys import combine
from cytoray.training import engine as engines
from cytoray.training.config import RunConfig
from cytoray.training.objectives import Amounts, Objective, Prepared

NUM_AMOUNTS = len(dataclasses.fields(Amounts))


@dataclass(frozen=True)
class StepPlan:
    """The agreement of all ranks about a step before it begins."""

    num_parts: int  # micro-batches on every rank
    amounts: Amounts  # over all ranks
    counts: dict[str, int]  # terms of each loss, over all ranks
    signals: tuple[bool, ...]  # each raised if any rank raised it


@dataclass(frozen=True)
class StepResult:
    """One rank's outcome of an optimiser step; tensors are on the device."""

    sums: dict[str, Tensor]  # losses summed over this rank's terms, by name
    norm: Tensor | float | None  # of the gradient over all ranks, before clipping; None if DeepSpeed has none
    learning_rate: float
    applied: bool  # False if the gradient was not finite: nothing has changed then
    plan: StepPlan
    weights: dict[str, float]  # of the losses

    @property
    def amounts(self) -> Amounts:
        """Amounts of work over all ranks."""
        return self.plan.amounts


@dataclass(frozen=True)
class StepFigures:
    """Losses and norm of a step over all ranks, on the host."""

    losses: dict[str, float]  # means; ``loss`` is their weighted sum
    gradient_norm: float | None


def build_host_group(timeout_s: float) -> dist.ProcessGroup:
    """Build a gloo group of all ranks beside the group that computes. Collective."""
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
    return group


def limit_waits(timeout_s: float) -> None:
    """Let collectives of every group fail after ``timeout_s``: DeepSpeed makes groups of its own that wait 30 minutes.

    A rank waits for gradients on such a group while the next step is agreed on elsewhere.
    """
    for group in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_s), group)


@dataclass(frozen=True)
class StepRunner:
    """Takes steps with an engine; every rank must call every method that is marked as collective."""

    engine: Any
    config: RunConfig
    model: ModelConfig
    objective: Objective
    host_group: Any = None  # exchanges plans; the default group if that is gloo and no other thread uses it

    def plan(self, batch: StepBatch, *signals: bool) -> StepPlan:
        """Agree on the number of micro-batches and the amounts of a step, in one exchange. Collective."""
        return self.read_plan(self.exchange([*self.measure(batch), *signals]))

    @functools.cached_property
    def loss_names(self) -> tuple[str, ...]:
        """Names of all losses that may occur, in the order in which their counts are exchanged."""
        return tuple(self.objective.weights(0))

    def measure(self, batch: StepBatch) -> list[int]:
        """Measure this rank's part of a step: the micro-batches it needs (at least 1), its amounts, its counts."""
        amounts, counts = self.objective.measure(self.model, batch), self.objective.counts(batch)
        parts = [self._count_parts(batch), *dataclasses.astuple(amounts)]
        return parts + [counts[name] for name in self.loss_names]

    def measure_nothing(self, status: int) -> list[int]:
        """Return a row like that of ``measure`` for a rank without a minibatch; ``status`` says why."""
        return [status, *(0 for _ in range(NUM_AMOUNTS + len(self.loss_names)))]

    def _count_parts(self, batch: StepBatch) -> int:
        """Number of micro-batches that this rank needs."""
        if self.objective.scope == "minibatch":
            return batch.num_minibatches
        train = self.config.train
        return max(train.accumulation, batch.count_parts(train.micro_batch_tokens))

    def exchange(self, row: Sequence[int]) -> Tensor:
        """The rows of all ranks, int64 (ranks, columns), without use of the device. Collective."""
        rows = torch.empty(dist.get_world_size(), len(row), dtype=torch.int64)
        dist.all_gather(list(rows.unbind()), torch.tensor(row, dtype=torch.int64), group=self.host_group)
        return rows

    def read_plan(self, rows: Tensor) -> StepPlan:
        """The plan that exchanged rows of ``measure`` and signals amount to.

        All ranks take as many micro-batches, since ZeRO 2 and 3 reduce after each.
        """
        fewest_cells = self.config.train.cells_per_step // dist.get_world_size()
        totals = rows[:, 1:].sum(dim=0).tolist()
        amounts, totals = totals[:NUM_AMOUNTS], totals[NUM_AMOUNTS:]
        counts = dict(zip(self.loss_names, totals, strict=False))
        signals = tuple(total > 0 for total in totals[len(counts) :])
        return StepPlan(min(int(rows[:, 0].max()), fewest_cells), Amounts(*amounts), counts, signals)

    def prepare(self, batch: StepBatch, plan: StepPlan) -> list[Prepared]:
        """The micro-batches of a step on the host; for a GPU in page-locked memory, so that copies do not block."""
        by_minibatch = self.objective.scope == "minibatch"
        cut = batch.split_minibatches() if by_minibatch else batch.split(plan.num_parts)
        parts = [self.objective.prepare(part) for part in cut]
        on_gpu = torch.device(self.engine.device).type == "cuda"
        return [pin(part) for part in parts] if on_gpu else parts

    def take(self, batch: StepBatch, plan: StepPlan, parts: Sequence[Prepared] | None = None) -> StepResult:
        """Take one optimiser step on ``parts``, which are prepared here if they are not yet. Collective.

        Each loss is divided by its count over all ranks and micro-batches, so the result depends on neither.
        """
        engine, config, rank = self.engine, self.config, dist.get_rank()
        weights, ranks = self.objective.weights(batch.step), dist.get_world_size()
        # DeepSpeed takes the mean over ranks, not the sum.
        scales = {name: weight * (ranks / max(plan.counts[name], 1)) for name, weight in weights.items()}
        rate = engines.learning_rate(config.optimizer, batch.step, config.train.num_steps)
        engines.set_learning_rate(engine, rate)
        sums: dict[str, Tensor] = {}
        for index, part in enumerate(self.prepare(batch, plan) if parts is None else parts):
            # A minibatch has the same dropout masks on whatever rank it is.
            place = (0, rank * plan.num_parts + index) if self.objective.scope == "minibatch" else (rank, index)
            torch.manual_seed(int(combine(config.train.seed, batch.step, *place)) % 2**63)
            losses = engine(part.to(engine.device), batch.step)
            engine.backward(torch.stack([loss * scales[name] for name, loss in losses.items()]).sum())
            for name, loss in losses.items():
                sums[name] = sums[name] + loss.detach() if name in sums else loss.detach()
        applied = engines.update(engine)
        return StepResult(sums, engine.get_global_grad_norm(), rate, applied, plan, weights)

    def fetch(self, results: Sequence[StepResult]) -> list[StepFigures]:
        """Losses and norms of steps, in one reduction and one copy to the host for all of them. Collective."""
        if not results:
            return []
        sums = torch.cat([torch.stack(list(done.sums.values())).double() for done in results])
        dist.all_reduce(sums)
        known = [math.nan if done.norm is None else done.norm for done in results]
        norms = [torch.as_tensor(norm, dtype=sums.dtype, device=sums.device) for norm in known]
        values = iter(torch.cat([sums, torch.stack(norms)]).tolist())
        losses = [{name: next(values) / max(done.plan.counts[name], 1) for name in done.sums} for done in results]
        return [
            StepFigures(
                {"loss": sum(done.weights[name] * mean for name, mean in own.items()), **own},
                None if done.norm is None else norm,
            )
            for done, own, norm in zip(results, losses, values, strict=True)
        ]


def pin(prepared: Any) -> Any:
    """Copy the tensors of a dataclass, and of those in it, to page-locked memory."""
    pinned = {}
    for field in dataclasses.fields(prepared):
        value = getattr(prepared, field.name)
        if isinstance(value, Tensor):
            pinned[field.name] = value.pin_memory()
        elif dataclasses.is_dataclass(value):
            pinned[field.name] = pin(value)
    return dataclasses.replace(prepared, **pinned)
