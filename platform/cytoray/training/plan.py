"""Estimate a pretraining run before it starts: parameters, memory, steps, tokens, hours, cost."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch

from cytoray.corpus.manifest import CorpusManifest
from cytoray.errors import ConfigError
from cytoray.model.config import ModelConfig
from cytoray.model.transformer import ScGPT
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.training.calibration import Calibration, calibrate, phases, random_batch
from cytoray.training.config import PretrainConfig
from cytoray.training.hardware import PEAK_FLOPS
from cytoray.training.objectives import build_pretraining_objective

ASSUMED_MFU = 0.25  # solid for this model; 0.35 would be excellent, the published runs reached 0.03
RAY_START_S = 15.0  # to start Ray, its workers and their data, in addition to the start of a calibration
_STATE_BYTES = {"fp32": (4, 4), "bf16": (6, 4)}  # per parameter: weights (bf16 with an fp32 master) and gradients
_MOMENT_BYTES = 8  # Adam's two, fp32
_ACTIVATIONS = 24  # tensors of width D per token and layer kept for backward


@dataclass(frozen=True)
class Hardware:
    """The hardware of a run: ``num_gpus`` of a kind, or this machine."""

    num_gpus: int = 0
    kind: str = ""

    @staticmethod
    def parse(text: str) -> Hardware:
        """Parse ``8xH100``; ConfigError for kinds whose peak rate is unknown."""
        match = re.fullmatch(r"(\d+)x(\w+)", text)
        if match is None or match[2].upper() not in PEAK_FLOPS or int(match[1]) < 1:
            raise ConfigError(
                f"--gpus {text}: not NUMBERxKIND.", remedy=f"For example 8xH100; known kinds: {', '.join(PEAK_FLOPS)}."
            )
        return Hardware(int(match[1]), match[2].upper())

    def count_here(self) -> int:
        """Return how many of these GPUs this machine has."""
        names = [torch.cuda.get_device_name(index).upper() for index in range(torch.cuda.device_count())]
        return min(self.num_gpus, sum(self.kind in name for name in names))


@dataclass(frozen=True)
class Estimate:
    """The duration of a run, and how it was estimated."""

    step_s: float  # including its share of checkpoints and validations
    start_s: float | None  # until the first step; None if not measured
    how: str
    memory_bytes: int | None = None  # peak of one worker; None if not measured


@dataclass(frozen=True)
class TrainingPlan:
    """The figures of a run; bytes are per worker."""

    parameters: dict[str, int]
    tokens_per_cell: float
    num_steps: int
    num_cells: int
    epochs: float | None  # None if the size of the corpus is unknown
    flops: float  # operations that the objective needs in total
    state_bytes: dict[int, int]  # weights, gradients and moments, by ZeRO stage
    activation_bytes: int  # of one micro-batch, all passes
    estimate: Estimate
    objective: str  # in words
    assumptions: tuple[str, ...]  # of the figures, in words

    @property
    def num_tokens(self) -> int:
        """Real tokens in the whole run."""
        return round(self.num_cells * self.tokens_per_cell)

    @property
    def seconds(self) -> float:
        """Time of all steps, without the start."""
        return self.num_steps * self.estimate.step_s


def plan_pretraining(
    config: PretrainConfig,
    hardware: Hardware,
    *,
    manifest: CorpusManifest | None = None,
    genes_per_cell: float = 2_000,
) -> TrainingPlan:
    """Plan the run ``config``: steps are measured on this machine; hours on GPUs that are not here are projected.

    Tokens per cell come from the corpus, or from ``genes_per_cell`` if it is missing. Raises TrainingError if the run's
    workers cannot take a step here, ConfigError if they need GPUs that this machine does not have.
    """
    assumptions: tuple[str, ...] = ()
    if manifest is not None:
        genes_per_cell = manifest.num_entries / max(1, manifest.num_cells)
    else:
        assumptions = (f"every cell has {genes_per_cell:,.0f} genes (the corpus is missing)",)
    tokens = min(genes_per_cell + 1, config.tokenizer.max_length)
    model = _build_model(config)
    train, parameters = config.train, _parameters(model)
    num_cells = train.num_steps * train.cells_per_step
    flops = num_cells * _flops_per_cell(config, model, round(tokens))
    world_size = hardware.num_gpus or config.workers.most
    if hardware.num_gpus:
        estimate = _on_gpus(config, hardware, flops, genes_per_cell, has_corpus=manifest is not None)
        assumptions += _gpu_assumptions(config, hardware, estimate)
    else:
        estimate = _on_this_machine(config, genes_per_cell, has_corpus=manifest is not None)
    return TrainingPlan(
        parameters=parameters,
        tokens_per_cell=tokens,
        num_steps=train.num_steps,
        num_cells=num_cells,
        epochs=num_cells / cells if (cells := _training_cells(config, manifest)) else None,
        flops=flops,
        state_bytes=_state_bytes(sum(parameters.values()), config.workers.precision, world_size),
        activation_bytes=_activation_bytes(config, model, tokens, world_size),
        estimate=estimate,
        objective=_describe_objective(config),
        assumptions=assumptions,
    )


def _training_cells(config: PretrainConfig, manifest: CorpusManifest | None) -> int:
    """Number of training cells in the corpus, without held-out ones; 0 if the corpus is missing."""
    if manifest is None or config.validation is None:
        return 0 if manifest is None else manifest.num_cells
    from cytoray.corpus.stream import open_stream
    from cytoray.training.pretraining import stream_options  # imports Ray, which must wait for prepare_auth
    from cytoray.training.validation import held_in

    return open_stream(config.store, config.corpus, held_in(stream_options(config), config)).num_cells


def _on_this_machine(config: PretrainConfig, genes_per_cell: float, *, has_corpus: bool) -> Estimate:
    """Measure steps that all workers of the run take here together."""
    workers = config.workers
    if workers.use_gpu and torch.cuda.device_count() < workers.most:
        raise ConfigError(
            f"workers.use_gpu needs {workers.most} GPUs, but this machine has {torch.cuda.device_count()}: "
            "no step can be measured.",
            remedy="Name the GPUs (--gpus 8xH100), or plan for CPUs (--set workers.use_gpu=false).",
        )
    found = calibrate(config, genes_per_cell=genes_per_cell, has_corpus=has_corpus)
    each = "a GPU" if workers.use_gpu else f"{workers.threads_per_worker} thread(s)"
    how = f"{_describe_measured(found)} by {workers.most} worker(s) with {each} each, checkpoints included"
    step_s = found.seconds_per_step(config.train.checkpoint_every)
    return Estimate(step_s, found.start_s + RAY_START_S, how, found.memory_bytes or None)


def _on_gpus(
    config: PretrainConfig, hardware: Hardware, flops: float, genes_per_cell: float, *, has_corpus: bool
) -> Estimate:
    """Measure steps on the GPUs that are here, or project from their peak rate."""
    here, train = hardware.count_here(), config.train
    gpus = f"{hardware.num_gpus} {hardware.kind}"
    if not here:
        seconds = flops / (hardware.num_gpus * PEAK_FLOPS[hardware.kind] * ASSUMED_MFU)
        how = f"PROJECTED at {ASSUMED_MFU:.0%} of the peak of {gpus}; not measured"
        return Estimate(seconds / train.num_steps, None, how)
    share = max(1, train.cells_per_step // hardware.num_gpus)
    part = config.model_copy(
        update={
            "train": train.model_copy(update={"cells_per_step": share * here}),
            "workers": config.workers.model_copy(update={"num_workers": here, "use_gpu": True}),
        }
    )
    found = calibrate(part, genes_per_cell=genes_per_cell, has_corpus=has_corpus)
    how = f"{_describe_measured(found)} on {here} {hardware.kind} here, with {share} cells each"
    if here < hardware.num_gpus:
        how = f"PROJECTED to {gpus} from {how}; the exchange between more GPUs is not counted"
    return Estimate(found.seconds_per_step(train.checkpoint_every), found.start_s + RAY_START_S, how)


def _describe_measured(found: Calibration) -> str:
    """Describe a measurement in words."""
    part = "" if found.share > 0.99 else f" of {found.share:.2g} of the cells"
    return f"measured: {found.num_steps} step(s){part}"


def _gpu_assumptions(config: PretrainConfig, hardware: Hardware, estimate: Estimate) -> tuple[str, ...]:
    """List the assumptions of a plan for GPUs."""
    found = []
    if hardware.num_gpus != config.workers.most:
        found.append(f"{hardware.num_gpus} workers, not the {config.workers.most} of workers.num_workers")
    if estimate.start_s is None:
        peak = PEAK_FLOPS[hardware.kind] / 1e12
        found.append(f"{ASSUMED_MFU:.0%} of {peak:,.0f} TFLOP/s (dense bf16) are reached on every GPU, at all steps")
        found.append("reading, checkpoints and restarts take no extra time")
        if config.workers.precision != "bf16":
            found.append(f"the peak is that of bf16, while workers.precision is {config.workers.precision}: slower")
    return tuple(found)


def _describe_objective(config: PretrainConfig) -> str:
    """Describe the objective and its number of passes."""
    objective, num_steps = config.objective, config.train.num_steps
    shares = "/".join(f"{100 * ratio:g}" for ratio in objective.unknown_ratios)
    text = f"{objective.style}, {shares} % of the genes hidden"
    if not objective.has_second_pass(num_steps - 1):
        return f"{text}, one pass"
    after = objective.second_pass_after
    return f"{text}, two passes " + (f"from step {after:,}" if after else "at every step")


def _build_model(config: PretrainConfig) -> ModelConfig:
    """Build the run's model; ``pretraining.build_model`` imports Ray, which must wait for prepare_auth."""
    model = config.model.build(vocabulary_size=GeneVocabulary.load_default().size, num_labels=0)
    return model.model_copy(update={"generative": config.objective.style == "generative"})


