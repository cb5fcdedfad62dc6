"""One optimiser step: micro-batches under a token budget, losses over all ranks, and an update if it is finite."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from cytoray.corpus.streaming.batches import StepBatch
from cytoray.model.config import ModelConfig
from cytoray.tokens.keys import combine
from cytoray.training import engine as engines
from cytoray.training.config import RunConfig
from cytoray.training.objectives import Amounts, Objective


@dataclass(frozen=True)
class StepPlan:
    """What the ranks have agreed on about a step before it begins."""

    num_parts: int  # micro-batches of every rank
    amounts: Amounts  # over all ranks
    signals: tuple[bool, ...]  # each raised if any rank raised it


@dataclass(frozen=True)
class StepResult:
    """What one optimiser step told, over all ranks."""

    losses: dict[str, float]  # means; ``loss`` is their sum
    learning_rate: float
    gradient_norm: float | None  # before clipping; None where DeepSpeed does not tell
    applied: bool  # False where the gradient was not finite: nothing has changed then
    amounts: Amounts


@dataclass(frozen=True)
class StepRunner:
    """Takes steps with an engine; every rank must call every method."""

    engine: Any
    config: RunConfig
    model: ModelConfig
    objective: Objective

    def plan(self, batch: StepBatch, *signals: bool) -> StepPlan:
        """Agree on the number of micro-batches and the amounts of a step, in one exchange.

        All ranks take as many, since ZeRO 2 and 3 reduce after each.
        """
        mine, train = self.objective.measure(self.model, batch), self.config.train
        fewest = train.cells_per_step // dist.get_world_size()
        parts = max(train.accumulation, batch.count_parts(train.micro_batch_tokens))
        row = [parts, *dataclasses.astuple(mine), *signals]
        rows = torch.empty(dist.get_world_size(), len(row), dtype=torch.float64, device=self.engine.device)
        dist.all_gather_into_tensor(rows, torch.tensor([row], dtype=torch.float64, device=self.engine.device))
        most, totals = int(rows[:, 0].max()), rows[:, 1:].sum(dim=0).tolist()
        return StepPlan(
            min(most, fewest),
            Amounts(*(int(total) for total in totals[:4])),
            tuple(total > 0 for total in totals[4:]),
        )

    def take(self, batch: StepBatch, plan: StepPlan) -> StepResult:
        """One optimiser step; losses are means over all ranks.

        Losses are divided by the number of terms over all ranks and micro-batches, so the result depends on neither.
        """
        engine, config, rank = self.engine, self.config, dist.get_rank()
        terms = max(plan.amounts.terms, 1)
        rate = engines.learning_rate(config.optimizer, batch.step, config.train.num_steps)
        engines.set_learning_rate(engine, rate)
        sums: dict[str, torch.Tensor] = {}
        for index, part in enumerate(batch.split(plan.num_parts)):
            torch.manual_seed(int(combine(config.train.seed, batch.step, rank, index)) % 2**63)
            losses = engine(self.objective.prepare(part).to(engine.device), batch.step)
            # DeepSpeed takes the mean over ranks; what is wanted is the sum.
            engine.backward(torch.stack(list(losses.values())).sum() * (dist.get_world_size() / terms))
            for name, loss in losses.items():
                sums[name] = sums[name] + loss.detach() if name in sums else loss.detach()
        applied = engines.update(engine)
        means = torch.stack(list(sums.values())).double() / terms
        dist.all_reduce(means)
        values = dict(zip(sums, means.tolist(), strict=True))
        norm = engine.get_global_grad_norm()
        return StepResult(
            {"loss": sum(values.values()), **values},
            rate,
            None if norm is None else float(norm),
            applied,
            plan.amounts,
        )
