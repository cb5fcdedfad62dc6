"""A plain torch loop around our model: the same cells, objective and optimiser, without Ray and DeepSpeed."""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.train_loop_trial import MICRO_BATCH_TOKENS, Trial
from cytoray.corpus.streaming.batches import StepBatch
from cytoray.model.transformer import ScGPT
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.training.objectives import GenerativeObjective


def train_plain(trial: Trial) -> dict[str, Any]:
    """Seconds of each step, reading in a thread of this process included, and the losses."""
    torch.set_num_threads(trial.threads)
    config, vocabulary = trial.config("plain", num_workers=1), GeneVocabulary.load_default()
    torch.manual_seed(config.train.seed)
    model = ScGPT(trial.shape.build(vocabulary_size=vocabulary.size, num_labels=0), pad_id=vocabulary.pad_id).train()
    optimizer_config = config.optimizer
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=optimizer_config.learning_rate,
        betas=optimizer_config.betas,
        eps=optimizer_config.epsilon,
        weight_decay=optimizer_config.weight_decay,
    )
    objective = GenerativeObjective(config.objective, vocabulary.pad_id)
    steps_s, losses, last = [], [], time.perf_counter()
    for batch in trial.open_stream().read_steps(0, trial.num_steps, threads=1):
        losses.append(_step(model, optimizer, objective, batch))
        now = time.perf_counter()
        steps_s.append(now - last)
        last = now
    return {"steps_s": steps_s, "losses": losses}


def _step(model: ScGPT, optimizer: torch.optim.Optimizer, objective: GenerativeObjective, batch: StepBatch) -> float:
    """One step in micro-batches of the size that a worker takes; its loss."""
    assert batch.unknown_lengths is not None, "the stream is generative"
    num_tokens, num_terms = int(batch.lengths.sum() + batch.unknown_lengths.sum()), int(batch.unknown_lengths.sum())
    optimizer.zero_grad()
    total = 0.0
    for part in batch.split(-(-num_tokens // MICRO_BATCH_TOKENS)):
        losses = objective.losses(model, objective.prepare(part), batch.step)
        loss = torch.stack([found.total for found in losses.values()]).sum() / num_terms
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return total
