"""What a pretraining run would take, before it starts: parameters, memory, steps, tokens, hours, money."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import numpy as np
import torch

from cytoray.corpus.manifest import CorpusManifest
from cytoray.errors import ConfigError
from cytoray.model.config import ModelConfig
from cytoray.model.flops import generative_flops
from cytoray.model.transformer import ScGPT
from cytoray.tokens.collator import PackedGenerativeMinibatch, PackedMinibatch
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.training.config import PretrainConfig
from cytoray.training.hardware import PEAK_FLOPS

ASSUMED_MFU = 0.25  # solid for this model; 0.35 would be excellent, published runs reached 0.03
_STATE_BYTES = {"fp32": (4, 4), "bf16": (6, 4)}  # weights (bf16 with an fp32 master) and gradients, a parameter
_MOMENT_BYTES = 8  # Adam's two, fp32
_ACTIVATIONS = 24  # tensors of width D a token and layer that wait for the way back


@dataclass(frozen=True)
class Hardware:
    """What trains: ``num_gpus`` of a kind, or this machine's processors."""

    num_gpus: int = 0
    kind: str = ""

    @staticmethod
    def parse(text: str) -> Hardware:
        """``8xH100`` as eight of them; ConfigError for kinds whose peak is not known."""
        match = re.fullmatch(r"(\d+)x(\w+)", text)
        if match is None or match[2].upper() not in PEAK_FLOPS or int(match[1]) < 1:
            raise ConfigError(
                f"--gpus {text}: not understood.", remedy=f"Give NUMBERxKIND, a kind of {', '.join(PEAK_FLOPS)}."
            )
        return Hardware(int(match[1]), match[2].upper())


@dataclass(frozen=True)
class TrainingPlan:
    """The figures of a run; bytes are of one worker."""

    parameters: dict[str, int]
    tokens_per_cell: float
    num_steps: int
    num_cells: int
    epochs: float | None  # None where the size of the corpus is not known
    flops: float  # that the objective needs, all in all
    state_bytes: dict[int, int]  # weights, gradients and moments, by ZeRO stage
    activation_bytes: int  # of one micro-batch, both passes
    seconds: float
    how: str  # where the seconds come from

    @property
    def num_tokens(self) -> int:
        """Real tokens of the run."""
        return round(self.num_cells * self.tokens_per_cell)


def plan_pretraining(
    config: PretrainConfig,
    hardware: Hardware,
    *,
    manifest: CorpusManifest | None = None,
    genes_per_cell: float = 2_000,
) -> TrainingPlan:
    """Figures of the run ``config``; on GPUs hours are projected, on this machine a step is measured.

    Tokens a cell come from the corpus, or from ``genes_per_cell`` where there is none yet.
    """
    model = config.model.build(vocabulary_size=GeneVocabulary.load_default().size, num_labels=0)
    if manifest is not None:
        genes_per_cell = manifest.num_entries / max(1, manifest.num_cells)
    tokens = min(genes_per_cell + 1, config.tokenizer.max_length)
    train, workers = config.train, config.workers
    world_size = hardware.num_gpus or workers.most
    num_cells = train.num_steps * train.cells_per_step
    flops = num_cells * _flops_per_cell(config, model, round(tokens))
    if hardware.num_gpus:
        seconds = flops / (hardware.num_gpus * PEAK_FLOPS[hardware.kind] * ASSUMED_MFU)
        how = f"projected at {ASSUMED_MFU:.0%} of the peak of {hardware.num_gpus} {hardware.kind}; not measured"
    else:
        seconds = train.num_steps * measure_step(config, model, round(tokens))
        how = (
            f"from steps measured in one process with {workers.threads_per_worker} threads; start and checkpoints aside"
        )
    micro_cells = train.cells_per_step // (world_size * train.accumulation)
    return TrainingPlan(
        parameters=_parameters(model),
        tokens_per_cell=tokens,
        num_steps=train.num_steps,
        num_cells=num_cells,
        epochs=num_cells / manifest.num_cells if manifest is not None and manifest.num_cells else None,
        flops=flops,
        state_bytes=_state_bytes(sum(_parameters(model).values()), workers.precision, world_size),
        activation_bytes=round(
            2
            * _ACTIVATIONS
            * model.num_layers
            * min(micro_cells * tokens, train.micro_batch_tokens)
            * model.width
            * (2 if workers.precision == "bf16" else 4)
        ),
        seconds=seconds,
        how=how,
    )


