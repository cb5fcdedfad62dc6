"""A plain single-process training loop in torch alone: what any number of workers must agree with."""

from __future__ import annotations

import math

import torch

from cytoray.corpus.stream import CorpusStream
from cytoray.model.transformer import ScGPT
from cytoray.training.config import RunConfig
from cytoray.training.objectives import Objective


def train(
    model: ScGPT, objective: Objective, stream: CorpusStream, config: RunConfig, num_steps: int
) -> list[dict[str, float]]:
    """Train ``model`` in place on whole steps; returns the mean losses of each step."""
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=config.optimizer.betas, eps=config.optimizer.epsilon, weight_decay=0.0
    )
    history = []
    for step in range(num_steps):
        prepared = objective.prepare(stream.read_step(step, rank=0, world_size=1))
        losses = objective.losses(model, prepared, step)
        terms = objective.num_terms(prepared)
        optimizer.zero_grad()
        (sum(losses.values(), torch.zeros(())) / terms).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.gradient_clipping)
        warm, total = config.optimizer.warmup_steps, config.train.num_steps
        factor = (step + 1) / warm if step < warm else (1 + math.cos(math.pi * (step - warm) / (total - warm))) / 2
        for group in optimizer.param_groups:
            group["lr"] = config.optimizer.learning_rate * factor
        optimizer.step()
        history.append({name: float(loss.detach()) / terms for name, loss in losses.items()})
    return history
