"""What a training run is told: data, model, optimisation, workers."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from cytoray.config import Config, Location
from cytoray.model.config import ModelConfig
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tracking import TrackingConfig

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class ShapeConfig(Config):
    """Size of the transformer; the vocabulary and the labels are found in the corpus."""

    width: int = Field(512, gt=0, description="Embedding width D.")
    num_heads: int = Field(8, gt=0, description="Attention heads.")
    feedforward_width: int = Field(512, gt=0, description="Hidden width of the feed-forward.")
    num_layers: int = Field(12, gt=0, description="Transformer layers.")
    dropout: float = Field(0.2, ge=0, lt=1, description="Dropout on values and residual branches.")
    cell_embedding: Literal["cls", "mean"] = Field("cls", description="Pooling of a cell.")

    def build(self, *, vocabulary_size: int, num_labels: int) -> ModelConfig:
        """The full model configuration."""
        return ModelConfig(vocabulary_size=vocabulary_size, num_labels=num_labels, **self.model_dump())


class OptimizerConfig(Config):
    """AdamW with warm-up and cosine decay, a pure function of the step."""

    learning_rate: float = Field(1e-4, gt=0, description="Peak learning rate.")
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up.")
    final_share: float = Field(0.0, ge=0, le=1, description="Learning rate at the last step, as a share of the peak.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    betas: tuple[float, float] = Field((0.9, 0.999), description="Adam's averages.")
    epsilon: float = Field(1e-8, gt=0, description="Adam's epsilon.")
    gradient_clipping: float = Field(1.0, gt=0, description="Bound on the global gradient norm.")


class TrainConfig(Config):
    """How long, how much at a time, how often saved."""

    num_steps: int = Field(gt=0, description="Optimiser steps.")
    cells_per_step: int = Field(64, gt=0, description="Cells of one optimiser step, over all workers.")
    accumulation: int = Field(1, gt=0, description="Micro-batches a worker splits its share of a step into, at least.")
    micro_batch_tokens: int = Field(
        65_536, gt=0, description="Bound on the real tokens of a micro-batch: a share that has more is cut further."
    )
    log_every: int = Field(
        10,
        gt=0,
        description="Steps whose losses are fetched from the device and journalled together; fewer if they take long.",
    )
    checkpoint_every: int = Field(100, gt=0, description="Steps between checkpoints; one is always kept at the end.")
    keep_checkpoints: int = Field(
        2, gt=0, description="Newest committed checkpoints kept, beside the best of a run with validation."
    )
    seed: int = Field(42, ge=0, description="Keys order, shares of hidden genes, initial weights and dropout.")
    ledger: bool = Field(False, description="Keep beside the checkpoints which cells each step was given.")
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="Keep a running average of the weights, which is validated and exported."
    )
    max_skipped_steps: int = Field(
        3,
        ge=0,
        description="Steps in a row that may be left out because a gradient is not finite; one more ends the run.",
    )


class ValidationConfig(Config):
    """Cells that are never trained on, and on which the model is judged at each checkpoint, always the same way."""

    select: str = Field(
        min_length=1, description="Expression over obs that holds cells out, by donor or data set: donor == 'D7'."
    )
    max_cells: int = Field(512, gt=0, description="At most so many of the cells held out are looked at.")
    seed: int = Field(0, ge=0, description="Keys which cells, and which of their genes are hidden.")


class WorkersConfig(Config):
    """The processes that train."""

    num_workers: int | tuple[int, int] = Field(
        2, description="Ray Train workers; [least, most] goes on with those that are there when some are lost."
    )
    use_gpu: bool = Field(False, description="One GPU a worker.")
    cpus_per_worker: float = Field(0.5, gt=0, description="Logical CPUs a worker reserves in Ray.")
    threads_per_worker: int = Field(1, gt=0, description="Torch threads of a worker.")
    zero_stage: Literal[0, 1, 2, 3] = Field(
        1, description="DeepSpeed ZeRO stage: 0 replicates, 1 shards the optimiser, 2 gradients too, 3 weights too."
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Compute precision; the optimiser keeps fp32.")
    max_failures: int = Field(2, ge=0, description="Restarts from the last checkpoint before giving up.")
    collective_timeout_s: int = Field(300, gt=0, description="A collective that takes longer is an error.")

    @model_validator(mode="after")
    def _workers_are_a_range(self) -> Self:
        if not self.sizes or self.sizes[0] < 1:
            raise ValueError("num_workers must be a number above 0 or [least, most]")
        if self.precision == "bf16" and self.zero_stage == 0:
            raise ValueError("bf16 needs zero_stage 1, 2 or 3, which keep fp32 weights beside it")
        return self

    @property
    def sizes(self) -> range:
        """The numbers of workers that the run may have."""
        if isinstance(self.num_workers, int):
            return range(self.num_workers, self.num_workers + 1)
        return range(self.num_workers[0], self.num_workers[1] + 1)

    @property
    def most(self) -> int:
        """The number of workers of a run that has lost none."""
        return self.sizes[-1]


class GenerativeConfig(Config):
    """What pretraining learns: to tell the expression of hidden genes from the rest of their cell."""

    style: Literal["generative", "masked"] = Field(
        "generative",
        description="generative: hidden genes see the known ones and themselves; masked: their values are blanked out.",
    )
    unknown_ratios: tuple[float, ...] = Field(
        (0.25, 0.5, 0.75), min_length=1, description="Shares of genes to tell from the rest; one is drawn each step."
    )
    second_pass_after: int | None = Field(
        0,
        ge=0,
        description="From this step on also tell the genes from the cell embedding alone (second pass); null is never.",
    )

    def has_second_pass(self, step: int) -> bool:
        """Whether the objective has two passes at this step."""
        return self.style == "generative" and self.second_pass_after is not None and step >= self.second_pass_after

    @model_validator(mode="after")
    def _ratios_are_shares(self) -> Self:
        if any(not 0 < ratio < 1 for ratio in self.unknown_ratios):
            raise ValueError("unknown_ratios must lie between 0 and 1")
        return self


class RunConfig(Config):
    """What every training run has."""

    places: ClassVar[frozenset[str]] = frozenset({"store", "tracking", "allow_changes"})
    # Keys that change nothing of what comes out, and so may differ when a run goes on.
    free: ClassVar[frozenset[str]] = frozenset(
        {
            "workers.num_workers",
            "workers.cpus_per_worker",
            "workers.threads_per_worker",
            "workers.zero_stage",
            "workers.max_failures",
            "workers.collective_timeout_s",
            "train.accumulation",
            "train.micro_batch_tokens",
            "train.log_every",
            "train.checkpoint_every",
            "train.keep_checkpoints",
            "train.ledger",
            "train.max_skipped_steps",
        }
    )

    store: Location = Field(description="Root of everything cytoray keeps: s3://bucket/prefix or a local folder.")
    run: str = Field(pattern=NAME, description="Name of the run; the same name continues the same run.")
    corpus: str = Field(pattern=NAME, description="The committed corpus to train on.")
    tokenizer: TokenizerConfig = Field(TokenizerConfig(), description="From counts to tokens.")
    train: TrainConfig = Field(description="Steps and cells.")
    optimizer: OptimizerConfig = Field(OptimizerConfig(), description="Optimisation.")
    workers: WorkersConfig = Field(WorkersConfig(), description="Processes.")
    validation: ValidationConfig | None = Field(None, description="Cells held out, and judged at each checkpoint.")
    tracking: TrackingConfig = Field(description="MLflow and the run journal.")
    allow_changes: tuple[str, ...] = Field(
        (), description="Keys that may differ from those the run was started with, such as optimizer.learning_rate."
    )

    @model_validator(mode="after")
    def _workers_have_work(self) -> Self:
        if self.train.cells_per_step < self.workers.most:
            raise ValueError(
                f"train.cells_per_step ({self.train.cells_per_step}) leaves some of the "
                f"{self.workers.most} workers without a cell"
            )
        if self.train.ema_decay is not None and self.workers.zero_stage == 3:
            raise ValueError("train.ema_decay needs whole weights on every worker: workers.zero_stage 0, 1 or 2")
        return self


class PretrainConfig(RunConfig):
    """Pretraining on a corpus."""

    kind: Literal["pretrain"] = Field("pretrain", description="Which stage this file configures.")
    model: ShapeConfig = Field(ShapeConfig(), description="Size of the transformer.")
    objective: GenerativeConfig = Field(GenerativeConfig(), description="What is learned.")


class FinetuneConfig(RunConfig):
    """Fine-tuning a pretrained run for cell-type annotation."""

    kind: Literal["finetune"] = Field("finetune", description="Which stage this file configures.")
    initial_run: str = Field(pattern=NAME, description="The pretraining run whose last checkpoint is the start.")
    label_key: str = Field(description="Column of obs with the cell types; cells without one are left out.")