def measure_step(config: PretrainConfig, model: ModelConfig, tokens: int, *, repeats: int = 3) -> float:
    """Seconds of one worker's share of an optimiser step on this machine: the median of some, after one to warm up."""
    share = config.train.cells_per_step // config.workers.most
    before = torch.get_num_threads()
    torch.set_num_threads(config.workers.threads_per_worker)
    try:
        network = ScGPT(model, pad_id=GeneVocabulary.load_default().pad_id)
        optimizer = torch.optim.AdamW(network.parameters())
        times = [_time_step(network, optimizer, config, share, tokens) for _ in range(repeats + 1)]
    finally:
        torch.set_num_threads(before)
    return float(np.median(times[1:]))


def _time_step(
    network: ScGPT, optimizer: torch.optim.Optimizer, config: PretrainConfig, share: int, tokens: int
) -> float:
    """Seconds of all micro-batches of a share, on random cells of ``tokens`` tokens."""
    micro = max(1, share // config.train.accumulation)
    ratio = float(np.mean(config.objective.unknown_ratios))
    started = time.perf_counter()
    optimizer.zero_grad()
    for _ in range(config.train.accumulation):
        batch = _random_batch(micro, tokens, ratio)
        first = network.forward_generative(batch)
        losses = [first.expression.square().mean()]
        if first.cell_conditioned is not None:
            losses.append(first.cell_conditioned.square().mean())
        if config.objective.has_second_pass(config.train.num_steps - 1):
            second = network.forward_generative(batch, cell_embedding_BD=first.cells_BD.detach())
            losses.append(second.expression.square().mean())
        torch.stack(losses).sum().backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), config.optimizer.gradient_clipping)
    optimizer.step()
    return time.perf_counter() - started


def _random_batch(cells: int, tokens: int, ratio: float) -> PackedGenerativeMinibatch:
    unknown = int((tokens - 1) * ratio)
    known = tokens - unknown
    ids = torch.randint(0, 60_000, (cells * tokens,))
    shown = PackedMinibatch(
        ids[: cells * known], torch.ones(cells * known), (known,) * cells, np.arange(cells, dtype=np.uint64)
    )
    return PackedGenerativeMinibatch(shown, ids[cells * known :], torch.ones(cells * unknown), (unknown,) * cells)


def _flops_per_cell(config: PretrainConfig, model: ModelConfig, tokens: int) -> float:
    """Operations of training on one cell, over the shares of unknown genes and with the second passes that are on."""
    alone = model.model_copy(update={"cell_conditioned_decoder": "none"})
    second = 0.0
    if config.objective.has_second_pass(config.train.num_steps - 1):
        second = 1 - (config.objective.second_pass_after or 0) / config.train.num_steps
    found = []
    for ratio in config.objective.unknown_ratios:
        unknown = int((tokens - 1) * ratio)
        known = tokens - unknown
        passes = (generative_flops(shape, [known], [unknown]).total for shape in (model, alone))
        first, again = passes
        found.append(3 * (first + second * again))
    return float(np.mean(found))


def _parameters(model: ModelConfig) -> dict[str, int]:
    """Parameters by part of the model."""
    with torch.device("meta"):
        network = ScGPT(model, pad_id=0)
    return {name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()}


def _state_bytes(num_parameters: int, precision: str, world_size: int) -> dict[int, int]:
    """Weights, gradients and moments of one worker; each stage shares out one more of them."""
    weights, gradients = _STATE_BYTES[precision]
    shares = {0: (1, 1, 1), 1: (1, 1, world_size), 2: (1, world_size, world_size), 3: (world_size,) * 3}
    sizes = (weights, gradients, _MOMENT_BYTES)
    return {
        stage: round(num_parameters * sum(size / share for size, share in zip(sizes, split, strict=True)))
        for stage, split in shares.items()
    }
