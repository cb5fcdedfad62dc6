"""A plain single-process training loop in torch alone: what any number of workers must agree with."""

from __future__ import annotations

import math

import torch

from cytoray.corpus.stream import CorpusStream
from cytoray.corpus.streaming.batches import StepBatch
from cytoray.model.transformer import ScGPT
from cytoray.training.config import RunConfig
from cytoray.training.objectives import Objective


def train(
    model: ScGPT, objective: Objective, stream: CorpusStream, config: RunConfig, num_steps: int
) -> list[dict[str, float]]:
    """Train ``model`` in place on whole steps; returns the mean losses of each step."""
    settings, depth = config.optimizer, model.config.num_layers
    groups = []
    for name, parameter in model.named_parameters():
        layer = int(name.split(".")[2]) if ".layers." in name else depth if "decoder" in name else -1
        if settings.freeze_layers and layer < settings.freeze_layers and (layer >= 0 or name.startswith("encoder.")):
            parameter.requires_grad_(requires_grad=False)
        groups.append({"params": [parameter], "scale": settings.layer_decay ** (depth - layer)})
    optimizer = torch.optim.AdamW(groups, betas=settings.betas, eps=settings.epsilon, weight_decay=0.0)
    history = []
    for step in range(num_steps):
        optimizer.zero_grad()
        losses = mean_losses(model, objective, stream.read_step(step, rank=0, world_size=1))
        sum(losses.values(), torch.zeros(())).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.gradient_clipping)
        warm, total = config.optimizer.warmup_steps, config.train.num_steps
        factor = (step + 1) / warm if step < warm else (1 + math.cos(math.pi * (step - warm) / (total - warm))) / 2
        for group in optimizer.param_groups:
            group["lr"] = config.optimizer.learning_rate * factor * group["scale"]
        optimizer.step()
        history.append({name: float(loss.detach()) for name, loss in losses.items()})
    return history


def mean_losses(model: ScGPT, objective: Objective, batch: StepBatch) -> dict[str, torch.Tensor]:
    """Mean of each loss over a step, minibatch by minibatch if the loss depends on these, times its weight."""
    parts = batch.split_minibatches() if objective.scope == "minibatch" else [batch]
    found = [objective.losses(model, objective.prepare(part), batch.step) for part in parts]
    weights, means = objective.weights(batch.step), {}
    for name in found[0]:
        total = sum((losses[name].total for losses in found), torch.zeros(()))
        means[name] = weights[name] * total / sum(int(losses[name].count) for losses in found)
    return means