def _flops_per_cell(config: PretrainConfig, model: ModelConfig, tokens: int) -> float:
    """Operations of training on one cell, averaged over the unknown ratios and the passes of the run."""
    objective = build_pretraining_objective(config.objective, pad_id=GeneVocabulary.load_default().pad_id)
    found = [
        share * objective.measure(model, random_batch(config, tokens, ratio=ratio, step=step)).flops
        for ratio in config.objective.unknown_ratios
        for step, share in phases(config)
    ]
    return float(np.sum(found)) / len(config.objective.unknown_ratios)


def _parameters(model: ModelConfig) -> dict[str, int]:
    """Count parameters by part of the model."""
    with torch.device("meta"):
        network = ScGPT(model, pad_id=0)
    return {name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()}


def _state_bytes(num_parameters: int, precision: str, world_size: int) -> dict[int, int]:
    """Bytes of weights, gradients and moments per worker; each ZeRO stage shards one more of them."""
    weights, gradients = _STATE_BYTES[precision]
    shares = {0: (1, 1, 1), 1: (1, 1, world_size), 2: (1, world_size, world_size), 3: (world_size,) * 3}
    sizes = (weights, gradients, _MOMENT_BYTES)
    return {
        stage: round(num_parameters * sum(size / share for size, share in zip(sizes, split, strict=True)))
        for stage, split in shares.items()
    }


def _activation_bytes(config: PretrainConfig, model: ModelConfig, tokens: float, world_size: int) -> int:
    """Bytes that one micro-batch keeps for backward, all passes."""
    train = config.train
    micro_tokens = min(
        tokens * train.cells_per_step / (world_size * train.accumulation), max(tokens, train.micro_batch_tokens)
    )
    passes = 2 if config.objective.has_second_pass(train.num_steps - 1) else 1
    size = 2 if config.workers.precision == "bf16" else 4
    return round(passes * _ACTIVATIONS * model.num_layers * micro_tokens * model.width * size)
